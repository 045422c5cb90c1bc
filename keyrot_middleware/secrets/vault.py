"""Keys in HashiCorp Vault or OpenBao, over `hvac.Client`: secrets engine KV, version 1 or 2.

    vault://MOUNT/path/of/secret#field

Version 2 keeps the secret `team/a` of the mount `secret` at `secret/data/team/a`, with its fields
one level deeper; the server shows the version of a mount to every token that may read something in
it. See docs/stores/vault.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hvac
from hvac.exceptions import Forbidden, VaultDown, VaultError

from ..core.text import display
from ..errors import ConfigError, SecretError
from .base import PlainText, Secret
from .remote import CONNECT_TIMEOUT_S, RemoteStore, Unreadable

_ADDRESS = re.compile(r"https?://[^/\s?#]+(/[^\s?#]*)?", re.IGNORECASE)
_LOOPBACK = re.compile(r"http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?(/.*)?", re.IGNORECASE)
_KUBERNETES_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,9})?")
_TRUE = ("1", "t", "true")


def open_vault(environ: Mapping[str, str]) -> VaultStore:
    """Open the store; the first look-up sends the first request.

    Raises:
        ConfigError: `VAULT_ADDR` or `VAULT_CLIENT_TIMEOUT` is not allowed.
    """
    address = environ.get("VAULT_ADDR", "").strip()
    plain = address.lower().startswith("http:") and not _LOOPBACK.fullmatch(address)
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
    """Reads keys from one Vault server with one identity."""

    scheme = "vault"

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read with the server and the login that the variables of *environ* name."""
        given = {name: PlainText(value.strip()) for name, value in environ.items()}
        self._environ = {name: value for name, value in given.items() if value}
        place = self._environ.get("KEYROT_VAULT_PLACE", "secret/keyrot").removeprefix("vault://")
        super().__init__(place.strip("/"))
        seconds = self._environ.get("VAULT_CLIENT_TIMEOUT", "5").removesuffix("s")
        if not _SECONDS.fullmatch(seconds):
            raise ConfigError(
                f"VAULT_CLIENT_TIMEOUT: found {display(seconds)}; allowed: seconds, such as 5."
            )
        self._timeout_s = float(seconds)

    def connect(self) -> Any:
        """Log in by the first of these whose variables are set; files are read now."""
        found = self._environ.get
        key = found("VAULT_CLIENT_CERT"), found("VAULT_CLIENT_KEY")
        trust_all = found("VAULT_SKIP_VERIFY", "").lower() in _TRUE
        client = hvac.Client(
            url=found("VAULT_ADDR"),
            token=self._given("VAULT_TOKEN"),  # None: hvac reads ~/.vault-token
            cert=key if all(key) else None,
            verify=not trust_all and (found("VAULT_CACERT") or found("VAULT_CAPATH") or True),
            timeout=(min(CONNECT_TIMEOUT_S, self._timeout_s), self._timeout_s),
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

    def read(self, client: Any, name: str) -> Mapping[str, object]:
        """Return the fields of a secret."""
        name = name.strip("/")
        try:
            mount, version = self._mount(client, name)
            path = f"{mount}data/{name.removeprefix(mount)}" if version == "2" else name
            data = _data(client, path)
        except VaultDown:
            raise
        except VaultError as error:
            raise Unreadable(type(error).__name__) from None
        fields = data.get("data") if version == "2" else data
        if not isinstance(fields, Mapping):
            raise Unreadable("InvalidPath")
        return fields

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; then renew a token of the settings, which no login replaces."""
        found = super().resolve(refs)
        if self._client is not None and "VAULT_TOKEN" in self._environ:
            with suppress(Exception):
                self._client.auth.token.renew_self()
        return found

    def _mount(self, client: Any, name: str) -> tuple[str, str]:
        """Return the mount of a path and its version; version 2 where the server hides it."""
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
