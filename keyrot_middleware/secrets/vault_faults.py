"""What went wrong between us and Vault, in words for people and without a secret in them."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..core.text import mask_keys, shown
from .base import MASKED_FROM

__all__ = ["Fault", "Kind", "not_vault", "refused", "sent_on", "unreachable"]

_LONGEST = 200
_READ = 2000
"""Characters of an answer that are looked at: what is shown is a tenth of it."""
_OF_A_TOKEN = f"{string.ascii_letters}{string.digits}_.-"
# Tokens of Vault (hvs. hvb. hvr.) and OpenBao (s. b. r.), and what begins as JWTs do. A match goes
# to the end of the run, and what does not match is left after 20 characters: no text takes long.
_TOKEN = re.compile(r"\b(?:(?:hv[sbr]|[sbr])\.|eyJ)[\w.-]{20,}", re.ASCII)


class Kind(Enum):
    """What a fault means for what comes next."""

    DENIED = "denied"
    """The token may not do this, or is none any more: another login may help."""
    MISSING = "missing"
    REFUSED = "refused"
    """The request makes no sense to the server."""
    DOWN = "down"
    """Nothing can be had from this server now: asking for more is no use."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A request that failed, and why."""

    kind: Kind
    text: str


def not_vault(server: str) -> Fault:
    """Tell that something answered that is not Vault."""
    return Fault(Kind.DOWN, f"{server} does not answer as Vault does; is VAULT_ADDR right?")


def sent_on(server: str, location: str) -> Fault:
    """Tell that the server answers with a redirect to another one, which gets nothing."""
    other = shown(mask_keys(location.partition("?")[0]))
    return Fault(
        Kind.DOWN,
        f"{server} sends its clients on to {other}, which gets neither token nor login; let "
        "VAULT_ADDR name that server, if it is yours",
    )


def unreachable(error: Exception, server: str, patience_s: float) -> Fault:
    """Say why there was no answer, by the type of the exception alone."""
    from requests import exceptions  # noqa: PLC0415 - comes with hvac

    names = _types(error)
    if isinstance(error, exceptions.ConnectTimeout | exceptions.ReadTimeout):
        why = f"did not answer within {patience_s:g} s"
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
    else:  # requests looks for the files before it connects
        why = (
            f"cannot be asked ({names[0]}); do the files exist that VAULT_CACERT, VAULT_CAPATH, "
            "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY name?"
        )
    return Fault(Kind.DOWN, f"{server} {why}")


def _types(error: BaseException) -> list[str]:
    """Name the type of an exception and of those that urllib3 has packed into it."""
    names: list[str] = []
    inner: object = error
    while isinstance(inner, BaseException) and len(names) < 5:
        names.append(type(inner).__name__)
        inner = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return names


def refused(reply: Any, server: str, masked: tuple[str, ...]) -> Fault:
    """Read an answer that is none of success.

    Args:
        reply: Of requests, with a status of 400 and up.
        server: In words.
        masked: Values that must not be shown, should the server repeat them.
    """
    body = _body(reply)
    words = _words(body, reply, masked)
    match reply.status_code:
        case 401 | 403:
            return Fault(Kind.DENIED, words)
        case 404 if "namespace" in words:
            return Fault(Kind.DOWN, f"{server}: {words}; is VAULT_NAMESPACE right?")
        case 404:
            return Fault(Kind.MISSING, _missing(body, words))
        case 429:
            why = "gets more requests than its rate limit quota allows; it is asked again later"
        case 501:
            why = "is not initialized; run `vault operator init` and unseal it"
        case 503 if "sealed" in words.lower():
            why = "is sealed; someone with the unseal keys must unseal it"
        case 472 | 473:
            why = "is a standby that answers no reads; let VAULT_ADDR name the active cluster"
        case status if status >= 500:
            why = f"has a fault of its own or is not ready{_said(words)}"
        case status:
            return Fault(Kind.REFUSED, f"{server} refuses the request ({status}){_said(words)}")
    return Fault(Kind.DOWN, f"{server} {why}")


def _said(words: str) -> str:
    return f": {words}" if words else ""


def _missing(body: dict[str, Any], words: str) -> str:
    """Tell apart what Vault all answers with 404."""
    data = body.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        gone = "destroyed" if metadata.get("destroyed") else "deleted"
        return f"its newest version, {metadata.get('version')}, was {gone}; write it again"
    if "no handler for route" in words:
        return "no secrets engine is mounted there"
    return "there is no such secret"


def _body(reply: Any) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _words(body: dict[str, Any], reply: Any, masked: tuple[str, ...]) -> str:
    """Give what the server says, on one line, cut, and without anything that is a secret."""
    errors = body.get("errors")
    # Not reply.text: it tries every encoding there is on a body that names none.
    text = (
        ", ".join(map(str, errors))
        if isinstance(errors, list)
        else reply.content.decode("utf-8", "replace")
    )
    for value in (value for value in masked if len(value) >= MASKED_FROM):
        text = text.replace(value, "[redacted]")
    if len(text) > _READ:
        text = text[:_READ].rstrip(_OF_A_TOKEN)  # half a token has not its shape
    text = " ".join(_TOKEN.sub("[redacted]", mask_keys(text)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
