"""The variables that configure the Vault store; most are those of Vault's own command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.text import display, mask_url
from ..errors import ConfigError
from .base import Secret

__all__ = ["SCHEME", "Credential", "Login", "VaultSettings", "normalize_path", "read_settings"]

SCHEME = "vault://"

_KUBERNETES_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)s?")
_ADDRESS = re.compile(r"https?://[^/\s?#]+(/[^\s?#]*)?", re.IGNORECASE)
_LOOPBACK = re.compile(r"http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?(/.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credential:
    """A part of the login: a value, or a file.

    A file is read at each login, because its owner (a Vault agent, Kubernetes) rewrites it from
    time to time.
    """

    name: str
    """For messages: the variable, or the path of the file."""
    value: Secret | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """A way to get a token.

    Attributes:
        method: For messages.
        mount: Of the auth method, without `auth/`; None: the one credential is the token itself.
        credentials: The secret fields of the request.
        role: The role, if the method takes one; not secret.
    """

    method: str
    mount: str | None
    credentials: Mapping[str, Credential]
    role: str | None = None


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """The server, how it is trusted, the login, and the default place of keys."""

    address: str = field(repr=False)
    login: Login
    place: str
    namespace: str | None
    verify: bool | str
    """As in requests: a CA file or directory; True: the usual CAs; False: trust all."""
    certificate: tuple[str, str] | None
    """The files of the client certificate and its key."""
    timeout_s: float
    """For one response."""

    @property
    def server(self) -> str:
        """The server for messages, without a password in its address."""
        space = f", namespace {self.namespace}" if self.namespace else ""
        return f"Vault at {mask_url(self.address)}{space}"


def read_settings(environ: Mapping[str, str]) -> VaultSettings:
    """Read and validate the variables; no file is read.

    Raises:
        ConfigError: It names the variable, its value (never a secret) and what is allowed.
    """
    found = {name: value.strip() for name, value in environ.items() if value and value.strip()}
    login = _read_login(found)
    certificate, key = found.get("VAULT_CLIENT_CERT"), found.get("VAULT_CLIENT_KEY")
    if bool(certificate) != bool(key):
        raise ConfigError("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY: set both, or neither.")
    trust_all = _read_flag(found, "VAULT_SKIP_VERIFY")
    return VaultSettings(
        address=_read_address(found),
        login=login,
        place=_read_place(found.get("KEYROT_VAULT_PLACE", "secret/keyrot")),
        namespace=found.get("VAULT_NAMESPACE", "").strip("/") or None,
        verify=not trust_all and (found.get("VAULT_CACERT") or found.get("VAULT_CAPATH") or True),
        certificate=(certificate, key) if certificate and key else None,
        timeout_s=_read_timeout(found.get("VAULT_CLIENT_TIMEOUT", "5")),
    )


def normalize_path(path: str) -> str | None:
    """Return a path of mount and secret without empty segments; None: it is invalid."""
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or {".", ".."} & set(parts) or _CONTROL.search(path):
        return None
    return "/".join(parts)


def _read_address(found: Mapping[str, str]) -> str:
    value = found.get("VAULT_ADDR", "")
    if not _ADDRESS.fullmatch(value):
        raise ConfigError(
            f"VAULT_ADDR: found {display(value) if value else 'nothing'}; allowed: the address of "
            "the server, https://host:port."
        )
    plain = value.lower().startswith("http:") and not _LOOPBACK.fullmatch(value)
    if plain and not _read_flag(found, "KEYROT_VAULT_ALLOW_HTTP"):
        raise ConfigError(
            f"VAULT_ADDR: found {display(value)}; allowed: https://. Over http:// everyone on "
            "the way reads the token and the keys; KEYROT_VAULT_ALLOW_HTTP=true allows it."
        )
    return value.rstrip("/")


def _read_place(value: str) -> str:
    place = normalize_path(value.removeprefix(SCHEME))
    if place is None or "#" in value:
        raise ConfigError(
            f"KEYROT_VAULT_PLACE: found {display(value)}; allowed: MOUNT/path/of/secret, such as "
            "secret/keyrot (the field is the key id)."
        )
    return place


def _read_flag(found: Mapping[str, str], name: str) -> bool:
    value = found.get(name, "").lower()
    if value not in ("1", "t", "true", "", "0", "f", "false"):
        raise ConfigError(f"{name}: found {display(value)}; allowed: true, false.")
    return value in ("1", "t", "true")


def _read_timeout(value: str) -> float:
    match = _SECONDS.fullmatch(value)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"VAULT_CLIENT_TIMEOUT: found {display(value)}; allowed: seconds, more than 0, such as "
            "5."
        )
    return float(match[1])


def _read_login(found: Mapping[str, str]) -> Login:
    """Return the first login in this order whose variables are set."""
    mount = found.get("VAULT_AUTH_MOUNT", "").strip("/").removeprefix("auth/")
    if "VAULT_TOKEN" in found:
        token = Credential("VAULT_TOKEN", value=Secret(found["VAULT_TOKEN"]))
        return Login("token", None, {"token": token})
    role_id = _find_credential(found, "VAULT_ROLE_ID")
    secret_id = _find_credential(found, "VAULT_SECRET_ID")
    jwt = _find_credential(found, "VAULT_JWT")
    if role_id:  # a role may need no secret id
        parts = {"role_id": role_id, **({"secret_id": secret_id} if secret_id else {})}
        return Login("AppRole", mount or "approle", parts)
    if "VAULT_K8S_ROLE" in found:
        parts = {"jwt": _credential_file(found, "VAULT_K8S_TOKEN_FILE", _KUBERNETES_TOKEN)}
        return Login("Kubernetes", mount or "kubernetes", parts, found["VAULT_K8S_ROLE"])
    if "VAULT_JWT_ROLE" in found and jwt:
        return Login("JWT", mount or "jwt", {"jwt": jwt}, found["VAULT_JWT_ROLE"])
    if "VAULT_JWT_ROLE" in found:
        raise ConfigError(
            "VAULT_JWT_ROLE is set and VAULT_JWT is not: set it (or VAULT_JWT_FILE) too."
        )
    if secret_id:
        raise ConfigError(
            "VAULT_SECRET_ID is set and VAULT_ROLE_ID is not: set it (or VAULT_ROLE_ID_FILE) too."
        )
    if jwt:
        raise ConfigError("VAULT_JWT is set and VAULT_JWT_ROLE is not: set it too.")
    return Login(
        "token", None, {"token": _credential_file(found, "VAULT_TOKEN_FILE", "~/.vault-token")}
    )


def _find_credential(found: Mapping[str, str], name: str) -> Credential | None:
    """Return the variable, else the file that the variable with _FILE names."""
    if name in found:
        return Credential(name, value=Secret(found[name]))
    return _credential_file(found, f"{name}_FILE") if f"{name}_FILE" in found else None


def _credential_file(found: Mapping[str, str], variable: str, usual: str = "") -> Credential:
    path = Path(found.get(variable, usual)).expanduser()
    return Credential(str(path), path=path)
