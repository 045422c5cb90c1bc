"""Secrets in Azure Key Vault, read with azure-keyvault-secrets: docs/stores/azure.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from ..core.text import shown
from ..errors import ConfigError, SecretError
from .azure_failures import fault_of
from .azure_login import AzureLogin
from .base import Secret
from .environ import only_in_file
from .extra import need
from .fault import Answer, Fault, Reach
from .lookup import Spot, look_up, split_field
from .reading import Batch, read_all

__all__ = ["VAULT_VARIABLE", "AzureStore", "open_azure"]

VAULT_VARIABLE = "AZURE_KEY_VAULT_URL"

_LIBRARIES = {
    "azure.identity": "azure-identity",
    "azure.keyvault.secrets": "azure-keyvault-secrets",
}
_SCHEME = "azure://"
_SUFFIX = ".vault.azure.net"
"""Of a vault's host in the public cloud; in others the whole host is written."""
_MICROSOFTS = re.compile(
    r"^[a-z0-9-]+\.(?:vault|managedhsm)\."
    r"(?:azure\.net|azure\.cn|usgovcloudapi\.net|microsoftazure\.de)(?::443)?$",
    re.IGNORECASE,
)
"""Hosts of Key Vault in Azure's clouds."""
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
    need("azure", _LIBRARIES)
    login, host = AzureLogin(environ), _host_of(environ.get(VAULT_VARIABLE, "").strip())
    if host and only_in_file(environ, VAULT_VARIABLE) and not _MICROSOFTS.search(host):
        _refuse_ambient(login, host)
    return AzureStore(login, host)


def _refuse_ambient(login: AzureLogin, host: str) -> None:
    """Give a host that only `.env` names no login that this machine has by itself.

    Raises:
        ConfigError: Neither is it a host of Microsoft's, nor is the login in `.env` too.
    """
    if not login.in_file:
        raise ConfigError(
            f"{VAULT_VARIABLE} in .env: found {shown(host)}; allowed there: a vault of Azure, such "
            f"as https://NAME{_SUFFIX}; set it in the environment for another host"
        )


def _host_of(url: str) -> str | None:
    """Give the host of the vault's URL; None where it is not set.

    Raises:
        ConfigError: It is something else.
    """
    if not url:
        return None
    parts = urlsplit(url)
    whole = parts.path in ("", "/") and not (parts.query or parts.fragment)
    if parts.scheme != "https" or not _VAULT.fullmatch(parts.netloc) or not whole:
        raise ConfigError(
            f"{VAULT_VARIABLE}: found {shown(url)}; allowed: https://NAME{_SUFFIX}, without a path"
        )
    return parts.netloc


class AzureStore:
    """Find a key at `azure://VAULT/SECRET[/VERSION]`, or in a secret named like its id.

    Names of secrets have letters, digits and `-` only, so that `flash_01` is `flash-01`.
    """

    scheme = "azure"

    def __init__(self, login: AzureLogin, host: str | None) -> None:
        """Read with a login; *host* is of the vault for keys without a place."""
        self._login = login
        self._host = host

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up, a request each, several at once: Key Vault has no other way."""
        names = Counter(_default_name(key_id).lower() for key_id, ref in refs.items() if not ref)
        taken = {name for name, count in names.items() if count > 1}

        def spot(key_id: str, ref: str | None) -> Spot | str:
            return _spot(ref) if ref else self._default(key_id, taken)

        return look_up(refs, spot, self._read)

    def place(self, key_id: str) -> str:
        """Tell where a key is kept unless told otherwise."""
        return f"{_SCHEME}{self._host or 'VAULT'}/{_default_name(key_id)}"

    def _default(self, key_id: str, taken: set[str]) -> Spot | str:
        if self._host is None:
            return f"AZURE_KEY_VAULT_URL is not set; set it, or give the key a place, {_ALLOWED}"
        name = _default_name(key_id)
        if name.lower() in taken:
            return (
                f"another key's id leads to the secret {name} too (case does not count there, "
                'and _ becomes -); give one of them a place in its field "secret"'
            )
        return _spot(self.place(key_id))

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        """Read vault by vault, so that one that is down does not stand for another."""
        vaults: dict[str, list[Batch]] = {}
        for name in names:
            vaults.setdefault(name.partition("/")[0], []).append((name,))
        answers: dict[str, Answer] = {}
        for batches in vaults.values():
            answers.update(read_all(batches, self._ask, self._login.forget))
        return answers

    def _ask(self, batch: Batch) -> Mapping[str, Answer]:
        (name,) = batch
        vault, secret, version = name.split("/")
        try:
            value = self._login.client(vault).get_secret(secret, version or None).value
        except Exception as error:
            return {name: fault_of(error, self._login.client_id)}
        return {name: Fault(Reach.HERE, "it has no value") if value is None else value}


def _default_name(key_id: str) -> str:
    return key_id.replace("_", "-")


def _spot(place: str) -> Spot | str:
    path, field = split_field(place.removeprefix(_SCHEME))
    vault, secret, version, *more = [*path.split("/"), "", ""]
    good = _VAULT.fullmatch(vault) and _NAME.fullmatch(secret) and not any(more)
    if not good or field == "" or not (version == "" or _VERSION.fullmatch(version)):
        return f"found the place {shown(place)}; allowed: {_ALLOWED}"
    return Spot(f"{_host(vault)}/{secret}/{version}", place, field)


def _host(vault: str) -> str:
    """Give the host of a vault: a name alone is one of the public cloud."""
    return vault if re.search(r"[.:]", vault) else f"{vault}{_SUFFIX}"
