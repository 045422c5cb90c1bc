"""The variables that configure the Vault store; most are those of Vault's own command.

Nothing is read from disk here: a file that a variable names is read at each login, because its
owner (a Vault agent, Kubernetes) rewrites it from time to time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..core.text import display, mask_url
from ..errors import ConfigError
from .base import Secret
from .environ import only_in_file

__all__ = [
    "SCHEME",
    "CredentialSource",
    "Login",
    "VaultSettings",
    "normalize_path",
    "read_settings",
]

SCHEME = "vault://"

_KUBERNETES_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TRUE = ("1", "t", "true")
_FALSE = ("", "0", "f", "false")
_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)s?")
_ADDRESS = re.compile(r"https?://[^/\s?#]+(/[^\s?#]*)?", re.IGNORECASE)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")
_TRUST = (
    *("VAULT_CACERT", "VAULT_CAPATH", "VAULT_SKIP_VERIFY", "KEYROT_VAULT_ALLOW_HTTP"),
    *("VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY"),
)
"""How the server is trusted: read from where the address comes from."""


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """A variable or a file with a part of the login."""

    name: str
    """For messages: the variable, or the path of the file."""
    value: Secret | None = None
    path: Path | None = None
    variable: str = ""
    """The variable that may name the file."""


@dataclass(frozen=True, slots=True)
class Login:
    """A way to get a token.

    Attributes:
        name: For messages.
        mount: Of the auth method, without `auth/`; None: the one part is the token itself.
        parts: The secret fields of the request.
        role: The role, if the method takes one; not secret.
    """

    name: str
    mount: str | None
    parts: Mapping[str, CredentialSource]
    role: str | None = None


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """The server, how it is trusted, the login, and the default place of keys."""

    address: str = field(repr=False)
    login: Login
    place: str = "secret/keyrot"
    namespace: str | None = None
    verify: bool | str = True
    """As in requests: a CA file or directory; True: the usual CAs; False: trust all."""
    certificate: tuple[str, str] | None = None
    """The files of the client certificate and its key."""
    timeout_s: float = 5.0
    """For one response."""

    @property
    def server(self) -> str:
        """The server for messages, without a password in its address."""
        space = f", namespace {self.namespace}" if self.namespace else ""
        return f"Vault at {mask_url(self.address)}{space}"


def read_settings(environ: Mapping[str, str]) -> VaultSettings:
    """Read and validate the variables.

    Raises:
        ConfigError: It names the variable, its value (never a secret) and what is allowed.
    """
    found = {name: value.strip() for name, value in environ.items() if value and value.strip()}
    address_in_file = only_in_file(environ, "VAULT_ADDR")
    if not address_in_file:
        found = {n: v for n, v in found.items() if n not in _TRUST or not only_in_file(environ, n)}
    login = _login(found)
    if address_in_file:
        _refuse_ambient(login, environ)
    return VaultSettings(
        address=_address(found),
        login=login,
        place=_place(found.get("KEYROT_VAULT_PLACE", "secret/keyrot")),
        namespace=found.get("VAULT_NAMESPACE", "").strip("/") or None,
        verify=_verify(found),
        certificate=_certificate(found),
        timeout_s=_timeout(found.get("VAULT_CLIENT_TIMEOUT", "5")),
    )


def _refuse_ambient(login: Login, environ: Mapping[str, str]) -> None:
    """Do not send the machine's own login to an address that only `.env` names.

    A login in `.env` itself, or one that the environment names for this program, may be sent
    there; the file of another program, such as ~/.vault-token, may not.

    Raises:
        ConfigError: It names the file, and what to set.
    """
    for source in login.parts.values():
        if source.path is None:
            continue
        named = environ.get(source.variable, "").strip()
        if not named or only_in_file(environ, source.variable):
            raise ConfigError(
                f"VAULT_ADDR comes from .env, so {source.name} is not sent there; set VAULT_ADDR "
                "in the environment, or put the login itself into .env."
            )


def _address(found: Mapping[str, str]) -> str:
    value = found.get("VAULT_ADDR", "")
    if not _ADDRESS.fullmatch(value):
        raise ConfigError(
            f"VAULT_ADDR: found {display(value) if value else 'nothing'}; allowed: the address of "
            "the server, https://host:port."
        )
    if value.lower().startswith("http:") and not _flag(found, "KEYROT_VAULT_ALLOW_HTTP"):
        host = _host(value)
        if host is None or not _LOOPBACK.fullmatch(host):
            raise ConfigError(
                f"VAULT_ADDR: found {display(value)}; allowed: https://. Over http:// everyone on "
                "the way reads the token and the keys; KEYROT_VAULT_ALLOW_HTTP=true allows it."
            )
    return value.rstrip("/")


def normalize_path(path: str) -> str | None:
    """Return a path of mount and secret without empty segments; None: it is invalid."""
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or {".", ".."} & set(parts) or _CONTROL.search(path):
        return None
    return "/".join(parts)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place(value: str) -> str:
    place = normalize_path(value.removeprefix(SCHEME))
    if place is None or "#" in value:
        raise ConfigError(
            f"KEYROT_VAULT_PLACE: found {display(value)}; allowed: MOUNT/path/of/secret, such as "
            "secret/keyrot (the field is the key id)."
        )
    return place


def _verify(found: Mapping[str, str]) -> bool | str:
    if _flag(found, "VAULT_SKIP_VERIFY"):
        return False
    return found.get("VAULT_CACERT") or found.get("VAULT_CAPATH") or True


def _flag(found: Mapping[str, str], name: str) -> bool:
    value = found.get(name, "").lower()
    if value not in (*_TRUE, *_FALSE):
        raise ConfigError(f"{name}: found {display(value)}; allowed: true, false.")
    return value in _TRUE


def _timeout(value: str) -> float:
    match = _SECONDS.fullmatch(value)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"VAULT_CLIENT_TIMEOUT: found {display(value)}; allowed: seconds, more than 0, such as "
            "5."
        )
    return float(match[1])


def _certificate(found: Mapping[str, str]) -> tuple[str, str] | None:
    pair = found.get("VAULT_CLIENT_CERT"), found.get("VAULT_CLIENT_KEY")
    if pair[0] and pair[1]:
        return pair[0], pair[1]
    if pair[0] or pair[1]:
        raise ConfigError("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY: set both, or neither.")
    return None


def _login(found: Mapping[str, str]) -> Login:
    """Return the first login in this order whose variables are set."""
    if "VAULT_TOKEN" in found:
        return Login("token", None, {"token": _source(found, "VAULT_TOKEN")})
    mount = found.get("VAULT_AUTH_MOUNT", "").strip("/").removeprefix("auth/")
    if _has(found, "VAULT_ROLE_ID"):
        parts = {"role_id": _source(found, "VAULT_ROLE_ID")}
        if _has(found, "VAULT_SECRET_ID"):  # a role may need none
            parts["secret_id"] = _source(found, "VAULT_SECRET_ID")
        return Login("AppRole", mount or "approle", parts)
    if "VAULT_K8S_ROLE" in found:
        parts = {"jwt": _file(found, "VAULT_K8S_TOKEN_FILE", _KUBERNETES_TOKEN)}
        return Login("Kubernetes", mount or "kubernetes", parts, found["VAULT_K8S_ROLE"])
    if "VAULT_JWT_ROLE" in found:
        _need(found, "VAULT_JWT", beside="VAULT_JWT_ROLE")
        parts = {"jwt": _source(found, "VAULT_JWT")}
        return Login("JWT", mount or "jwt", parts, found["VAULT_JWT_ROLE"])
    for name, other in (("VAULT_SECRET_ID", "VAULT_ROLE_ID"), ("VAULT_JWT", "VAULT_JWT_ROLE")):
        if _has(found, name):
            _need(found, other, beside=name)
    return Login("token", None, {"token": _file(found, "VAULT_TOKEN_FILE", "~/.vault-token")})


def _has(found: Mapping[str, str], name: str) -> bool:
    return name in found or f"{name}_FILE" in found


def _need(found: Mapping[str, str], name: str, *, beside: str) -> None:
    if not _has(found, name):
        raise ConfigError(f"{beside} is set and {name} is not: set it (or {name}_FILE) too.")


def _source(found: Mapping[str, str], name: str) -> CredentialSource:
    """Return the variable, else the file that the variable with _FILE names."""
    if name in found:
        return CredentialSource(name, value=Secret(found[name]))
    return _file(found, f"{name}_FILE")


def _file(found: Mapping[str, str], variable: str, usual: str = "") -> CredentialSource:
    path = Path(found.get(variable, usual)).expanduser()
    return CredentialSource(str(path), path=path, variable=variable)
