"""Secrets in Google Secret Manager, read over REST with google-auth: docs/stores/google.md."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..core.text import shown
from ..errors import ConfigError, SecretError
from .base import Secret
from .extra import need
from .fault import Answer, Fault, Reach
from .gcp_failures import fault_of, fault_of_answer
from .gcp_login import GcpLogin, NoProjectError, UnsafeFileError
from .lookup import Spot, look_up, split_field
from .reading import Batch, read_all

__all__ = ["DEFAULT_SECRET", "ENDPOINT_VARIABLE", "SECRET_VARIABLE", "GcpStore", "open_gcp"]

DEFAULT_SECRET = "keyrot"
SECRET_VARIABLE = "KEYROT_GCP_SECRET"
"""Names the JSON secret in which a key of any id is looked for."""
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
    need("gcp", _LIBRARIES)
    secret = environ.get(SECRET_VARIABLE, "").strip() or DEFAULT_SECRET
    if not _SECRET.fullmatch(secret):
        allowed = "letters, digits, _ and -, as in keyrot"
        raise ConfigError(f"{SECRET_VARIABLE}: found {shown(secret)}; allowed: {allowed}.")
    endpoint = _good_endpoint(environ.get(ENDPOINT_VARIABLE, "").strip() or ENDPOINT)
    return GcpStore(GcpLogin(environ), endpoint, secret)


def _good_endpoint(url: str) -> str:
    """Refuse an address to which a token would travel in the clear."""
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{ENDPOINT_VARIABLE}: found {shown(url)}; allowed: https://HOST/.")
    return url.rstrip("/")


class GcpStore:
    """Find a key at `gcp://PROJECT/SECRET[/VERSION][#FIELD]`, or in one JSON secret by its id."""

    scheme = "gcp"

    def __init__(
        self, login: GcpLogin, endpoint: str = ENDPOINT, default: str = DEFAULT_SECRET
    ) -> None:
        """Read with a login from an endpoint; *default* is the name of the JSON secret."""
        self._login = login
        self._endpoint = endpoint
        self._default = default

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up, a request per secret, several at once."""
        return look_up(refs, self._spot, self._read)

    def place(self, key_id: str) -> str:
        """Tell where a key is kept unless told otherwise."""
        return f"{_SCHEME}{self._login.project or 'PROJECT'}/{self._default}#{key_id}"

    def _spot(self, key_id: str, ref: str | None) -> Spot | str:
        """Understand a place; the project is left empty where the login has to name it."""
        if ref is None:
            name = f"{self._login.project or ''}/{self._default}/latest"
            return Spot(name, self.place(key_id), key_id)
        path, field = split_field(ref.removeprefix(_SCHEME))
        project, secret, version, *more = [*path.split("/"), "", ""]
        version = version or "latest"
        good = _PROJECT.fullmatch(project) and _SECRET.fullmatch(secret) and not any(more)
        if not good or field == "" or not _VERSION.fullmatch(version):
            return f"found the place {shown(ref)}; allowed: {_ALLOWED}"
        return Spot(f"{project}/{secret}/{version}", ref, field)

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        return read_all([(name,) for name in names], self._ask, self._login.forget)

    def _ask(self, batch: Batch) -> Mapping[str, Answer]:
        (name,) = batch
        project, secret, version = name.split("/")
        try:
            project = project or self._login.find_project()
            path = f"/v1/projects/{project}/secrets/{secret}/versions/{version}:access"
            response = self._login.get(f"{self._endpoint}{path}")
            if response.status_code != 200:
                return {name: fault_of_answer(response, self._login.identity)}
            return {name: _payload(response.json())}
        except NoProjectError:
            return {name: Fault(Reach.HERE, _NO_PROJECT)}
        except UnsafeFileError:
            return {name: Fault(Reach.STORE, _UNSAFE_FILE)}
        except Exception as error:
            return {name: fault_of(error)}


_NO_PROJECT = (
    "GOOGLE_CLOUD_PROJECT is not set, and the login names no project; set it, or give the key a "
    "place: gcp://PROJECT/SECRET"
)

_UNSAFE_FILE = (
    "a credentials file that .env names must be of type service_account or authorized_user; set "
    "GOOGLE_APPLICATION_CREDENTIALS in the environment for another one"
)


def _payload(answer: Any) -> Answer:
    """Take the bytes out of an answer; that they came whole is TLS's to check."""
    payload = answer.get("payload", {}) if isinstance(answer, dict) else {}
    try:
        return base64.b64decode(payload.get("data", ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        return Fault(Reach.BUSY, "the answer's payload is not what Secret Manager sends")
