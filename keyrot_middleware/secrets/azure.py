"""Secrets in Azure Key Vault, read with azure-keyvault-secrets: docs/stores/azure.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.keyvault.secrets import SecretClient

from ..core.text import display
from ..errors import ConfigError
from .remote import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, RemoteStore, Unreadable, codes

_VARIABLE = "AZURE_KEY_VAULT_URL"
_OPTIONS: Mapping[str, Any] = {
    "connection_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "retry_total": 1,
}
_PROCESS_S = 5
"""For `az`, `azd` and PowerShell, which the default login runs."""


def open_azure(environ: Mapping[str, str]) -> AzureStore:
    """Open the store; azure-identity takes its own settings from the environment.

    Raises:
        ConfigError: `AZURE_KEY_VAULT_URL` is no https:// URL of a host.
    """
    url = urlsplit(environ.get(_VARIABLE, "").strip())
    if url.geturl() and (url.scheme != "https" or url.path.strip("/")):
        raise ConfigError(
            f"{_VARIABLE}: found {display(url.geturl())}; allowed: https://NAME.vault.azure.net."
        )
    return AzureStore(url.netloc)


class AzureStore(RemoteStore):
    """Reads keys at `azure://VAULT/SECRET[/VERSION]`, or in a secret named like their id.

    Names of secrets have letters, digits and `-` only, so `flash_01` becomes `flash-01`.
    """

    scheme = "azure"

    def __init__(
        self, host: str, credential: Callable[[], Any] | None = None, **options: Any
    ) -> None:
        """Read by default in the vault *host*; *options*: more for azure's SecretClient."""
        super().__init__(host)
        self._credential = credential or _default_credential
        self._options = {**_OPTIONS, **options}

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{self.scheme}://{self._default}/{key_id.replace('_', '-')}"

    def server_of(self, name: str) -> str:
        """Return the vault."""
        return name.partition("/")[0]

    def connect(self) -> Any:
        """Return a function that returns the client of a vault."""
        credential = self._credential()

        @cache
        def client(host: str) -> SecretClient:
            return SecretClient(f"https://{host}", credential, **self._options)

        return client

    def read(self, client: Any, name: str) -> str:
        """Return a secret; a vault without a dot or a port is one of the public cloud."""
        vault, _, path = name.partition("/")
        if not vault:
            raise Unreadable(f"{_VARIABLE} is not set")
        host = vault if {".", ":"} & set(vault) else f"{vault}.vault.azure.net"
        secret, _, version = path.partition("/")
        try:
            return client(host).get_secret(secret, version or None).value or ""
        except ClientAuthenticationError:
            raise
        except HttpResponseError as error:
            inner = getattr(error.error, "innererror", None) or {}
            code = inner.get("code") or getattr(error.error, "code", "")
            raise Unreadable(codes(type(error).__name__, error.status_code, code)) from None


def _default_credential() -> Any:
    return DefaultAzureCredential(process_timeout=_PROCESS_S, **_OPTIONS)
