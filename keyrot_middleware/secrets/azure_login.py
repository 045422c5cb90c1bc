"""Azure's credential and a client per vault, made when they are first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from .environ import only_in_file

__all__ = ["AzureLogin"]

CONNECT_S = 2.0
READ_S = 4.0
PROCESS_S = 5
"""For `az`, `azd` and PowerShell, which DefaultAzureCredential runs to look for a login."""
_PRINCIPAL = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")

# Nothing is tried again below: secrets/reading.py does, and knows what is worth it. A
# Retry-After of minutes would be waited for otherwise.
_PATIENCE: Mapping[str, Any] = {
    "connection_timeout": CONNECT_S,
    "read_timeout": READ_S,
    "retry_total": 0,
}


class AzureLogin:
    """Who we are, and a client for each vault; safe from several threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        credential: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        """Remember the settings.

        Args:
            environ: The environment laid over `.env`.
            credential: Makes another credential than azure-identity's default chain.
            options: More of SecretClient, such as `connection_verify`.
        """
        self._environ = environ
        self._make = credential or self._default
        self._options = options
        self._lock = threading.Lock()
        self._credential: Any = None
        self._clients: dict[str, Any] = {}

    @property
    def client_id(self) -> str | None:
        """The application or managed identity of the settings, where they name one."""
        return self._environ.get("AZURE_CLIENT_ID") or None

    @property
    def in_file(self) -> bool:
        """Tell whether `.env` has the whole login."""
        return all(only_in_file(self._environ, name) for name in _PRINCIPAL)

    def client(self, host: str) -> Any:
        """Give the client of a vault.

        Raises:
            ValueError: The settings of azure-identity are wrong.
        """
        from azure.keyvault.secrets import SecretClient  # noqa: PLC0415 - open_azure has it

        with self._lock:
            self._credential = self._credential or self._make()
            if host not in self._clients:
                self._clients[host] = SecretClient(
                    f"https://{host}", self._credential, **_PATIENCE, **self._options
                )
            return self._clients[host]

    def forget(self) -> None:
        """Log in anew at the next request."""
        with self._lock:
            self._credential = None
            self._clients.clear()

    def _default(self) -> Any:
        """Make the default chain; a service principal in `.env` alone is one it cannot see."""
        from azure.identity import ClientSecretCredential, DefaultAzureCredential  # noqa: PLC0415

        tenant, client, secret = (self._environ.get(name, "") for name in _PRINCIPAL)
        if tenant and client and secret and not all(os.environ.get(n) for n in _PRINCIPAL):
            return ClientSecretCredential(tenant, client, secret, **_PATIENCE)
        return DefaultAzureCredential(process_timeout=PROCESS_S, **_PATIENCE)
