"""Application default credentials and a session that sends them, made when first needed."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .reading import AT_ONCE

__all__ = ["GcpLogin", "NoProjectError", "UnsafeFileError"]

CONNECT_S = 2.0
READ_S = 4.0
ALL_S = 8.0
"""For a request together with the login that it may need."""
_FILE_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_SELF_CONTAINED = ("service_account", "authorized_user")
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class NoProjectError(Exception):
    """Say that neither the settings nor the login name a project."""


class UnsafeFileError(Exception):
    """Say that `.env` names a credentials file which only the environment may name."""


class GcpLogin:
    """Who we are, and how to ask; safe from several threads."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Remember the settings: the environment laid over `.env`."""
        self._environ = environ
        self._lock = threading.Lock()
        self._session: Any = None
        self._of_login: str | None = None

    @property
    def project(self) -> str | None:
        """The project of the settings."""
        return self._environ.get("GOOGLE_CLOUD_PROJECT") or None

    @property
    def identity(self) -> str:
        """The service account's address, where it is known."""
        credentials = getattr(self._session, "credentials", None)
        for name in ("service_account_email", "signer_email", "account"):
            found = getattr(credentials, name, None)
            # "default" stands for the machine's account until the first token is there.
            if isinstance(found, str) and "@" in found:
                return found
        return "this login"

    def find_project(self) -> str:
        """Name the project of the settings, else that of the login.

        Raises:
            NoProjectError: There is none.
            google.auth.exceptions.GoogleAuthError: Nobody is logged in.
        """
        self._open()
        project = self.project or self._of_login
        if project is None:
            raise NoProjectError
        return project

    def get(self, url: str) -> Any:
        """Ask, with a token, and return the answer whatever its status.

        Raises:
            google.auth.exceptions.GoogleAuthError: The login failed.
            requests.RequestException: Nobody answered.
        """
        return self._open().get(
            url, timeout=(CONNECT_S, READ_S), max_allowed_time=ALL_S, allow_redirects=False
        )

    def forget(self) -> None:
        """Log in anew at the next request."""
        with self._lock:
            self._session = None

    def _open(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session, self._of_login = self._log_in()
            return self._session

    def _log_in(self) -> tuple[Any, str | None]:
        import requests  # noqa: PLC0415 - open_gcp has found them to be there
        from google.auth.transport.requests import AuthorizedSession, Request  # noqa: PLC0415

        credentials, project = self._credentials()
        session = AuthorizedSession(  # type: ignore[no-untyped-call]
            credentials,
            # Nothing is tried again below: secrets/reading.py does, and logs in again. The
            # usual session for tokens would try three times.
            max_refresh_attempts=0,
            auth_request=Request(requests.Session()),
        )
        for scheme in ("https://", "http://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=AT_ONCE))
        return session, project

    def _credentials(self) -> tuple[Any, str | None]:
        """Find the default credentials; a file that only `.env` names is one they cannot see."""
        from google.auth import default, load_credentials_from_dict  # noqa: PLC0415

        file = self._environ.get(_FILE_VARIABLE)
        if not file or os.environ.get(_FILE_VARIABLE):
            return default(scopes=[_SCOPE])
        with warnings.catch_warnings():
            # It warns of files that strangers hand in; these types send nothing but themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = load_credentials_from_dict
            credentials, project = load(_self_contained(file), scopes=[_SCOPE])
            return credentials, project


def _self_contained(file: str) -> dict[str, Any]:
    """Read a credentials file that `.env` names.

    The other types run programs, read other files, or send a login that this machine has by itself
    to an address that stands in the file.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: There is no such file, or it is no JSON.
        UnsafeFileError: It is of another type.
    """
    from google.auth import exceptions  # noqa: PLC0415

    try:
        found = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        unreadable: Any = exceptions.DefaultCredentialsError
        raise unreadable("it cannot be read")
    if found.get("type") not in _SELF_CONTAINED:
        raise UnsafeFileError
    return found
