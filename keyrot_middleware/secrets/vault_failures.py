"""Failures of Vault as messages, without a secret in them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from ..core.text import display, mask_keys
from .base import MASKED_FROM
from .cloud import FailureReach, StoreFailure
from .vault_settings import VaultSettings

__all__ = ["failure_of_error", "failure_of_redirect", "not_vault"]

MAX_QUOTED = 200
"""Characters of the server's text in a message at most."""
MAX_SCANNED = 2000
"""Characters of the server's text that are scanned."""
_TOKEN_CHARACTERS = f"{string.ascii_letters}{string.digits}_.-"
# Tokens of Vault (hvs. hvb. hvr.) and OpenBao (s. b. r.), and JWTs. The time is linear in the text.
_TOKEN = re.compile(r"\b(?:(?:hv[sbr]|[sbr])\.|eyJ)[\w.-]{20,}", re.ASCII)


def not_vault(settings: VaultSettings) -> StoreFailure:
    """The response is not one of Vault."""
    message = f"{settings.server} does not answer as Vault does; is VAULT_ADDR right?"
    return StoreFailure(FailureReach.STORE, message)


def failure_of_redirect(settings: VaultSettings, location: str) -> StoreFailure:
    """The server redirects to another one, which is not followed."""
    other = display(mask_keys(location.partition("?")[0]))
    return StoreFailure(
        FailureReach.STORE,
        f"{settings.server} sends its clients on to {other}, which gets neither token nor login; "
        "let VAULT_ADDR name that server, if it is yours",
    )


def failure_of_error(
    error: Exception, settings: VaultSettings, secrets: tuple[str, ...]
) -> StoreFailure:
    """Return what an exception means, without the request in it.

    Args:
        error: Of hvac or requests, or one that requests raises before it connects.
        settings: For the name of the server and its timeout.
        secrets: Values to redact if the server repeats them.
    """
    from hvac import exceptions  # noqa: PLC0415 - an optional library

    if not isinstance(error, exceptions.VaultError):
        return _unreachable(error, settings)
    server, body = settings.server, error.json if isinstance(error.json, dict) else {}
    server_text = _quote_server(body, error.text or "", secrets)
    quoted = f": {server_text}" if server_text else ""
    if isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
        return StoreFailure(FailureReach.LOGIN, server_text)
    if isinstance(error, exceptions.InvalidPath):
        if "namespace" in server_text:
            return StoreFailure(
                FailureReach.STORE, f"{server}: {server_text}; is VAULT_NAMESPACE right?"
            )
        return StoreFailure(FailureReach.SECRET, _why_not_found(body, server_text))
    if isinstance(error, exceptions.InvalidRequest):
        return StoreFailure(FailureReach.SECRET, f"{server} refuses the request (400){quoted}")
    if isinstance(error, exceptions.RateLimitExceeded):
        why = "gets more requests than its rate limit quota allows; it is asked again later"
    elif isinstance(error, exceptions.VaultNotInitialized):
        why = "is not initialized; run `vault operator init` and unseal it"
    elif isinstance(error, exceptions.VaultDown) and "sealed" in server_text.lower():
        why = "is sealed; someone with the unseal keys must unseal it"
    else:
        why = f"has a fault of its own or is not ready{quoted}"
    return StoreFailure(FailureReach.STORE, f"{server} {why}")


def _unreachable(error: Exception, settings: VaultSettings) -> StoreFailure:
    """Return why there was no response, by the type of the exception alone."""
    from requests import exceptions  # noqa: PLC0415 - comes with hvac

    names = _exception_types(error)
    if isinstance(error, exceptions.ConnectTimeout | exceptions.ReadTimeout):
        why = f"did not answer within {settings.timeout_s:g} s"
    elif isinstance(error, exceptions.SSLError):
        why = (
            "and this host found no way to trust each other; name the CA of its certificate in "
            "VAULT_CACERT, and see whether VAULT_ADDR has the right host, port and https://"
        )
    elif "NameResolutionError" in names:
        why = "cannot be found: no such host name; is VAULT_ADDR right?"
    elif isinstance(error, exceptions.ConnectionError):
        why = "cannot be reached; does it run, and is VAULT_ADDR right?"
    elif isinstance(error, exceptions.RequestException):
        why = f"cannot be asked ({names[0]}); is VAULT_ADDR right?"
    else:  # requests opens the files before it connects
        why = (
            f"cannot be asked ({names[0]}); do the files exist that VAULT_CACERT, VAULT_CAPATH, "
            "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY name?"
        )
    return StoreFailure(FailureReach.STORE, f"{settings.server} {why}")


def _exception_types(error: BaseException) -> list[str]:
    """Return the types of an exception and of those that urllib3 wrapped in it."""
    names: list[str] = []
    inner: object = error
    while isinstance(inner, BaseException) and len(names) < 5:
        names.append(type(inner).__name__)
        inner = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return names


def _why_not_found(body: Mapping[str, Any], server_text: str) -> str:
    """Return what a 404 of Vault means."""
    data = body.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        gone = "destroyed" if metadata.get("destroyed") else "deleted"
        return f"its newest version, {metadata.get('version')}, was {gone}; write it again"
    if "no handler for route" in server_text:
        return "no secrets engine is mounted there"
    return "there is no such secret"


def _quote_server(body: Mapping[str, Any], text: str, secrets: tuple[str, ...]) -> str:
    """Return the server's text on one line, truncated and redacted."""
    errors = body.get("errors")
    if isinstance(errors, list):
        text = ", ".join(map(str, errors))
    for value in (value for value in secrets if len(value) >= MASKED_FROM):
        text = text.replace(value, "[redacted]")
    if len(text) > MAX_SCANNED:
        text = text[:MAX_SCANNED].rstrip(_TOKEN_CHARACTERS)  # half a token would not match
    text = " ".join(_TOKEN.sub("[redacted]", mask_keys(text)).split())
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"
