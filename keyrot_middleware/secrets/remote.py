"""Stores over the network: one read for each secret, ten at once, and errors by class.

Requests, retries, time-outs and logins are those of the store's own library, which is imported when
the store is opened. Of its exceptions a message shows the class, and a code that is one word: their
texts may hold a token or a value.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from ..errors import ConfigError, SecretError
from ..forks import after_fork
from ..locks import Lock
from ..providers.keys import StaysHere, display
from .secret import PlainText, Secret

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 4.0
"""For one request."""
MAX_CONCURRENCY = 10
CHANGED = "it has another value meanwhile; nothing was written"
_WORD = re.compile(r"\w{1,60}", re.ASCII)

_T = TypeVar("_T")
Stored = str | bytes | Mapping[str, object]
"""What a secret holds: a text, which may be a JSON object, or fields."""


class Unreadable(Exception):  # noqa: N818 - an answer for one secret; the others may be readable
    """The store answered that it does not give this secret.

    The text says why. It is shown, so it must hold no value.
    """


def codes(*found: object) -> str:
    """Return codes of a store for a message; what is not one word is left out."""
    return " ".join(word for word in map(str, found) if _WORD.fullmatch(word)) or "refused"


class RemoteStore(StaysHere, ABC):
    """Reads secrets with the client of a library, at `scheme://NAME#field`.

    A subclass says how to `connect`, `read` and `write`. The rest is here: a look-up reads each
    secret once, ten at once, in threads; what fails for one secret, and what for all; fields of
    JSON objects; messages without values. The client is kept, with its login, and used by several
    threads at once. If nothing could be read with it, there is a new one, once in a look-up; a
    forked child makes its own.
    """

    scheme: str
    libraries: tuple[str, ...] = ()
    """Modules that are imported when the store is opened, since threads import nothing."""

    def __init__(self, default: str) -> None:
        """Connect to nothing yet; *default* is the secret with a field for each key.

        Raises:
            ImportError: The library is not installed.
        """
        for name in self.libraries:
            import_module(name)
        self._default = default
        self._client: Any = None
        self._lock = Lock()
        after_fork(self, RemoteStore._reset)

    @abstractmethod
    def connect(self) -> Any:
        """Return the library's client, logged in; set its time-outs to a few seconds.

        Raises:
            Exception: Messages show its class alone.
        """

    @abstractmethod
    def read(self, client: Any, name: str, version: str = "") -> tuple[Stored, str]:
        """Return what the secret *name* holds, and the version of that; "": it has none.

        Args:
            client: The client.
            name: The part of a place before `#`.
            version: An older version; "": the current one.

        Raises:
            Unreadable: The store does not give it. All else fails for all secrets.
        """

    @abstractmethod
    def write(self, client: Any, name: str, stored: Stored, version: str) -> None:
        """Make *stored* the current version in place of *version*.

        Raises:
            Unreadable: Another version is the current one.
        """

    def version_before(self, client: Any, name: str, version: str) -> str:
        """Return the version before *version*; "": there is none."""
        del client, name
        return str(int(version) - 1) if version not in ("", "1") else ""

    def names_version(self, name: str) -> bool:
        """Return whether a name is one of a version, whose value never changes."""
        del name
        return False

    def server_of(self, name: str) -> str:
        """Return which server has a secret; where it fails, no other of its secrets is read."""
        del name
        return self.scheme

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{self.scheme}://{self._default}#{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; a secret with several keys is read once."""
        places = {key_id: ref or self.place(key_id) for key_id, ref in refs.items()}
        names = {place: _name_in(place) for place in places.values()}
        stored = self._read_all(list(dict.fromkeys(names.values()))) if names else {}
        return {
            key_id: _key_in(stored[names[place]], place, key_id) for key_id, place in places.items()
        }

    def replace(self, key_id: str, ref: str | None, old: Secret, new: Secret) -> None:
        """Store *new* where *old* is; nothing else changes.

        Raises:
            SecretError: That is not possible, or the store has another value meanwhile.
        """
        place = ref or self.place(key_id)
        name = _name_in(place)

        def work(client: Any) -> None:
            if self.names_version(name):
                raise Unreadable("it names a version, which always has the same value")
            stored, version = self.read(client, name)
            if _key_in(stored, place, key_id) != old:
                raise Unreadable(CHANGED)
            self.write(client, name, _with_value(stored, old, new), version)

        self._try(work, key_id, place)

    def previous(self, key_id: str, ref: str | None, current: Secret) -> Secret | None:
        """Return the value that the key had before *current*, if the store still has it.

        Raises:
            SecretError: It cannot be read.
        """
        place = ref or self.place(key_id)
        name = _name_in(place)

        def work(client: Any) -> Secret | None:
            before = self.version_before(client, name, self.read(client, name)[1])
            if not before:
                return None
            with suppress(Unreadable):  # it was deleted
                found = _key_in(self.read(client, name, before)[0], place, key_id)
                return found if isinstance(found, Secret) and found != current else None
            return None

        return self._try(work, key_id, place)

    def ends_at(self, key_id: str, ref: str | None) -> datetime | None:
        """Return when the value of a key ends or is to be replaced; None: the store does not say.

        It need not be allowed to say that.
        """
        place = ref or self.place(key_id)
        try:
            return self._try(lambda client: self.end_of(client, _name_in(place)), key_id, place)
        except SecretError:
            return None

    def end_of(self, client: Any, name: str) -> datetime | None:
        """Return when the current version of a secret ends, or the next one is due."""
        del client, name
        return None

    def _try(self, work: Callable[[Any], _T], key_id: str, place: str) -> _T:
        try:
            return work(self._connected())
        except Unreadable as error:
            why = str(error)
        except Exception as error:
            why = type(error).__name__
        raise SecretError(f"key {key_id}: {place}: {why}")

    def _read_all(self, names: list[str]) -> dict[str, Stored | SecretError]:
        while True:
            kept = self._client
            found = self._read_each(names)
            if any(not isinstance(one, SecretError) for one in found.values()):
                return found
            self._client = None
            if kept is None:
                return found

    def _read_each(self, names: list[str]) -> dict[str, Stored | SecretError]:
        """Read the first, then the others at once; none of a server that has failed."""
        failed: dict[str, str] = {}

        def read(name: str) -> Stored | SecretError:
            server = self.server_of(name)
            try:
                if server not in failed:
                    return self.read(self._connected(), name)[0]
            except Unreadable as error:
                return SecretError(str(error))
            except Exception as error:
                failed[server] = type(error).__name__
            return SecretError(failed[server])

        first, *rest = names
        found = {first: read(first)}
        if rest:
            with ThreadPoolExecutor(MAX_CONCURRENCY, "keyrot-secrets") as threads:
                found.update(zip(rest, threads.map(read, rest), strict=True))
        return found

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.connect()
            return self._client

    def _reset(self) -> None:
        """Forget the client: two processes on one connection would read each other's responses."""
        self._client = None


def _name_in(place: str) -> str:
    return unquote(place.partition("://")[2].partition("#")[0])


def _key_in(stored: Stored | SecretError, place: str, key_id: str) -> Secret | SecretError:
    """Return the key in a stored secret: a field of it, or the whole text."""
    field = unquote(place.partition("#")[2])
    if isinstance(stored, SecretError):
        return SecretError(f"key {key_id}: {place}: {stored}")
    try:
        text = stored.decode("utf-8-sig") if isinstance(stored, bytes) else stored
    except UnicodeDecodeError:
        return SecretError(f"key {key_id}: {place}: it is no text")
    fields = text if isinstance(text, Mapping) else _parse_object(text)
    if fields is None and isinstance(text, str) and not field:
        return Secret(text)
    value = (fields or {}).get(field or key_id)
    if isinstance(value, str):
        return Secret(value)
    return SecretError(f"key {key_id}: {place}: it has no field {field or key_id} with a text")


def _with_value(stored: Stored, old: Secret, new: Secret) -> Stored:
    """Return what is stored with a value replaced: texts keep their form."""
    if isinstance(stored, Mapping):
        return {k: new.reveal() if v == old.reveal() else v for k, v in stored.items()}
    text = stored if isinstance(stored, str) else stored.decode()
    quoted = f'"{old.reveal()!s}"', f'"{new.reveal()!s}"'  # in JSON
    text = text.replace(*quoted) if quoted[0] in text else text.replace(old.reveal(), new.reveal())
    return text if isinstance(stored, str) else text.encode()


def _parse_object(text: str) -> Mapping[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# HashiCorp Vault or OpenBao -----------------------------------------------------------------------


_ADDRESS = re.compile(r"https?://[^/\s?#]+(/[^\s?#]*)?", re.IGNORECASE)
_LOOPBACK_URL = re.compile(r"(?i)http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?(/.*)?")
_KUBERNETES_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_TRUE = ("1", "t", "true")


def open_vault(environ: Mapping[str, str]) -> VaultStore:
    """Open the store; the first look-up sends the first request.

    Raises:
        ConfigError: `VAULT_ADDR` is not allowed.
    """
    address = environ.get("VAULT_ADDR", "").strip()
    plain = address.lower().startswith("http:") and not _LOOPBACK_URL.fullmatch(address)
    if not _ADDRESS.fullmatch(address) or (
        plain and environ.get("KEYROT_VAULT_ALLOW_HTTP", "").lower() not in _TRUE
    ):
        raise ConfigError(
            f"VAULT_ADDR: found {display(address) if address else 'nothing'}; allowed: "
            "https://host:port. Over http:// everyone on the way reads the token and the keys; "
            "KEYROT_VAULT_ALLOW_HTTP=true allows it."
        )
    return VaultStore(environ)


class VaultStore(RemoteStore):
    """Reads keys at `vault://MOUNT/path/of/secret#field`, from one server with one identity.

    The secrets engine is KV, version 1 or 2. Version 2 keeps the secret `team/a` of the mount
    `secret` at `secret/data/team/a`, with its fields one level deeper; the server shows the version
    of a mount to every token that may read something in it. See docs/stores/vault.md.
    """

    scheme, libraries = "vault", ("hvac",)

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read with the server and the login that the variables of *environ* name."""
        given = {name: PlainText(value.strip()) for name, value in environ.items()}
        self._environ = {name: value for name, value in given.items() if value}
        place = self._environ.get("KEYROT_VAULT_PLACE", "secret/keyrot").removeprefix("vault://")
        super().__init__(place.strip("/"))

    def connect(self) -> Any:
        """Log in by the first of these whose variables are set; files are read now."""
        import hvac

        found = self._environ.get
        key = found("VAULT_CLIENT_CERT"), found("VAULT_CLIENT_KEY")
        trust_all = found("VAULT_SKIP_VERIFY", "").lower() in _TRUE
        client = hvac.Client(
            url=found("VAULT_ADDR"),
            token=self._given("VAULT_TOKEN"),  # None: hvac reads ~/.vault-token
            cert=key if all(key) else None,
            verify=not trust_all and (found("VAULT_CACERT") or found("VAULT_CAPATH") or True),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            namespace=found("VAULT_NAMESPACE"),
            allow_redirects=False,  # another server would get token and login
        )
        mount = found("VAULT_AUTH_MOUNT", "").strip("/").removeprefix("auth/")
        role_id, jwt = self._given("VAULT_ROLE_ID"), self._given("VAULT_JWT")
        if found("VAULT_TOKEN"):
            pass
        elif role_id:
            secret_id = self._given("VAULT_SECRET_ID")
            client.auth.approle.login(role_id, secret_id, mount_point=mount or "approle")
        elif role := found("VAULT_K8S_ROLE"):
            token = Path(found("VAULT_K8S_TOKEN_FILE", _KUBERNETES_TOKEN)).read_text("utf-8")
            client.auth.kubernetes.login(role, token.strip(), mount_point=mount or "kubernetes")
        elif (role := found("VAULT_JWT_ROLE")) and jwt:
            client.auth.jwt.jwt_login(role, jwt, path=mount or "jwt")
        return client

    def read(self, client: Any, name: str, version: str = "") -> tuple[Mapping[str, object], str]:
        """Return the fields of a secret; only engine 2 has versions."""
        from hvac.exceptions import VaultDown, VaultError

        name = name.strip("/")
        try:
            mount, engine = self._mount(client, name)
            path = name.removeprefix(mount)
            if version:
                args = {"mount_point": mount.strip("/"), "raise_on_deleted_version": True}
                data = client.secrets.kv.v2.read_secret_version(path, int(version), **args)["data"]
            else:
                data = _data(client, f"{mount}data/{path}" if engine == "2" else name)
        except VaultDown:
            raise
        except VaultError as error:
            raise Unreadable(type(error).__name__) from None
        fields = data.get("data") if engine == "2" else data
        if not isinstance(fields, Mapping):
            raise Unreadable("InvalidPath")
        return fields, str(data["metadata"]["version"]) if engine == "2" else ""

    def write(self, client: Any, name: str, stored: Stored, version: str) -> None:
        """Write the fields; engine 2 compares the version."""
        mount, _ = self._mount(client, name.strip("/"))
        path, place = name.strip("/").removeprefix(mount), {"mount_point": mount.strip("/")}
        if version:
            client.secrets.kv.v2.create_or_update_secret(path, stored, cas=int(version), **place)
        else:
            client.secrets.kv.v1.create_or_update_secret(path, stored, method="PUT", **place)

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; then renew a token of the settings, which no login replaces."""
        found = super().resolve(refs)
        if self._client is not None and "VAULT_TOKEN" in self._environ:
            with suppress(Exception):
                self._client.auth.token.renew_self()
        return found

    def _mount(self, client: Any, name: str) -> tuple[str, str]:
        """Return the mount of a path and its version; version 2 where the server hides it."""
        from hvac.exceptions import Forbidden

        try:
            data = _data(client, f"sys/internal/ui/mounts/{name}")
        except Forbidden:
            return name.partition("/")[0] + "/", "2"
        return str(data.get("path")), str((data.get("options") or {}).get("version", "1"))

    def _given(self, name: str) -> str | None:
        """Return a variable, else the content of the file that the variable with _FILE names."""
        if value := self._environ.get(name):
            return value
        file = self._environ.get(f"{name}_FILE")
        return Path(file).expanduser().read_text("utf-8").strip() if file else None


def _data(client: Any, path: str) -> Mapping[str, Any]:
    """Return the data at a path.

    Raises:
        Unreadable: There is none, or the server redirects, or is no Vault.
    """
    reply = client.read(quote(path))
    if reply is None:
        raise Unreadable("InvalidPath")
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, dict):
        raise Unreadable("the server redirects, or is no Vault")
    return data


# AWS Secrets Manager ------------------------------------------------------------------------------


_LOGGERS = ("auth", "endpoint", "hooks", "parsers", "utils")
"""Of botocore; their DEBUG lines hold whole responses, signatures and session tokens."""


def open_aws(environ: Mapping[str, str]) -> AwsStore:
    """Open the store; boto3 takes its own settings from the environment."""
    return AwsStore(environ.get("KEYROT_AWS_SECRET") or "keyrot")


def _is_loggable(record: logging.LogRecord) -> bool:
    """Drop lines below WARNING in threads that read secrets; the program's own stay."""
    reading = threading.current_thread().name.startswith("keyrot-secrets")
    return record.levelno >= logging.WARNING or not reading


class AwsStore(RemoteStore):
    """Reads keys at `aws://NAME-or-ARN#field`; always the version AWSCURRENT."""

    scheme, libraries = "aws", ("boto3",)

    def __init__(self, default: str, **options: Any) -> None:
        """*options*: more for boto3's client, such as `endpoint_url`."""
        super().__init__(default)
        self._options = options

    def connect(self) -> Any:
        """Return a function that returns the client of a region."""
        from boto3.session import Session
        from botocore.config import Config

        for name in _LOGGERS:
            logging.getLogger(f"botocore.{name}").addFilter(_is_loggable)
        session = Session()
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=MAX_CONCURRENCY,
        )

        @cache
        def client(region: str | None) -> Any:
            options = {**self._options, **({"region_name": region} if region else {})}
            return session.client("secretsmanager", config=config, **options)

        return client

    def read(self, client: Any, name: str, version: str = "") -> tuple[str | bytes, str]:
        """Return the text or the bytes of a secret; versions have labels."""
        which = {"VersionStage": version or "AWSCURRENT"}
        found = self._call(client, name, "get_secret_value", **which)
        return found.get("SecretString") or found.get("SecretBinary") or "", ""

    def version_before(self, client: Any, name: str, version: str) -> str:
        """Return the label of the version before."""
        del client, name, version
        return "AWSPREVIOUS"

    def write(self, client: Any, name: str, stored: Stored, version: str) -> None:
        """Add a version; Secrets Manager compares nothing."""
        content = {"SecretString" if isinstance(stored, str) else "SecretBinary": stored}
        self._call(client, name, "put_secret_value", **content)

    def end_of(self, client: Any, name: str) -> datetime | None:
        """Return when Secrets Manager rotates it next."""
        found: datetime | None = self._call(client, name, "describe_secret").get("NextRotationDate")
        return found

    def _call(self, client: Any, name: str, method: str, **more: Any) -> Any:
        """Call a method for a secret; an ARN names its region."""
        from botocore.exceptions import ClientError

        region = name.split(":")[3] if name.count(":") > 3 else None
        with self._lock:  # boto3 makes clients in one thread at a time
            regional = client(region)
        try:
            return getattr(regional, method)(SecretId=name, **more)
        except ClientError as error:
            raise Unreadable(codes(error.response.get("Error", {}).get("Code"))) from None


# Azure Key Vault ----------------------------------------------------------------------------------


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

    scheme, libraries = "azure", ("azure.identity", "azure.keyvault.secrets")

    def __init__(
        self, host: str, credential: Callable[[], Any] | None = None, **options: Any
    ) -> None:
        """Read by default in the vault *host*; *options*: more for azure's SecretClient."""
        super().__init__(host)
        self._credential = credential or _azure_login
        self._options = {**_OPTIONS, **options}

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{self.scheme}://{self._default}/{key_id.replace('_', '-')}"

    def names_version(self, name: str) -> bool:
        """Return whether it is `VAULT/SECRET/VERSION`."""
        return name.count("/") > 1

    def server_of(self, name: str) -> str:
        """Return the vault."""
        return name.partition("/")[0]

    def connect(self) -> Any:
        """Return a function that returns the client of a vault."""
        from azure.keyvault.secrets import SecretClient

        credential = self._credential()

        @cache
        def client(host: str) -> SecretClient:
            return SecretClient(f"https://{host}", credential, **self._options)

        return client

    def read(self, client: Any, name: str, version: str = "") -> tuple[str, str]:
        """Return a secret."""
        _, _, path = name.partition("/")
        secret, _, fixed = path.partition("/")
        found = self._call(client, name, "get_secret", secret, version or fixed or None)
        return found.value or "", found.properties.version

    def version_before(self, client: Any, name: str, version: str) -> str:
        """Return the version before *version*; "": there is none."""
        secret = name.split("/")[1]
        found = self._call(client, name, "list_properties_of_secret_versions", secret)
        ids: list[str] = [one.version for one in sorted(found, key=lambda one: one.created_on)]
        return ["", *ids][ids.index(version)]

    def write(self, client: Any, name: str, stored: Stored, version: str) -> None:
        """Add a version; Key Vault compares nothing."""
        self._call(client, name, "set_secret", name.split("/")[1], stored)

    def end_of(self, client: Any, name: str) -> datetime | None:
        """Return when the current version expires."""
        secret = name.split("/")[1]
        found: datetime | None = self._call(
            client, name, "get_secret", secret
        ).properties.expires_on
        return found

    def _call(self, client: Any, name: str, method: str, *args: Any) -> Any:
        """Call a method; a vault without a dot or a port is one of the public cloud."""
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

        vault = name.partition("/")[0]
        if not vault:
            raise Unreadable(f"{_VARIABLE} is not set")
        host = vault if {".", ":"} & set(vault) else f"{vault}.vault.azure.net"
        try:
            return getattr(client(host), method)(*args)
        except ClientAuthenticationError:
            raise
        except HttpResponseError as error:
            inner = getattr(error.error, "innererror", None) or {}
            code = inner.get("code") or getattr(error.error, "code", "")
            raise Unreadable(codes(type(error).__name__, error.status_code, code)) from None


def _azure_login() -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(process_timeout=_PROCESS_S, **_OPTIONS)


# Google: its services, and Secret Manager ---------------------------------------------------------


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def google_endpoint(environ: Mapping[str, str], service: str) -> str:
    """Return where a service is; gcloud's own variable names another one, such as a private one.

    Raises:
        ConfigError: It is no https:// URL.
    """
    variable = f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}"
    endpoint = environ.get(variable, "").strip() or f"https://{service}.googleapis.com"
    url = urlsplit(endpoint)
    if url.scheme != "https" and url.hostname not in _LOOPBACK:
        raise ConfigError(f"{variable}: found {display(endpoint)}; allowed: https://HOST/.")
    return url.geturl().rstrip("/")  # its scheme in lower case


def google_session(credentials: Any) -> Any:
    """Return a session of requests that sends tokens, and tries again what may soon work."""
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    retry = Retry(2, status_forcelist=(429, 500, 502, 503, 504), backoff_factor=0.5)
    retry.raise_on_status, retry.respect_retry_after_header = False, False
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONCURRENCY, max_retries=retry))
    return session


def google_call(session: Any, method: str, url: str, **more: Any) -> Mapping[str, Any]:
    """Return the object that a service answers; tokens go to no other address.

    Raises:
        Unreadable: It refuses, or answers something else.
    """
    timeout = CONNECT_TIMEOUT_S, READ_TIMEOUT_S
    reply = session.request(method, url, **more, timeout=timeout, allow_redirects=False)
    if reply.status_code != 200:
        raise Unreadable(codes(reply.status_code, _status(reply)))
    found = reply.json()
    if not isinstance(found, dict):
        raise Unreadable("no JSON object")
    return found


def open_gcp(environ: Mapping[str, str]) -> GcpStore:
    """Open the store; google-auth takes its own settings from the environment.

    Raises:
        ConfigError: The endpoint is no https:// URL.
    """
    endpoint = google_endpoint(environ, "secretmanager")
    secret = environ.get("KEYROT_GCP_SECRET") or "keyrot"
    return GcpStore(endpoint, f"{environ.get('GOOGLE_CLOUD_PROJECT', '')}/{secret}")


class GcpStore(RemoteStore):
    """Reads keys at `gcp://PROJECT/SECRET[/VERSION][#FIELD]`, or by their id in one JSON secret."""

    scheme, libraries = "gcp", ("google.auth.transport.requests",)

    def __init__(
        self,
        endpoint: str,
        default: str,
        login: Callable[[], tuple[Any, str | None]] | None = None,
    ) -> None:
        """Read at *endpoint*; *login* returns credentials and their project."""
        super().__init__(default)
        self._endpoint, self._login = endpoint, login or google_login

    def names_version(self, name: str) -> bool:
        """Return whether it is `PROJECT/SECRET/VERSION`."""
        return name.count("/") > 1

    def connect(self) -> Any:
        """Return a session that sends tokens, and the project of the login."""
        credentials, project = self._login()
        return google_session(credentials), project

    def read(self, client: Any, name: str, version: str = "") -> tuple[bytes, str]:
        """Return the bytes of a version."""
        fixed = [*name.split("/"), "", ""][2]
        found = self._call(client, name, "GET", f"/versions/{version or fixed or 'latest'}:access")
        return base64.b64decode(found["payload"]["data"]), found["name"].rpartition("/")[2]

    def write(self, client: Any, name: str, stored: Stored, version: str) -> None:
        """Add a version; Secret Manager compares nothing."""
        data = base64.b64encode(stored).decode()  # type: ignore[arg-type]  # bytes, as read
        self._call(client, name, "POST", ":addVersion", {"payload": {"data": data}})

    def end_of(self, client: Any, name: str) -> datetime | None:
        """Return when the secret expires or, if it does not, is to be rotated."""
        found = self._call(client, name, "GET", "")
        at = found.get("expireTime") or found.get("rotation", {}).get("nextRotationTime")
        return None if at is None else datetime.fromisoformat(at)

    def _call(
        self, client: Any, name: str, method: str, action: str, body: Any = None
    ) -> Mapping[str, Any]:
        """Send a request about a secret; without a project, of the login's."""
        session, own = client
        project, secret, *_ = [*name.split("/"), ""]
        if not (project or own):
            raise Unreadable("GOOGLE_CLOUD_PROJECT is not set, and the login names no project")
        url = f"{self._endpoint}/v1/projects/{project or own}/secrets/{secret}{action}"
        return google_call(session, method, url, json=body)


def google_login(endpoint: str = "https:") -> tuple[Any, str | None]:
    """Return the credentials of the program, and their project; they go to TLS alone."""
    import google.auth
    import google.auth.credentials

    if endpoint.startswith("http:"):  # of this machine: a fake
        return google.auth.credentials.AnonymousCredentials(), None  # type: ignore[no-untyped-call]
    return google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])


def _status(reply: Any) -> object:
    try:
        return reply.json()["error"]["status"]
    except (ValueError, KeyError, TypeError):
        return ""


OPENERS: Mapping[str, Callable[[Mapping[str, str]], RemoteStore]] = {
    "vault": open_vault,
    "aws": open_aws,
    "azure": open_azure,
    "gcp": open_gcp,
}
"""By scheme; they take the environment."""
