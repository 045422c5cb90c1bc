"""Secrets in Azure Key Vault, read with azure-keyvault-secrets: docs/stores/azure.md."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..core.text import display
from ..errors import ConfigError, SecretError
from .base import Secret
from .cloud import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Answer,
    FailureReach,
    SecretRef,
    StoreFailure,
    extract_key,
    find_by_class,
    read_each,
    require_extra,
    resolve_refs,
    split_field,
)

__all__ = ["VAULT_VARIABLE", "AzureLogin", "AzureStore", "failure_from_error", "open_azure"]

# What a failure of Key Vault or azure-identity means ---------------------------------------------
#
# Codes: Key Vault's REST API error codes, and Entra's AADSTS codes. Of the messages only those
# codes and the caller's application id are quoted.


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
_STATUS: Mapping[int, tuple[FailureReach, str]] = {
    400: (FailureReach.SECRET, "Key Vault does not take this name or version ({})"),
    401: (FailureReach.LOGIN, "Key Vault takes the login no longer ({}): log in again (az login)"),
    404: (FailureReach.SECRET, "there is no such secret, or no such version, in this vault"),
    409: (FailureReach.SECRET, "it is being deleted or restored ({})"),
    429: (FailureReach.REQUEST, "Key Vault is busy ({}); it is asked again at the next refresh"),
}
_FAILED = FailureReach.REQUEST, "Key Vault failed ({}); it is asked again at the next refresh"
_OTHER = FailureReach.SECRET, "Key Vault refused ({})"
_UNREACHABLE = "the vault cannot be reached ({}): see the network, and the vault's name"
_UNTRUSTED = (
    "the vault's certificate is not trusted: set REQUESTS_CA_BUNDLE to the authority's file"
)
_LOGIN = (
    "the login at Azure failed ({}) for {who}: see AZURE_TENANT_ID, AZURE_CLIENT_ID and "
    "AZURE_CLIENT_SECRET, the managed identity, or az login"
)
_CLASSES: Mapping[str, tuple[FailureReach, str]] = {
    "CredentialUnavailableError": (FailureReach.STORE, _LOGIN),
    "ClientAuthenticationError": (FailureReach.STORE, _LOGIN),
    "ServiceRequestError": (FailureReach.STORE, _UNREACHABLE),
    "ServiceResponseTimeoutError": (FailureReach.STORE, _UNREACHABLE),
    # A kept connection that the server has closed meanwhile.
    "ServiceResponseError": (FailureReach.REQUEST, _UNREACHABLE),
    "ValueError": (
        FailureReach.STORE,
        "this is no Key Vault to log in at, or a setting of azure-identity is wrong: the host of "
        "the vault and the one it asks a login for do not belong together",
    ),
}


def failure_from_error(error: Exception, client_id: str | None) -> StoreFailure:
    """Return what an exception of azure means.

    Args:
        error: What SecretClient raised.
        client_id: The caller, if the response does not name it.
    """
    response = getattr(error, "response", None)
    if response is not None and _is_from_vault(response):
        return _failure_from_response(error, int(response.status_code), client_id)
    if type(getattr(error, "inner_exception", None)).__name__ == "SSLError":
        return StoreFailure(FailureReach.STORE, _UNTRUSTED)
    reach, message = find_by_class(error, _CLASSES)
    entra = _ENTRA.search(str(error))
    return StoreFailure(
        reach,
        message.format(entra[0] if entra else type(error).__name__, who=_caller("", client_id)),
    )


def _is_from_vault(response: Any) -> bool:
    """Return whether a response is the vault's, not the token endpoint's."""
    return "/secrets/" in str(getattr(getattr(response, "request", None), "url", ""))


def _failure_from_response(error: Exception, status: int, client_id: str | None) -> StoreFailure:
    code = _code(error)
    if status == 403:
        message = _DENIED.get(code, f"access denied ({{}}) to {{who}}: {_GRANT}")
        return StoreFailure(
            FailureReach.SECRET, message.format(code, who=_caller(str(error), client_id))
        )
    reach, message = _STATUS.get(status, _FAILED if status >= 500 else _OTHER)
    return StoreFailure(reach, message.format(code or status))


def _code(error: Exception) -> str:
    """Return the innermost error code of a response."""
    found: Any = getattr(error, "error", None)
    codes = [str(getattr(found, "code", "") or "")]
    inner = getattr(found, "innererror", None)
    while isinstance(inner, dict):
        codes.append(str(inner.get("code", "")))
        inner = inner.get("innererror")
    valid = [code for code in codes if _WORD.fullmatch(code)]
    return valid[-1] if valid else ""


def _caller(message: str, client_id: str | None) -> str:
    """Name the caller: as Key Vault does, else as the settings do."""
    named = dict(_CALLER.findall(message))
    if "appid" in named or client_id:
        return f"the client {named.get('appid') or client_id}"
    return f"the object {named['oid']}" if "oid" in named else "this login"


# Azure's credential and a client per vault, made at the first read -------------------------------


PROCESS_S = 5
"""For `az`, `azd` and PowerShell, which DefaultAzureCredential runs to find a login."""

# cloud.read_batches retries; the SDK would wait for a Retry-After of minutes.
_TIMEOUTS: Mapping[str, Any] = {
    "connection_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "retry_total": 0,
}


class AzureLogin:
    """The credential, and a client per vault; safe from several threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        credential: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        """Do not connect yet.

        Args:
            environ: The environment over `.env`.
            credential: Makes the credential; None: azure-identity's default chain.
            options: More of SecretClient, such as `connection_verify`.
        """
        self._environ = environ
        self._new_credential = credential or self._default
        self._options = options
        self._lock = threading.Lock()
        self._credential: Any = None
        self._clients: dict[str, Any] = {}

    @property
    def client_id(self) -> str | None:
        """The application or managed identity that the settings name."""
        return self._environ.get("AZURE_CLIENT_ID") or None

    def client(self, host: str) -> Any:
        """Return the client of a vault.

        Raises:
            ValueError: The settings of azure-identity are wrong.
        """
        from azure.keyvault.secrets import SecretClient  # noqa: PLC0415 - open_azure has imported it

        with self._lock:
            self._credential = self._credential or self._new_credential()
            if host not in self._clients:
                self._clients[host] = SecretClient(
                    f"https://{host}", self._credential, **_TIMEOUTS, **self._options
                )
            return self._clients[host]

    def forget(self) -> None:
        """Log in again at the next request."""
        with self._lock:
            self._credential = None
            self._clients.clear()

    def _default(self) -> Any:
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415

        return DefaultAzureCredential(process_timeout=PROCESS_S, **_TIMEOUTS)


VAULT_VARIABLE = "AZURE_KEY_VAULT_URL"

_LIBRARIES = {
    "azure.identity": "azure-identity",
    "azure.keyvault.secrets": "azure-keyvault-secrets",
}
_SCHEME = "azure://"
_SUFFIX = ".vault.azure.net"
"""Of hosts in the public cloud; places in other clouds name the whole host."""
_VAULT = re.compile(r"[A-Za-z0-9-]{1,127}|[A-Za-z0-9.-]{1,253}(?::\d{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9-]{1,127}")
_VERSION = re.compile(r"[A-Za-z0-9]{1,64}")
_ALLOWED = "azure://VAULT/SECRET, azure://VAULT/SECRET/VERSION, each with #FIELD where it is JSON"


def open_azure(environ: Mapping[str, str]) -> AzureStore:
    """Open the store; nothing is read or connected yet.

    Args:
        environ: Settings: `AZURE_KEY_VAULT_URL`, and those of azure-identity.

    Raises:
        ConfigError: `AZURE_KEY_VAULT_URL` is no https:// URL of a host.
        MissingExtraError: azure-identity or azure-keyvault-secrets is not installed.
    """
    require_extra("azure", _LIBRARIES)
    login, host = AzureLogin(environ), _host_from_url(environ.get(VAULT_VARIABLE, "").strip())
    return AzureStore(login, host)


def _host_from_url(url: str) -> str | None:
    """Return the host of the vault's URL; None: it is not set.

    Raises:
        ConfigError: It is not a URL of a host.
    """
    if not url:
        return None
    parts = urlsplit(url)
    whole = parts.path in ("", "/") and not (parts.query or parts.fragment)
    if parts.scheme != "https" or not _VAULT.fullmatch(parts.netloc) or not whole:
        raise ConfigError(
            f"{VAULT_VARIABLE}: found {display(url)}; allowed: https://NAME{_SUFFIX}, without a "
            "path"
        )
    return parts.netloc


class AzureStore:
    """Reads keys at `azure://VAULT/SECRET[/VERSION]`, or in a secret named like their id.

    Names of secrets have letters, digits and `-` only, so `flash_01` becomes `flash-01`.
    """

    scheme = "azure"

    def __init__(self, login: AzureLogin, host: str | None) -> None:
        """Read with a login; *host* is that of the vault for keys without a place."""
        self._login = login
        self._host = host

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up with one request each, several at once: Key Vault has no batches."""
        names = Counter(_default_name(key_id).lower() for key_id, ref in refs.items() if not ref)
        taken = {name for name, count in names.items() if count > 1}

        def parse_ref(key_id: str, ref: str | None) -> SecretRef | str:
            return _parse_ref(ref) if ref else self._default(key_id, taken)

        return resolve_refs(refs, parse_ref, self._read, extract_key)

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_SCHEME}{self._host or 'VAULT'}/{_default_name(key_id)}"

    def _default(self, key_id: str, taken: set[str]) -> SecretRef | str:
        if self._host is None:
            return f"AZURE_KEY_VAULT_URL is not set; set it, or give the key a place, {_ALLOWED}"
        name = _default_name(key_id)
        if name.lower() in taken:
            return (
                f"another key's id leads to the secret {name} too (case does not count there, "
                'and _ becomes -); give one of them a place in its field "secret"'
            )
        return _parse_ref(self.place(key_id))

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        """Read vault by vault, so that one that is down does not affect another."""
        vaults: dict[str, list[str]] = {}
        for name in names:
            vaults.setdefault(name.partition("/")[0], []).append(name)
        answers: dict[str, Answer] = {}
        for mine in vaults.values():
            answers.update(read_each(mine, self._read_one, self._login.forget))
        return answers

    def _read_one(self, name: str) -> Answer:
        vault, secret, version = name.split("/")
        try:
            value = self._login.client(vault).get_secret(secret, version or None).value
        except Exception as error:
            return failure_from_error(error, self._login.client_id)
        return StoreFailure(FailureReach.SECRET, "it has no value") if value is None else value


def _default_name(key_id: str) -> str:
    return key_id.replace("_", "-")


def _parse_ref(place: str) -> SecretRef | str:
    path, field = split_field(place.removeprefix(_SCHEME))
    vault, secret, version, *more = [*path.split("/"), "", ""]
    valid = _VAULT.fullmatch(vault) and _NAME.fullmatch(secret) and not any(more)
    if not valid or field == "" or not (version == "" or _VERSION.fullmatch(version)):
        return f"found the place {display(place)}; allowed: {_ALLOWED}"
    return SecretRef(f"{_host(vault)}/{secret}/{version}", place, field)


def _host(vault: str) -> str:
    """Return the host of a vault; a bare name is one in the public cloud."""
    return vault if re.search(r"[.:]", vault) else f"{vault}{_SUFFIX}"
