"""Keys in HashiCorp Vault or OpenBao, over `hvac.Client`: secrets engine KV, version 1 or 2.

    vault://MOUNT/path/of/secret#field

A look-up reads each path once, however many keys are fields of it. Version 2 keeps the secret
`team/a` of the mount `secret` at `secret/data/team/a`, with its fields one level deeper; the server
tells the version of a mount to every token that may read something in it. See docs/stores/vault.md.

Exceptions of hvac and requests hold the request, with the token in its headers and the login in its
body. So every request goes through `_request`, which returns a failure without the exception.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from ..core.text import did_you_mean, display, mask_keys
from ..errors import SecretError
from .base import Secret, SecretStore
from .cloud import CONNECT_TIMEOUT_S, FailureReach, StoreFailure, require_extra
from .vault_failures import failure_of_error, failure_of_redirect, not_vault
from .vault_settings import (
    SCHEME,
    CredentialSource,
    VaultSettings,
    normalize_path,
    read_settings,
)

__all__ = ["VaultStore", "open_vault"]

RENEW_AFTER = 2 / 3
"""Part of a token's lifetime after which it is renewed, as by Vault's agent."""
MAX_REDIRECTS = 3
"""On one server: a proxy in front of it may normalize paths."""
MAX_NAMES = 10
"""Fields that a message lists at most."""

_PRINTABLE = re.compile(r"[!-~]+")
_TYPES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "a list",
}
Fields = Mapping[str, object]


def open_vault(environ: Mapping[str, str]) -> SecretStore:
    """Open the store by the variables of *environ*; the first look-up sends the first request.

    Args:
        environ: The environment over `.env`.

    Raises:
        ConfigError: A variable is wrong or missing.
        MissingExtraError: The extra `vault` is not installed.
    """
    require_extra("vault", {"hvac": "hvac"})
    return VaultStore(read_settings(environ))


class _Ref(NamedTuple):
    """A field of a secret."""

    path: str
    """With the mount, without `data/`."""
    field: str


class _Mount(NamedTuple):
    """A mount of the KV secrets engine."""

    path: str
    """With a slash at its end."""
    version: int

    def api_path(self, path: str) -> str:
        """Return the path of a secret in the API and in policies."""
        return f"{self.path}data/{path[len(self.path) :]}" if self.version == 2 else path


@dataclass(frozen=True, slots=True)
class _Token:
    """A token and its lifetime; times are on the store's clock, in seconds.

    Attributes:
        name: For messages: the role or the accessor, never the token.
        renew_at: None: it does not expire, or its lifetime is not known.
        expires_at: None as *renew_at*.
    """

    value: Secret
    name: str
    renewable: bool = False
    renew_at: float | None = None
    expires_at: float | None = None

    def with_lifetime(self, asked_at: float, auth: Mapping[str, Any], field: str) -> _Token:
        """Return the token with the lifetime in *field* of a response; 0: it does not expire."""
        seconds = auth.get(field)
        if not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
            return replace(self, renewable=False, renew_at=None, expires_at=None)
        return replace(
            self,
            renewable=auth.get("renewable") is True,
            renew_at=asked_at + seconds * RENEW_AFTER,
            expires_at=asked_at + seconds,
        )


class VaultStore:
    """Reads keys from one Vault server with one identity; safe from several threads."""

    scheme = "vault"

    def __init__(
        self, settings: VaultSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Send nothing yet; *clock* measures the lifetime of tokens, in seconds."""
        self._settings = settings
        self._clock = clock
        self._token: _Token | None = None
        self._token_lock = threading.Lock()
        self._mounts: dict[str, _Mount] = {}

    def __repr__(self) -> str:
        return f"<VaultStore: {self._settings.server}>"

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{SCHEME}{self._settings.place}#{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up with one request per path, and those of a login."""
        texts = {key_id: ref or self.place(key_id) for key_id, ref in refs.items()}
        parsed = {key_id: _parse_ref(text, key_id) for key_id, text in texts.items()}
        found = self._read_paths(list(dict.fromkeys(ref.path for ref in parsed.values() if ref)))
        return {
            key_id: _take_field(key_id, ref, found[ref.path])
            if ref
            else _ref_error(key_id, texts[key_id])
            for key_id, ref in parsed.items()
        }

    # Reading ------------------------------------------------------------------------------------

    def _read_paths(self, paths: Sequence[str]) -> dict[str, Fields | StoreFailure]:
        """Read the paths in turn; stop at an outage, replace a rejected token once."""
        if not paths:
            return {}
        held_before = self._token
        token = self._current_token()
        if isinstance(token, StoreFailure):
            return dict.fromkeys(paths, token)
        may_login = token is held_before  # a token from this look-up is not replaced
        found: dict[str, Fields | StoreFailure] = {}
        client = self._client(token)
        try:
            for path in paths:
                fields = self._read(client, path)
                if isinstance(fields, StoreFailure) and fields.reach is FailureReach.LOGIN:
                    newer = self._relogin(token) if may_login else None
                    may_login = False
                    if isinstance(newer, _Token):
                        client.adapter.close()
                        token, client = newer, self._client(newer)
                        fields = self._read(client, path)
                    if isinstance(fields, StoreFailure) and fields.reach is FailureReach.LOGIN:
                        fields = self._access_denied(fields, token, newer)
                found[path] = fields
                if isinstance(fields, StoreFailure) and fields.reach is FailureReach.STORE:
                    return {**dict.fromkeys(paths, fields), **found}
        finally:
            client.adapter.close()
        return found

    def _access_denied(
        self, failure: StoreFailure, token: _Token, login: _Token | StoreFailure | None
    ) -> StoreFailure:
        again = (
            f"; logging in again failed: {login.message}" if isinstance(login, StoreFailure) else ""
        )
        server = self._settings.server
        return StoreFailure(
            FailureReach.SECRET, f"{server} denies {token.name} to read {failure.message}{again}"
        )

    def _read(self, client: Any, path: str) -> Fields | StoreFailure:
        """Read the fields of one secret, in one request if the mount is known."""
        known = self._known_mount(path)
        if known:
            found = self._read_in(client, known, path)
            # The mount may have been replaced, or upgraded to version 2.
            if not (isinstance(found, StoreFailure) and found.reach is FailureReach.SECRET):
                return found
        mount = self._find_mount(client, path)
        if isinstance(mount, StoreFailure):
            return mount
        if mount is None:
            return self._try_both_versions(client, path)
        self._mounts[mount.path] = mount
        return found if mount == known else self._read_in(client, mount, path)

    def _known_mount(self, path: str) -> _Mount | None:
        parts = path.split("/")
        heads = ("/".join(parts[:end]) + "/" for end in range(1, len(parts)))
        return next((self._mounts[head] for head in heads if head in self._mounts), None)

    def _find_mount(self, client: Any, path: str) -> _Mount | StoreFailure | None:
        """Return the mount of a path; None: the server does not tell."""
        reply = self._request(client.read, f"sys/internal/ui/mounts/{quote(path)}")
        if isinstance(reply, StoreFailure):
            return reply if reply.reach is FailureReach.STORE else None
        data = reply.get("data") or {}
        mount, kind = str(data.get("path", "")), data.get("type")
        if not mount.endswith("/") or not path.startswith(mount):
            return None
        if kind not in ("kv", "generic"):
            return StoreFailure(
                FailureReach.SECRET, f"{mount} is a mount of the type {kind}, and not kv"
            )
        version = (data.get("options") or {}).get("version")
        return _Mount(mount, 2 if str(version) == "2" else 1)

    def _try_both_versions(self, client: Any, path: str) -> Fields | StoreFailure:
        """Take the first segment for the mount; read as version 2, then as version 1."""
        head = path.partition("/")[0] + "/"
        mounts = _Mount(head, 2), _Mount(head, 1)
        failures: list[StoreFailure] = []
        for mount in mounts:
            found = self._read_in(client, mount, path)
            if not isinstance(found, StoreFailure):
                self._mounts[head] = mount
                return found
            if found.reach is FailureReach.STORE:
                return found
            failures.append(found)
        if all(failure.reach is not FailureReach.LOGIN for failure in failures):
            return failures[0]
        either = " or ".join(f'"{m.api_path(path)}" (KV version {m.version})' for m in mounts)
        return StoreFailure(
            FailureReach.LOGIN,
            f"{path}, or there is no such mount; its policy needs the capability read on {either}",
        )

    def _read_in(self, client: Any, mount: _Mount, path: str) -> Fields | StoreFailure:
        """Read a secret in a mount."""
        kv = client.secrets.kv
        read = kv.v1.read_secret
        if mount.version == 2:
            read = partial(kv.v2.read_secret_version, raise_on_deleted_version=True)
        name = path[len(mount.path) :]
        reply = self._request(partial(read, name, mount_point=mount.path.rstrip("/")))
        if isinstance(reply, StoreFailure):
            return _name_api_path(reply, mount, path)
        data = reply.get("data")
        if mount.version == 2 and isinstance(data, dict):
            data = data.get("data") if "metadata" in data else None
        if not isinstance(data, dict):
            return StoreFailure(FailureReach.SECRET, f"{mount.api_path(path)} holds no fields")
        return data

    # Tokens ---------------------------------------------------------------------------------------

    def _current_token(self) -> _Token | StoreFailure:
        """Return a valid token: the current one, renewed, or a new one."""
        with self._token_lock:
            held, now = self._token, self._clock()
            if held is None or (held.expires_at is not None and now >= held.expires_at):
                return self._keep(self._login())
            if held.renew_at is None or now < held.renew_at:
                return held
            newer = self._renew(held)
            # If renewing failed, the old one is still valid for some time.
            return held if isinstance(newer, StoreFailure) else self._keep(newer)

    def _relogin(self, refused: _Token) -> _Token | StoreFailure | None:
        """Return another token than the rejected one; None: there is no other."""
        with self._token_lock:
            if self._token is not None and self._token is not refused:
                return self._token  # another thread was faster
            newer = self._login()
            if isinstance(newer, _Token) and newer.value == refused.value:
                return None
            return self._keep(newer)

    def _keep(self, newer: _Token | StoreFailure) -> _Token | StoreFailure:
        if isinstance(newer, _Token):
            self._token = newer
        return newer

    def _renew(self, held: _Token) -> _Token | StoreFailure:
        """Renew the token, or log in again if it cannot be renewed."""
        asked_at = self._clock()
        reply: Mapping[str, Any] | StoreFailure = StoreFailure(
            FailureReach.SECRET, "it cannot be renewed"
        )
        if held.renewable:
            reply = self._request_once(held, lambda client: client.auth.token.renew_self())
        if not isinstance(reply, StoreFailure):
            return held.with_lifetime(asked_at, reply.get("auth") or {}, "lease_duration")
        gone = reply.reach is not FailureReach.STORE and self._settings.login.mount is not None
        return self._login() if gone else reply

    def _login(self) -> _Token | StoreFailure:
        """Log in as the settings say; credential files are read now."""
        login = self._settings.login
        parts: dict[str, str] = {}
        for name, source in login.parts.items():
            value = _read_credential(source)
            if isinstance(value, StoreFailure):
                return value
            parts[name] = value.reveal()
        if login.mount is None:
            return self._use_token(Secret(parts["token"]), login.parts["token"].name)
        asked_at = self._clock()
        where = {"mount_point": login.mount, "use_token": False}
        methods: dict[str, Callable[[Any], Any]] = {
            "AppRole": lambda client: client.auth.approle.login(**parts, **where),
            "Kubernetes": lambda client: client.auth.kubernetes.login(login.role, **parts, **where),
            "JWT": lambda client: client.auth.jwt.jwt_login(
                login.role, **parts, use_token=False, path=login.mount
            ),
        }
        reply = self._request_once(None, methods[login.name], tuple(parts.values()))
        if isinstance(reply, StoreFailure):
            return self._login_failed(reply)
        auth = reply.get("auth") or {}
        if not isinstance(auth.get("client_token"), str):
            message = f"the {login.name} login at auth/{login.mount} returned no token"
            return StoreFailure(FailureReach.SECRET, message)
        role = login.role or (auth.get("metadata") or {}).get("role_name") or "(unnamed)"
        name = f"the {login.name} role {role} (token accessor {auth.get('accessor')})"
        token = _Token(Secret(auth["client_token"]), name)
        return token.with_lifetime(asked_at, auth, "lease_duration")

    def _use_token(self, value: Secret, source: str) -> _Token | StoreFailure:
        """Look up the lifetime and the accessor of a token from the settings."""
        token, asked_at = _Token(value, source), self._clock()
        reply = self._request_once(token, lambda client: client.auth.token.lookup_self())
        if isinstance(reply, StoreFailure):
            if reply.reach is not FailureReach.LOGIN:
                return reply
            # A policy may forbid just this look-up, so the token is tried anyway.
            why = "wrong, expired, revoked, or without the policy default"
            return replace(token, name=f"the token in {source} ({why}: Vault does not describe it)")
        data = reply.get("data") or {}
        named = replace(token, name=f"the token in {source} (accessor {data.get('accessor')})")
        return named.with_lifetime(asked_at, data, "ttl")

    def _login_failed(self, failure: StoreFailure) -> StoreFailure:
        if failure.reach is FailureReach.STORE:
            return failure
        login = self._settings.login
        role = f" as {login.role}" if login.role else ""
        sources = " and ".join(source.name for source in login.parts.values())
        return StoreFailure(
            FailureReach.SECRET,
            f"the {login.name} login{role} at auth/{login.mount} failed: {failure.message}; is the "
            f"method mounted there (VAULT_AUTH_MOUNT), and are {sources} right?",
        )

    # Requests -------------------------------------------------------------------------------------

    def _client(self, token: _Token | None) -> Any:
        """Make a client for one look-up; the caller closes its adapter.

        So no connection is stale at the next look-up, and none is shared with a forked child.
        """
        import hvac  # noqa: PLC0415 - an optional library

        settings = self._settings
        session = _make_session()
        session.verify, session.cert = settings.verify, settings.certificate
        session.max_redirects = MAX_REDIRECTS
        return hvac.Client(
            url=settings.address,
            token=token.value.reveal() if token else "",  # with None hvac looks for one itself
            verify=settings.verify,
            cert=settings.certificate,
            timeout=(min(CONNECT_TIMEOUT_S, settings.timeout_s), settings.timeout_s),
            namespace=settings.namespace,
            session=session,
        )

    def _request_once(
        self,
        token: _Token | None,
        method: Callable[[Any], Any],
        secrets: tuple[str, ...] = (),
    ) -> Mapping[str, Any] | StoreFailure:
        client = self._client(token)
        try:
            return self._request(method, client, secrets=secrets)
        finally:
            client.adapter.close()

    def _request(
        self, method: Callable[..., Any], *args: Any, secrets: tuple[str, ...] = ()
    ) -> Mapping[str, Any] | StoreFailure:
        """Call a method of hvac; *secrets* are values that no message may show.

        Nothing is raised, and no failure is made inside the handler: the exception, which holds
        the request, would become the context of later exceptions.
        """
        settings, failed = self._settings, None
        try:
            reply = method(*args)
        except Exception as error:
            token = (self._token.value.reveal(),) if self._token else ()
            failed = failure_of_error(error, settings, (*token, *secrets))
        if failed is not None:
            return failed
        if isinstance(reply, dict):
            return reply
        if reply is None:  # hvac's `read` of a path without a secret
            return StoreFailure(FailureReach.SECRET, "there is no such secret")
        if getattr(reply, "is_redirect", False):
            return failure_of_redirect(settings, reply.headers["Location"])
        return not_vault(settings)


def _make_session() -> Any:
    """Make a session that sends token and login to one server only."""
    from requests import Response, Session  # noqa: PLC0415 - comes with hvac

    class OneServer(Session):
        def get_redirect_target(self, resp: Response) -> Any:
            """Follow no redirect to another server, which would get token and login."""
            target = super().get_redirect_target(resp)
            if target is None or _origin(urljoin(resp.url, target)) == _origin(resp.url):
                return target
            return None

    session = OneServer()
    # Otherwise requests sends what ~/.netrc has for this host, or for any host.
    session.auth = lambda request: request
    return session


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return parts.scheme, parts.hostname, port


def _read_credential(source: CredentialSource) -> Secret | StoreFailure:
    """Read a part of the login; no message shows its value."""
    value = source.value
    if source.path is not None:
        try:
            value = Secret(source.path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            return _unreadable(source, getattr(error, "strerror", None) or "it is no text")
    if value is None or not _PRINTABLE.fullmatch(value.reveal()):
        why = "it holds a blank or a character that is not ASCII" if value else "it is empty"
        return StoreFailure(FailureReach.SECRET, f"{source.name} cannot be used: {why}")
    return value


def _unreadable(source: CredentialSource, why: str) -> StoreFailure:
    message = f"{source.name} cannot be read: {why}"
    if source.name.endswith("/.vault-token"):
        message += (
            "; say who this program is: VAULT_TOKEN, VAULT_TOKEN_FILE, VAULT_ROLE_ID with "
            "VAULT_SECRET_ID, VAULT_K8S_ROLE, or VAULT_JWT_ROLE with VAULT_JWT"
        )
    return StoreFailure(FailureReach.SECRET, message)


def _name_api_path(failure: StoreFailure, mount: _Mount, path: str) -> StoreFailure:
    """Name the path as in the API and in policies."""
    api = mount.api_path(path)
    doubled = mount.version == 2 and path.startswith(f"{mount.path}data/")
    hint = '; leave out "data/" after the mount, it is put in by itself' if doubled else ""
    if failure.reach is FailureReach.LOGIN:
        needs = f'path "{api}" {{ capabilities = ["read"] }}'
        return StoreFailure(FailureReach.LOGIN, f"{api}; its policy needs: {needs}{hint}")
    if failure.reach is FailureReach.SECRET:
        return StoreFailure(FailureReach.SECRET, f"{failure.message} ({api}){hint}")
    return failure


def _parse_ref(ref: str, key_id: str) -> _Ref | None:
    """Parse `vault://MOUNT/path#field`; the field defaults to the key id; None: it is invalid.

    Blanks and other special characters may be percent-encoded.
    """
    path, _, field = ref.removeprefix(SCHEME).partition("#")
    normal = normalize_path(unquote(path))
    return _Ref(normal, unquote(field) or key_id) if normal else None


def _take_field(key_id: str, ref: _Ref, found: Fields | StoreFailure) -> Secret | SecretError:
    """Return the field of a key, or why there is none."""
    if isinstance(found, StoreFailure):
        return _key_error(key_id, ref, found.message)
    value = found.get(ref.field)
    if isinstance(value, str) and (secret := Secret(value)):
        return secret
    if ref.field not in found:
        return _key_error(
            key_id, ref, f"the secret has no such field; {_field_names(ref.field, found)}"
        )
    if isinstance(value, str):
        return _key_error(key_id, ref, "its value is empty")
    kind = _TYPES.get(type(value), "null")
    return _key_error(key_id, ref, f"its value is {kind}; allowed: a text")


def _field_names(field: str, found: Fields) -> str:
    """List the fields of the secret: their names are not secret."""
    if not found:
        return "it has none at all"
    names = sorted(found)
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"it has: {', '.join(names[:MAX_NAMES])}{more}.{did_you_mean(field, names)}"


def _key_error(key_id: str, ref: _Ref, message: str) -> SecretError:
    return SecretError(mask_keys(f"key {key_id}: {SCHEME}{ref.path}#{ref.field}: {message}"))


def _ref_error(key_id: str, text: str) -> SecretError:
    return SecretError(
        f"key {key_id}: found the place {display(text)}; allowed: vault://MOUNT/path/of/secret#field"
    )
