"""What a failure of Key Vault or azure-identity means, in words for people.

Codes: Key Vault's REST API error codes, and Entra's AADSTS codes. Of the messages only those
codes and the caller's application id are passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .fault import Fault, Reach

__all__ = ["fault_of"]

_CALLER = re.compile(r"\b(appid|oid)=([0-9a-fA-F-]{36})")
_ENTRA = re.compile(r"\bAADSTS\d{4,9}\b")
_WORD = re.compile(r"\w{1,60}", re.ASCII)

_GRANT = "give it the role Key Vault Secrets User on the vault (or the access policy Get)"
_DENIED: Mapping[str, str] = {
    "ForbiddenByFirewall": "the vault's firewall does not let this host in ({})",
    "ForbiddenByConnection": "the vault takes private connections only ({})",
    "SecretDisabled": "it is disabled: enable it, or write a new version",
    "SecretNotYetValid": "its activation date is not reached yet",
    "SecretExpired": "it has expired: write a new version",
}
_STATUS: Mapping[int, tuple[Reach, str]] = {
    400: (Reach.HERE, "Key Vault does not take this name or version ({})"),
    401: (Reach.LOGIN, "Key Vault takes the login no longer ({}): log in again (az login)"),
    404: (Reach.HERE, "there is no such secret, or no such version, in this vault"),
    409: (Reach.HERE, "it is being deleted or restored ({})"),
    429: (Reach.BUSY, "Key Vault is busy ({}); it is asked again at the next refresh"),
}
_FAILED = Reach.BUSY, "Key Vault failed ({}); it is asked again at the next refresh"
_OTHER = Reach.HERE, "Key Vault refused ({})"
_UNREACHED = "the vault cannot be reached ({}): see the network, and the vault's name"
_UNTRUSTED = (
    "the vault's certificate is not trusted: set REQUESTS_CA_BUNDLE to the authority's file"
)
_LOGIN = (
    "the login at Azure failed ({}) for {who}: see AZURE_TENANT_ID, AZURE_CLIENT_ID and "
    "AZURE_CLIENT_SECRET, the managed identity, or az login"
)
_CLASSES: Mapping[str, tuple[Reach, str]] = {
    "CredentialUnavailableError": (Reach.STORE, _LOGIN),
    "ClientAuthenticationError": (Reach.STORE, _LOGIN),
    "ServiceRequestError": (Reach.STORE, _UNREACHED),
    "ServiceResponseTimeoutError": (Reach.STORE, _UNREACHED),
    # A kept connection that the server has closed meanwhile.
    "ServiceResponseError": (Reach.BUSY, _UNREACHED),
    "ValueError": (
        Reach.STORE,
        "this is no Key Vault to log in at, or a setting of azure-identity is wrong: the host of "
        "the vault and the one it asks a login for do not belong together",
    ),
}


def fault_of(error: Exception, client_id: str | None) -> Fault:
    """Say what an exception of azure means.

    Args:
        error: What SecretClient raised.
        client_id: Whom to name where the answer does not.
    """
    response = getattr(error, "response", None)
    if response is not None and _is_of_vault(response):
        return _fault_of_answer(error, int(response.status_code), client_id)
    names = [kind.__name__ for kind in type(error).__mro__]
    if type(getattr(error, "inner_exception", None)).__name__ == "SSLError":
        return Fault(Reach.STORE, _UNTRUSTED)
    known = next((_CLASSES[name] for name in names if name in _CLASSES), None)
    reach, words = known or (Reach.HERE, "reading it failed with {}")
    entra = _ENTRA.search(str(error))
    return Fault(reach, words.format(entra[0] if entra else names[0], who=_who("", client_id)))


def _is_of_vault(response: Any) -> bool:
    """Tell the vault's answer from that of the token endpoint."""
    return "/secrets/" in str(getattr(getattr(response, "request", None), "url", ""))


def _fault_of_answer(error: Exception, status: int, client_id: str | None) -> Fault:
    code = _code(error)
    if status == 403:
        words = _DENIED.get(code, f"access denied ({{}}) to {{who}}: {_GRANT}")
        return Fault(Reach.HERE, words.format(code, who=_who(str(error), client_id)))
    reach, words = _STATUS.get(status, _FAILED if status >= 500 else _OTHER)
    return Fault(reach, words.format(code or status))


def _code(error: Exception) -> str:
    """Give the innermost error code that an answer names."""
    found: Any = getattr(error, "error", None)
    codes = [str(getattr(found, "code", "") or "")]
    inner = getattr(found, "innererror", None)
    while isinstance(inner, dict):
        codes.append(str(inner.get("code", "")))
        inner = inner.get("innererror")
    good = [code for code in codes if _WORD.fullmatch(code)]
    return good[-1] if good else ""


def _who(message: str, client_id: str | None) -> str:
    """Name the caller: as Key Vault does, else as the settings do."""
    named = dict(_CALLER.findall(message))
    if "appid" in named or client_id:
        return f"the client {named.get('appid') or client_id}"
    return f"the object {named['oid']}" if "oid" in named else "this login"
