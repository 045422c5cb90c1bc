"""boto3's clients, made when they are first needed: that is when credentials are looked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

__all__ = ["AwsLogin"]

CONNECT_S = 2.0
READ_S = 4.0

# Settings that botocore takes from os.environ alone; this store takes them from its own settings.
_VARIABLES = {
    "profile": ("AWS_DEFAULT_PROFILE", "AWS_PROFILE"),
    "config_file": ("AWS_CONFIG_FILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
    "ca_bundle": ("AWS_CA_BUNDLE",),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class AwsLogin:
    """The standard credential chain, and a client per region; safe from several threads."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Remember the settings; what `.env` may say of them is in schemes.py."""
        self._environ = environ
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str | None, Any] = {}

    def client(self, region: str | None = None) -> Any:
        """Give the Secrets Manager client of a region; None: the region of the settings.

        Raises:
            botocore.exceptions.BotoCoreError: No region is set, a profile does not exist.
        """
        with self._lock:
            if region not in self._clients:
                self._session = self._session or self._log_in()
                self._clients[region] = self._connect(region)
            return self._clients[region]

    def forget(self) -> None:
        """Read the credentials anew at the next request."""
        with self._lock:
            self._session = None
            self._clients.clear()

    def _log_in(self) -> Any:
        import botocore.session  # noqa: PLC0415 - open_aws has found it to be there
        from botocore.credentials import EnvProvider  # noqa: PLC0415

        session = botocore.session.Session()
        for name, variables in _VARIABLES.items():
            value = _first(self._environ, variables)
            if value and not _first(os.environ, variables):
                session.set_config_variable(name, value)
        chain = session.get_component("credential_provider")
        chain.providers.insert(0, EnvProvider(self._environ))
        return session

    def _connect(self, region: str | None) -> Any:
        from botocore.config import Config  # noqa: PLC0415

        return self._session.create_client(
            "secretsmanager",
            region_name=region or _first(self._environ, _REGIONS) or None,
            endpoint_url=_first(self._environ, _ENDPOINTS) or None,
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                # secrets/reading.py tries again, and knows what is worth it.
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")
