"""What a failed request to Vault means, in messages without a secret in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.text import display, mask_keys
from .base import MASKED_FROM
from .cloud import FailureReach
from .vault_settings import VaultSettings

__all__ = [
    "DeniedError",
    "OutageError",
    "RequestFailedError",
    "UnreadableError",
    "explain",
    "explain_reply",
]

MAX_QUOTED = 200
"""Characters of the server's text in a message at most."""
# Tokens of Vault (hvs. hvb. hvr.) and OpenBao (s. b. r.), and JWTs. The time is linear in the text.
_TOKEN = re.compile(r"\b(?:(?:hv[sbr]|[sbr])\.|eyJ)[\w.-]{20,}", re.ASCII)


class RequestFailedError(Exception):
    """A request failed; the message says why and holds no secret."""

    reach: FailureReach


class UnreadableError(RequestFailedError):
    """The request failed, and others may not."""

    reach = FailureReach.SECRET


class DeniedError(UnreadableError):
    """The server denied the request: the token is no longer valid, or a policy is missing."""

    reach = FailureReach.LOGIN


class OutageError(RequestFailedError):
    """Every request fails: the server is down, sealed or over its quota, or is no Vault."""

    reach = FailureReach.STORE


# Classes of hvac.exceptions, one for each HTTP status, and of requests.
_CLASSES: Mapping[str, tuple[type[RequestFailedError], str]] = {
    "Forbidden": (DeniedError, "{text}"),
    "Unauthorized": (DeniedError, "{text}"),
    "InvalidPath": (UnreadableError, "there is no such secret"),
    "InvalidRequest": (UnreadableError, "{server} refuses the request (400){quoted}"),
    "RateLimitExceeded": (
        OutageError,
        "{server} gets more requests than its rate limit quota allows; it is asked again later",
    ),
    "VaultNotInitialized": (
        OutageError,
        "{server} is not initialized; run `vault operator init` and unseal it",
    ),
    "VaultError": (OutageError, "{server} has a fault of its own or is not ready{quoted}"),
    "ConnectTimeout": (OutageError, "{server} did not answer within {timeout_s:g} s"),
    "ReadTimeout": (OutageError, "{server} did not answer within {timeout_s:g} s"),
    "SSLError": (
        OutageError,
        "{server} and this host found no way to trust each other; name the CA of its certificate "
        "in VAULT_CACERT, and see whether VAULT_ADDR has the right host, port and https://",
    ),
    "ConnectionError": (
        OutageError,
        "{server} cannot be reached; does it run, and is VAULT_ADDR right?",
    ),
    "RequestException": (OutageError, "{server} cannot be asked ({type}); is VAULT_ADDR right?"),
    # requests opens the files before it connects.
    "Exception": (
        OutageError,
        "{server} cannot be asked ({type}); do the files exist that VAULT_CACERT, VAULT_CAPATH, "
        "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY name?",
    ),
}
_SEALED = "{server} is sealed; someone with the unseal keys must unseal it"
_NO_NAMESPACE = "{server}: {text}; is VAULT_NAMESPACE right?"
_NO_HOST = "{server} cannot be found: no such host name; is VAULT_ADDR right?"
_NO_VAULT = "{server} does not answer as Vault does; is VAULT_ADDR right?"
_REDIRECT = (
    "{server} sends its clients on to {other}, which gets neither token nor login; let VAULT_ADDR "
    "name that server, if it is yours"
)


def explain(
    error: Exception, settings: VaultSettings, secrets: tuple[str, ...]
) -> RequestFailedError:
    """Return what an exception of hvac or requests means, without a reference to it.

    It holds the request, with the token in its headers and the login in its body.

    Args:
        error: The exception.
        settings: For the name of the server and its timeout.
        secrets: Values to redact if the server repeats them.
    """
    names = [kind.__name__ for kind in type(error).__mro__]
    kind, message = next(_CLASSES[name] for name in names if name in _CLASSES)
    text = _quote(error, secrets) if "VaultError" in names else ""
    if "VaultDown" in names and "sealed" in text.lower():
        message = _SEALED
    elif "InvalidPath" in names and "namespace" in text:
        kind, message = OutageError, _NO_NAMESPACE
    elif "InvalidPath" in names:
        message = _why_not_found(error, text) or message
    elif "ConnectionError" in names and "NameResolutionError" in str(error):
        message = _NO_HOST
    return kind(
        message.format(
            server=settings.server,
            text=text,
            quoted=f": {text}" if text else "",
            timeout_s=settings.timeout_s,
            type=names[0],
        )
    )


def explain_reply(reply: Any, settings: VaultSettings) -> RequestFailedError:
    """Return what a response means that is no error and no JSON object."""
    if not getattr(reply, "is_redirect", False):
        return OutageError(_NO_VAULT.format(server=settings.server))
    other = display(mask_keys(reply.headers["Location"].partition("?")[0]))
    return OutageError(_REDIRECT.format(server=settings.server, other=other))


def _why_not_found(error: Any, text: str) -> str | None:
    """Return what a 404 means beside a secret that does not exist."""
    data = error.json.get("data") if isinstance(error.json, dict) else None
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        gone = "destroyed" if metadata.get("destroyed") else "deleted"
        return f"its newest version, {metadata.get('version')}, was {gone}; write it again"
    return "no secrets engine is mounted there" if "no handler for route" in text else None


def _quote(error: Any, secrets: tuple[str, ...]) -> str:
    """Return the server's text on one line, redacted and truncated."""
    text = ", ".join(error.errors) if isinstance(error.errors, list) else error.text or ""
    for value in secrets:
        if len(value) >= MASKED_FROM:
            text = text.replace(value, "[redacted]")
    text = " ".join(_TOKEN.sub("[redacted]", mask_keys(text)).split())
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"
