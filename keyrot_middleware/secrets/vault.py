"""Keys in HashiCorp Vault or OpenBao, over `hvac.Client`: secrets engine KV, version 1 or 2.

    vault://MOUNT/path/of/secret#field

A look-up reads each path once, however many keys are fields of it. Version 2 keeps the secret
`team/a` of the mount `secret` at `secret/data/team/a`, with its fields one level deeper; the server
shows the version of a mount to every token that may read something in it. See docs/stores/vault.md.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from ..core.text import did_you_mean, display, mask_keys
from ..errors import SecretError
from .base import Secret, SecretStore
from .cloud import CONNECT_TIMEOUT_S, SecretRef, StoreFailure, require_extra, resolve_refs
from .vault_errors import (
    DeniedError,
    OutageError,
    RequestFailedError,
    UnreadableError,
    explain,
    explain_reply,
)
from .vault_settings import SCHEME, Credential, VaultSettings, normalize_path, read_settings

__all__ = ["VaultStore", "open_vault"]

RENEW_AFTER = 2 / 3
"""Part of a token's lifetime after which it is renewed, as by Vault's agent."""
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
_NO_LOGIN = (
    "; say who this program is: VAULT_TOKEN, VAULT_TOKEN_FILE, VAULT_ROLE_ID with VAULT_SECRET_ID, "
    "VAULT_K8S_ROLE, or VAULT_JWT_ROLE with VAULT_JWT"
)
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
    """A token and its lifetime; times are on the store's clock, in seconds."""

    value: Secret
    name: str
    """For messages: the role or the accessor, never the token."""
    renewable: bool = False
    renew_at: float = inf
    expires_at: float = inf

    def with_lifetime(self, since: float, seconds: object, renewable: object) -> _Token:
        """Return the token with a lifetime that the server reported; 0: it does not expire."""
        if not isinstance(seconds, int) or seconds <= 0:
            return _Token(self.value, self.name)
        return replace(
            self,
            renewable=renewable is True,
            renew_at=since + seconds * RENEW_AFTER,
            expires_at=since + seconds,
        )


class VaultStore:
    """Reads keys from one Vault server with one identity; safe from several threads.

    It keeps its token between look-ups, and no connection: a kept one would be stale at the next
    look-up, or shared with a forked child.
    """

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
        return resolve_refs(refs, self._parse_ref, self._read_paths, _take_field)

    def _parse_ref(self, key_id: str, ref: str | None) -> SecretRef | str:
        """Parse a place; blanks and other special characters may be percent-encoded."""
        ref = ref or self.place(key_id)
        path, _, field = ref.removeprefix(SCHEME).partition("#")
        name, field = normalize_path(unquote(path)), unquote(field) or key_id
        if name is None:
            return f"found the place {display(ref)}; allowed: vault://MOUNT/path/of/secret#field"
        return SecretRef(name, mask_keys(f"{SCHEME}{name}#{field}"), field)

    # Reading ------------------------------------------------------------------------------------

    def _read_paths(self, paths: Iterable[str]) -> dict[str, Fields | StoreFailure]:
        """Read the paths; if the token of an earlier look-up is denied, log in again once."""
        client, again = self._open_client(), ""
        with closing(client.adapter):
            try:
                earlier = self._token
                token = self._authenticate(client)
            except RequestFailedError as error:
                return dict.fromkeys(paths, StoreFailure(error.reach, str(error)))
            found, denied = self._read_each(client, paths)
            if denied and token is earlier:
                try:
                    token = self._authenticate(client, denied=token)
                except RequestFailedError as error:
                    again = f"; logging in again failed: {error}"
                else:
                    more, denied = self._read_each(client, denied)
                    found |= more
        denies = f"{self._settings.server} denies {token.name} to read"
        for path, denial in denied.items():
            found[path] = StoreFailure(denial.reach, f"{denies} {denial}{again}")
        return found

    def _read_each(
        self, client: Any, paths: Iterable[str]
    ) -> tuple[dict[str, Fields | StoreFailure], dict[str, DeniedError]]:
        """Read the paths in turn; an outage ends that and is the answer for the rest."""
        found: dict[str, Fields | StoreFailure] = {}
        denied: dict[str, DeniedError] = {}
        for path in paths:
            try:
                found[path] = self._read(client, path)
            except DeniedError as error:
                denied[path] = error.with_traceback(None)
            except UnreadableError as error:
                found[path] = StoreFailure(error.reach, str(error))
            except OutageError as error:
                failure = StoreFailure(error.reach, str(error))
                return {**dict.fromkeys(paths, failure), **found}, denied
        return found, denied

    def _read(self, client: Any, path: str) -> Fields:
        """Read the fields of a secret, in one request if its mount is known."""
        mount = self._known_mount(path) or self._find_mount(client, path)
        if mount is None:
            return self._try_both_versions(client, path)
        try:
            return self._read_in(client, mount, path)
        except DeniedError:
            raise
        except UnreadableError:
            # The mount may have been replaced, or upgraded to version 2.
            current = self._find_mount(client, path)
            if current is None or current == mount:
                raise
        return self._read_in(client, current, path)

    def _known_mount(self, path: str) -> _Mount | None:
        parts = path.split("/")
        heads = ("/".join(parts[:end]) + "/" for end in range(1, len(parts)))
        return next((self._mounts[head] for head in heads if head in self._mounts), None)

    def _find_mount(self, client: Any, path: str) -> _Mount | None:
        """Return the mount of a path; None: the server does not show it."""
        try:
            data = self._get(client, f"sys/internal/ui/mounts/{path}").get("data") or {}
        except UnreadableError:
            return None
        head, kind = str(data.get("path", "")), data.get("type")
        if not head.endswith("/") or not path.startswith(head):
            return None
        if kind not in ("kv", "generic"):
            raise UnreadableError(f"{head} is a mount of the type {kind}, and not kv")
        version = (data.get("options") or {}).get("version")
        mount = self._mounts[head] = _Mount(head, 2 if str(version) == "2" else 1)
        return mount

    def _try_both_versions(self, client: Any, path: str) -> Fields:
        """Take the first segment for the mount; read as version 2, then as version 1."""
        head = path.partition("/")[0] + "/"
        mounts = _Mount(head, 2), _Mount(head, 1)
        failures: list[UnreadableError] = []
        for mount in mounts:
            try:
                fields = self._read_in(client, mount, path)
            except UnreadableError as error:
                failures.append(error)
            else:
                self._mounts[head] = mount
                return fields
        if not any(isinstance(failure, DeniedError) for failure in failures):
            raise failures[0]
        either = " or ".join(f'"{m.api_path(path)}" (KV version {m.version})' for m in mounts)
        raise DeniedError(
            f"{path}, or there is no such mount; its policy needs the capability read on {either}"
        )

    def _read_in(self, client: Any, mount: _Mount, path: str) -> Fields:
        """Read a secret in a mount."""
        api_path = mount.api_path(path)
        doubled = mount.version == 2 and path.startswith(f"{mount.path}data/")
        hint = '; leave out "data/" after the mount, it is put in by itself' if doubled else ""
        try:
            data = self._get(client, api_path).get("data")
        except DeniedError:
            needs = f'path "{api_path}" {{ capabilities = ["read"] }}'
            raise DeniedError(f"{api_path}; its policy needs: {needs}{hint}") from None
        except UnreadableError as error:
            raise UnreadableError(f"{error} ({api_path}){hint}") from None
        if mount.version == 2 and isinstance(data, dict):
            data = data.get("data")
        if not isinstance(data, dict):
            raise UnreadableError(f"{api_path} holds no fields")
        return data

    # Tokens ---------------------------------------------------------------------------------------

    def _authenticate(self, client: Any, denied: _Token | None = None) -> _Token:
        """Set a valid token: the kept one, renewed in time, or a new one in place of *denied*."""
        with self._token_lock:
            now, token = self._clock(), self._token
            if token is None or token is denied or now >= token.expires_at:
                token = self._login(client)
                if denied and token.value == denied.value:
                    token = denied  # its name says more in messages
            elif now >= token.renew_at:
                with suppress(RequestFailedError):  # the kept one is still valid for some time
                    token = self._renew(client, token)
            self._token = token
        client.token = str(token.value.reveal())
        return token

    def _renew(self, client: Any, token: _Token) -> _Token:
        """Renew a token; log in again if it cannot be renewed and the login is not a token."""
        if token.renewable:
            asked_at, client.token = self._clock(), token.value.reveal()
            with suppress(UnreadableError):
                auth = self._request(client, client.auth.token.renew_self).get("auth") or {}
                seconds = auth.get("lease_duration")
                return token.with_lifetime(asked_at, seconds, auth.get("renewable"))
        return token if self._settings.login.mount is None else self._login(client)

    def _login(self, client: Any) -> _Token:
        """Log in as the settings say; credential files are read now."""
        login = self._settings.login
        values = {name: _read_credential(part) for name, part in login.credentials.items()}
        if login.mount is None:
            return self._describe_token(client, values["token"], login.credentials["token"].name)
        body = {"role": login.role, **values} if login.role else values
        asked_at, client.token = self._clock(), ""
        url = f"/v1/auth/{quote(login.mount)}/login"
        try:
            reply = self._request(
                client,
                lambda: client.adapter.login(url, use_token=False, json=body),
                secrets=tuple(values.values()),
            )
        except UnreadableError as error:
            role = f" as {login.role}" if login.role else ""
            names = " and ".join(part.name for part in login.credentials.values())
            raise UnreadableError(
                f"the {login.method} login{role} at auth/{login.mount} failed: {error}; is the "
                f"method mounted there (VAULT_AUTH_MOUNT), and are {names} right?"
            ) from None
        auth = reply.get("auth") or {}
        value = auth.get("client_token")
        if not isinstance(value, str):
            message = f"the {login.method} login at auth/{login.mount} returned no token"
            raise UnreadableError(message)
        role = login.role or (auth.get("metadata") or {}).get("role_name") or "(unnamed)"
        name = f"the {login.method} role {role} (token accessor {auth.get('accessor')})"
        token = _Token(Secret(value), name)
        return token.with_lifetime(asked_at, auth.get("lease_duration"), auth.get("renewable"))

    def _describe_token(self, client: Any, value: str, source: str) -> _Token:
        """Look up the lifetime and the accessor of a token from the settings."""
        asked_at, client.token = self._clock(), value
        try:
            data = self._request(client, client.auth.token.lookup_self).get("data") or {}
        except DeniedError:
            # A policy may forbid just this look-up, so the token is tried anyway.
            why = "wrong, expired, revoked, or without the policy default"
            name = f"the token in {source} ({why}: Vault does not describe it)"
            return _Token(Secret(value), name)
        token = _Token(Secret(value), f"the token in {source} (accessor {data.get('accessor')})")
        return token.with_lifetime(asked_at, data.get("ttl"), data.get("renewable"))

    # Requests -------------------------------------------------------------------------------------

    def _open_client(self) -> Any:
        """Make a client for one look-up; the caller closes its adapter."""
        import hvac  # noqa: PLC0415 - an optional library

        settings = self._settings
        client = hvac.Client(
            url=settings.address,
            token="",  # with None hvac looks for one itself
            verify=settings.verify,
            cert=settings.certificate,
            timeout=(min(CONNECT_TIMEOUT_S, settings.timeout_s), settings.timeout_s),
            namespace=settings.namespace,
            allow_redirects=False,  # another server would get token and login
        )
        # Otherwise requests sends what ~/.netrc has for this host, or for any host.
        client.session.auth = lambda request: request
        return client

    def _get(self, client: Any, path: str) -> dict[str, Any]:
        return self._request(client, lambda: client.adapter.get(f"/v1/{quote(path)}"))

    def _request(
        self, client: Any, send: Callable[[], Any], secrets: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Send a request; no message shows the token or *secrets*.

        Raises:
            RequestFailedError: Without the exception of hvac or requests as its context, which
                holds the request.
        """
        try:
            reply = send()
        except Exception as error:
            failure = explain(error, self._settings, (client.token, *secrets))
        else:
            if isinstance(reply, dict):
                return reply
            failure = explain_reply(reply, self._settings)
        raise failure


def _read_credential(part: Credential) -> str:
    """Read a part of the login; no message shows its value."""
    value = part.value
    if part.path is not None:
        try:
            value = Secret(part.path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            hint = _NO_LOGIN if part.name.endswith("/.vault-token") else ""
            raise UnreadableError(f"{part.name} cannot be read: {why}{hint}") from None
    text = str(value.reveal()) if value else ""
    if not _PRINTABLE.fullmatch(text):
        why = "it holds a blank or a character that is not ASCII" if text else "it is empty"
        raise UnreadableError(f"{part.name} cannot be used: {why}")
    return text


def _take_field(fields: Fields, field: str | None, key_id: str) -> Secret | str:
    """Return the field of a key, or why there is none; names of fields are not secret."""
    name = field or key_id
    value = fields.get(name)
    if isinstance(value, str):
        return Secret(value) or "its value is empty"
    if name in fields:
        return f"its value is {_TYPES.get(type(value), 'null')}; allowed: a text"
    names = sorted(fields)
    if not names:
        return "the secret has no such field; it has none at all"
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    listed = f"it has: {', '.join(names[:MAX_NAMES])}{more}.{did_you_mean(name, names)}"
    return mask_keys(f"the secret has no such field; {listed}")
