"""Secrets in Google Secret Manager, read over REST with google-auth: docs/stores/google.md."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import google.auth
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from ..core.text import display
from ..errors import ConfigError
from .remote import (
    CONNECT_TIMEOUT_S,
    MAX_CONCURRENCY,
    READ_TIMEOUT_S,
    RemoteStore,
    Unreadable,
    codes,
)

_ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"
"""gcloud's own variable for another endpoint, such as a private one."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_default_login: Callable[[], tuple[Any, str | None]] = partial(
    google.auth.default, scopes=["https://www.googleapis.com/auth/cloud-platform"]
)


def open_gcp(environ: Mapping[str, str]) -> GcpStore:
    """Open the store; google-auth takes its own settings from the environment.

    Raises:
        ConfigError: The endpoint is no https:// URL.
    """
    endpoint = environ.get(_ENDPOINT, "").strip() or "https://secretmanager.googleapis.com"
    url = urlsplit(endpoint)
    if url.scheme != "https" and url.hostname not in _LOOPBACK:
        raise ConfigError(f"{_ENDPOINT}: found {display(endpoint)}; allowed: https://HOST/.")
    secret = environ.get("KEYROT_GCP_SECRET") or "keyrot"
    return GcpStore(endpoint, f"{environ.get('GOOGLE_CLOUD_PROJECT', '')}/{secret}")


class GcpStore(RemoteStore):
    """Reads keys at `gcp://PROJECT/SECRET[/VERSION][#FIELD]`, or by their id in one JSON secret."""

    scheme = "gcp"

    def __init__(
        self,
        endpoint: str,
        default: str,
        login: Callable[[], tuple[Any, str | None]] = _default_login,
    ) -> None:
        """Read at *endpoint*; *login* returns credentials and their project."""
        super().__init__(default)
        self._endpoint, self._login = endpoint.rstrip("/"), login

    def connect(self) -> Any:
        """Return a session that sends tokens, and the project of the login."""
        credentials, project = self._login()
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        retry = Retry(2, status_forcelist=(429, 500, 502, 503, 504), backoff_factor=0.5)
        retry.raise_on_status, retry.respect_retry_after_header = False, False
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONCURRENCY, max_retries=retry))
        return session, project

    def read(self, client: Any, name: str) -> bytes:
        """Return the bytes of a version; without a project, of the login's."""
        session, own = client
        project, secret, version, *_ = [*name.split("/"), "", ""]
        if not (project or own):
            raise Unreadable("GOOGLE_CLOUD_PROJECT is not set, and the login names no project")
        path = f"projects/{project or own}/secrets/{secret}/versions/{version or 'latest'}:access"
        reply = session.get(
            f"{self._endpoint}/v1/{path}",
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            allow_redirects=False,
        )
        if reply.status_code != 200:
            raise Unreadable(codes(reply.status_code, _status(reply)))
        return base64.b64decode(reply.json()["payload"]["data"])


def _status(reply: Any) -> object:
    try:
        return reply.json()["error"]["status"]
    except (ValueError, KeyError, TypeError):
        return ""
