"""Secrets in Google Secret Manager, read over REST with google-auth: docs/stores/google.md."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.text import display
from ..errors import ConfigError, SecretError
from .base import Secret
from .cloud import (
    CONNECT_TIMEOUT_S,
    MAX_CONCURRENCY,
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

__all__ = [
    "DEFAULT_SECRET",
    "ENDPOINT_VARIABLE",
    "SECRET_VARIABLE",
    "GcpLogin",
    "GcpStore",
    "open_gcp",
]

# What a failure of Secret Manager or google-auth means -------------------------------------------
#
# Codes: google.rpc.Code and the reasons of google.rpc.ErrorInfo. Messages are not quoted.


_WORD = re.compile(r"\w{1,60}", re.ASCII)

_REASONS: Mapping[str, str] = {
    "SERVICE_DISABLED": (
        "the Secret Manager API is not enabled in the project: gcloud services enable "
        "secretmanager.googleapis.com"
    ),
    "BILLING_DISABLED": "the project has no billing account, which Secret Manager needs",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": (
        "the login of {who} has not the scope cloud-platform: give the machine that scope"
    ),
}
_STATUS: Mapping[int, tuple[FailureReach, str]] = {
    400: (
        FailureReach.SECRET,
        "it cannot be read ({code}): is its version disabled or destroyed? add a new version",
    ),
    401: (
        FailureReach.LOGIN,
        "the login of {who} is no longer taken ({code}): gcloud auth application-default login, "
        "or a new credentials file",
    ),
    403: (
        FailureReach.SECRET,
        "access denied to {who}, or there is no such secret: give it the role "
        "roles/secretmanager.secretAccessor on the secret",
    ),
    404: (FailureReach.SECRET, "there is no such secret in this project, or it has no version"),
    429: (
        FailureReach.REQUEST,
        "Secret Manager is busy ({code}); it is asked again at the next refresh",
    ),
}
_FAILED = (
    FailureReach.REQUEST,
    "Secret Manager failed ({code}); it is asked again at the next refresh",
)
_OTHER = FailureReach.SECRET, "Secret Manager refused ({code})"

_UNREACHABLE = (
    "Secret Manager cannot be reached ({}): see the network, and "
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER if it is set"
)
_NO_LOGIN = (
    "no Google login was found: set GOOGLE_APPLICATION_CREDENTIALS to a file that is there, or "
    "gcloud auth application-default login, or give this machine a service account"
)
_LOGIN = (
    "the login at Google failed ({}): gcloud auth application-default login, or a new "
    "credentials file"
)
_CUT_OFF = "ProtocolError"
"""Of urllib3, wrapped by requests: the server has closed a kept-alive connection."""
# Exceptions of google.auth and requests, and two of this module.
_CLASSES: Mapping[str, tuple[FailureReach, str]] = {
    "NoProjectError": (
        FailureReach.SECRET,
        "GOOGLE_CLOUD_PROJECT is not set, and the login names no project; set it, or give the key "
        "a place: gcp://PROJECT/SECRET",
    ),
    "UnsafeFileError": (
        FailureReach.STORE,
        "a credentials file that .env names must be of type service_account or authorized_user; "
        "set GOOGLE_APPLICATION_CREDENTIALS in the environment for another one",
    ),
    "DefaultCredentialsError": (FailureReach.STORE, _NO_LOGIN),
    "RefreshError": (FailureReach.LOGIN, _LOGIN),
    "TransportError": (
        FailureReach.STORE,
        "Google's login cannot be reached ({}): see the network",
    ),
    "GoogleAuthError": (FailureReach.STORE, _LOGIN),
    "SSLError": (
        FailureReach.STORE,
        "the server's certificate is not trusted ({}): set REQUESTS_CA_BUNDLE to the authority's "
        "file",
    ),
    "RequestException": (FailureReach.STORE, _UNREACHABLE),
    "JSONDecodeError": (FailureReach.REQUEST, "the answer is not what Secret Manager sends ({})"),
}


def failure_from_error(error: Exception) -> StoreFailure:
    """Return what an exception of google-auth or requests means."""
    cause = type(error.args[0]).__name__ if error.args else ""
    if cause == _CUT_OFF:
        return StoreFailure(FailureReach.REQUEST, _UNREACHABLE.format(cause))
    reach, message = find_by_class(error, _CLASSES)
    return StoreFailure(reach, message.format(_oauth_error(error) or type(error).__name__))


def failure_from_response(response: Any, who: str) -> StoreFailure:
    """Return what a response other than 200 means for the caller *who*."""
    status = int(response.status_code)
    found = _error_body(response)
    for reason in _error_reasons(found):
        if reason in _REASONS:
            return StoreFailure(FailureReach.SECRET, _REASONS[reason].format(who=who))
    reach, message = _STATUS.get(status, _FAILED if status >= 500 else _OTHER)
    code = str(found.get("status", ""))
    return StoreFailure(
        reach, message.format(code=code if _WORD.fullmatch(code) else status, who=who)
    )


def _error_body(response: Any) -> dict[str, Any]:
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _error_reasons(error: Mapping[str, Any]) -> list[str]:
    details = error.get("details")
    there = details if isinstance(details, list) else []
    return [str(detail.get("reason", "")) for detail in there if isinstance(detail, dict)]


def _oauth_error(error: Exception) -> str:
    """Return the error code of the token endpoint, such as `invalid_grant`."""
    answers = (part for part in error.args if isinstance(part, dict))
    code = next((str(answer.get("error", "")) for answer in answers), "")
    return code if _WORD.fullmatch(code) else ""


# Application default credentials and a session that sends them, made at the first read -----------


REQUEST_TIMEOUT_S = 8.0
"""For a request together with its login."""
_FILE_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_SELF_CONTAINED = ("service_account", "authorized_user")
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class NoProjectError(Exception):
    """Neither the settings nor the login name a project."""


class UnsafeFileError(Exception):
    """`.env` names a credentials file that only the environment may name."""


class GcpLogin:
    """The credentials, and a session that sends them; safe from several threads."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Do not connect yet; *environ* is the environment over `.env`."""
        self._environ = environ
        self._lock = threading.Lock()
        self._session: Any = None
        self._login_project: str | None = None

    @property
    def project(self) -> str | None:
        """The project of the settings."""
        return self._environ.get("GOOGLE_CLOUD_PROJECT") or None

    @property
    def identity(self) -> str:
        """The address of the service account, if it is known."""
        credentials = getattr(self._session, "credentials", None)
        for name in ("service_account_email", "signer_email", "account"):
            found = getattr(credentials, name, None)
            # "default" stands for the machine's account until the first token is there.
            if isinstance(found, str) and "@" in found:
                return found
        return "this login"

    def find_project(self) -> str:
        """Return the project of the settings, else that of the login.

        Raises:
            NoProjectError: There is none.
            google.auth.exceptions.GoogleAuthError: There is no login.
        """
        self._open()
        project = self.project or self._login_project
        if project is None:
            raise NoProjectError
        return project

    def get(self, url: str) -> Any:
        """Send a request with a token, and return the response whatever its status.

        Raises:
            google.auth.exceptions.GoogleAuthError: The login failed.
            requests.RequestException: There was no response.
        """
        return self._open().get(
            url,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            max_allowed_time=REQUEST_TIMEOUT_S,
            allow_redirects=False,
        )

    def forget(self) -> None:
        """Log in again at the next request."""
        with self._lock:
            self._session = None

    def _open(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session, self._login_project = self._open_session()
            return self._session

    def _open_session(self) -> tuple[Any, str | None]:
        import requests  # noqa: PLC0415 - open_gcp has imported them
        from google.auth.transport.requests import AuthorizedSession, Request  # noqa: PLC0415

        credentials, project = self._credentials()
        session = AuthorizedSession(  # type: ignore[no-untyped-call]
            credentials,
            # cloud.read_batches retries; the default session for tokens would try three times.
            max_refresh_attempts=0,
            auth_request=Request(requests.Session()),
        )
        for scheme in ("https://", "http://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=MAX_CONCURRENCY))
        return session, project

    def _credentials(self) -> tuple[Any, str | None]:
        """Return the default credentials; they do not see a file that only `.env` names."""
        from google.auth import default  # noqa: PLC0415
        from google.oauth2 import credentials, service_account  # noqa: PLC0415

        file = self._environ.get(_FILE_VARIABLE)
        if not file or os.environ.get(_FILE_VARIABLE):
            return default(scopes=[_SCOPE])
        info = _self_contained(file)
        if info["type"] == "service_account":
            made: Any = service_account.Credentials.from_service_account_info
        else:
            made = credentials.Credentials.from_authorized_user_info
        return made(info, scopes=[_SCOPE]), info.get("project_id")


def _self_contained(file: str) -> dict[str, Any]:
    """Read a credentials file that `.env` names.

    Other types run programs, read other files, or send the machine's own login to an address in
    the file.

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


DEFAULT_SECRET = "keyrot"
SECRET_VARIABLE = "KEYROT_GCP_SECRET"
"""Name of the JSON secret with the keys that have no place."""
ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"
"""gcloud's own variable for another endpoint, such as a private one."""
ENDPOINT = "https://secretmanager.googleapis.com"

_LIBRARIES = {"google.auth": "google-auth", "google.auth.transport.requests": "requests"}
_SCHEME = "gcp://"
# docs.cloud.google.com, Secret Manager REST: ids; a project is named or numbered.
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,100}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{1,255}")
_VERSION = re.compile(r"[A-Za-z0-9_-]{1,63}")
_ALLOWED = "gcp://PROJECT/SECRET, gcp://PROJECT/SECRET/VERSION, each with #FIELD where it is JSON"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def open_gcp(environ: Mapping[str, str]) -> GcpStore:
    """Open the store; nothing is read or connected yet.

    Args:
        environ: Settings: `GOOGLE_CLOUD_PROJECT`, `GOOGLE_APPLICATION_CREDENTIALS`,
            `KEYROT_GCP_SECRET`, and gcloud's variable for another endpoint.

    Raises:
        ConfigError: The endpoint is no https:// URL, or the secret's name is none.
        MissingExtraError: google-auth or requests is not installed.
    """
    require_extra("gcp", _LIBRARIES)
    secret = environ.get(SECRET_VARIABLE, "").strip() or DEFAULT_SECRET
    if not _SECRET.fullmatch(secret):
        allowed = "letters, digits, _ and -, as in keyrot"
        raise ConfigError(f"{SECRET_VARIABLE}: found {display(secret)}; allowed: {allowed}.")
    endpoint = _checked_endpoint(environ.get(ENDPOINT_VARIABLE, "").strip() or ENDPOINT)
    return GcpStore(GcpLogin(environ), endpoint, secret)


def _checked_endpoint(url: str) -> str:
    """Return the URL, if a token does not travel there in plain text.

    Raises:
        ConfigError: It does, or this is not a URL of a host.
    """
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{ENDPOINT_VARIABLE}: found {display(url)}; allowed: https://HOST/.")
    return url.rstrip("/")


class GcpStore:
    """Reads keys at `gcp://PROJECT/SECRET[/VERSION][#FIELD]`, or by their id in one JSON secret."""

    scheme = "gcp"

    def __init__(
        self, login: GcpLogin, endpoint: str = ENDPOINT, default: str = DEFAULT_SECRET
    ) -> None:
        """Read with a login from an endpoint; *default* is the name of the JSON secret."""
        self._login = login
        self._endpoint = endpoint
        self._default = default

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up with a request per secret, several at once."""
        return resolve_refs(refs, self._parse_ref, self._read, extract_key)

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_SCHEME}{self._login.project or 'PROJECT'}/{self._default}#{key_id}"

    def _parse_ref(self, key_id: str, ref: str | None) -> SecretRef | str:
        """Parse a place; the project is empty if the login has to name it."""
        if ref is None:
            name = f"{self._login.project or ''}/{self._default}/latest"
            return SecretRef(name, self.place(key_id), key_id)
        path, field = split_field(ref.removeprefix(_SCHEME))
        project, secret, version, *more = [*path.split("/"), "", ""]
        version = version or "latest"
        valid = _PROJECT.fullmatch(project) and _SECRET.fullmatch(secret) and not any(more)
        if not valid or field == "" or not _VERSION.fullmatch(version):
            return f"found the place {display(ref)}; allowed: {_ALLOWED}"
        return SecretRef(f"{project}/{secret}/{version}", ref, field)

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        return read_each(names, self._read_one, self._login.forget)

    def _read_one(self, name: str) -> Answer:
        project, secret, version = name.split("/")
        try:
            project = project or self._login.find_project()
            path = f"/v1/projects/{project}/secrets/{secret}/versions/{version}:access"
            response = self._login.get(f"{self._endpoint}{path}")
            if response.status_code != 200:
                return failure_from_response(response, self._login.identity)
            return _payload(response.json())
        except Exception as error:
            return failure_from_error(error)


def _payload(answer: Any) -> Answer:
    """Return the bytes in a response."""
    payload = answer.get("payload", {}) if isinstance(answer, dict) else {}
    try:
        return base64.b64decode(payload.get("data", ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        return StoreFailure(
            FailureReach.REQUEST, "the answer's payload is not what Secret Manager sends"
        )
