"""Parses Redis URLs: servers, TLS, database.

    redis://[user:password@]host[:port][/db]            rediss:// is the same over TLS
    unix://[user:password@]/path/to/socket[?db=0]
    redis+cluster://[user:password@]host[:port],host…   any nodes of the cluster
    redis+sentinel://[user:password@]host[:port],host…/master[/db]
                                                        the sentinels, and the name of the master

`rediss+cluster://` and `rediss+sentinel://` exist too. The user and password are the data
servers'; those of sentinels, if any, are the options `sentinel_username` and
`sentinel_password`. Other options, after `?`: `db`, `client_name`, `socket_timeout` (seconds, 0.2);
and over TLS, for sentinels too, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`
(`required` or `none`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...errors import ConfigError

__all__ = ["Address", "RedisUrl", "check_url", "parse_url"]

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CERT_REQS = ("required", "optional", "none")
_TLS_OPTIONS = (*_FILES, "ssl_cert_reqs")

Address = tuple[str, int]
"""Host and port; for a socket its path and 0."""

TIMEOUT_S = 0.2
_OPTIONS = ("client_name", *_TLS_OPTIONS)
_SENTINEL = ("sentinel_username", "sentinel_password")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/]+)(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed Redis URL."""

    kind: str
    """`one`, `unix`, `cluster` or `sentinel`."""
    nodes: tuple[Address, ...]
    """The server; or some nodes of the cluster; or the sentinels."""
    tls: bool = False
    master: str = ""
    timeout_s: float = TIMEOUT_S
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """For connections to data servers: db, user, password, certificates."""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def passwords(self) -> Iterator[str]:
        """Yield the passwords; a user without a password may be a token."""
        for options in (self.options, self.sentinel_options):
            secret = options.get("password") or options.get("username")
            if secret:
                yield secret

    def redact(self, text: str) -> str:
        """Replace passwords in a message of the server."""
        for password in self.passwords:
            text = re.sub(rf"(?<!\w){re.escape(password)}(?!\w)", "[redacted]", text)
        return text

    def __str__(self) -> str:
        """Return the URL without credentials."""
        nodes = ",".join(f"{host}:{port}" if port else host for host, port in self.nodes)
        base = "rediss" if self.tls else "redis"
        scheme = {"one": base, "unix": "unix"}.get(self.kind, f"{base}+{self.kind}")
        return f"{scheme}://{nodes}" + (f"/{self.master}" if self.master else "")


def parse_url(url: str, variable: str = "KEYROT_STATE_URL") -> RedisUrl:
    """Parse a Redis URL.

    Args:
        url: The URL.
        variable: The setting that has it, for messages.

    Raises:
        ConfigError: The URL is wrong; the message has no password.
    """
    try:
        parts = urlsplit(url)
        return _read(parts, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query))))
    except ValueError as error:
        what = str(error) if isinstance(error, _WrongUrlError) else "it cannot be read"
        raise _refusal(url, variable, what) from None


def check_url(url: str, variable: str) -> None:
    """Check a Redis URL and the files that it names.

    Raises:
        ConfigError: It is wrong, or a file cannot be read.
    """
    options = parse_url(url, variable).options
    for name in _FILES:
        if name in options:
            try:
                with Path(options[name]).open("rb") as file:
                    file.read(1)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                what = f"{name} cannot be read: {options[name]!r}: {why}"
                raise _refusal(url, variable, what) from None


def _refusal(url: str, variable: str, what: str) -> ConfigError:
    scheme = url.partition("://")[0] if "://" in url else "…"
    return ConfigError(
        f"{variable} ({scheme}://…): {what}. Allowed: "
        "redis://[user:password@]host:6379/0, rediss://…, unix:///path/to/socket, "
        "redis+cluster://host:port,host:port, redis+sentinel://host:port,host:port/master-name/0."
    )


class _WrongUrlError(ValueError):
    """What is wrong, without secrets."""


def _read(parts: SplitResult, query: dict[str, str]) -> RedisUrl:
    base, _, kind = parts.scheme.partition("+")
    kind = kind or ("unix" if base == "unix" else "one")
    credentials, _, hosts = parts.netloc.rpartition("@")
    master, db = _path(kind, parts.path)
    sentinel_options = {
        name.removeprefix("sentinel_"): query.pop(name) for name in _SENTINEL if name in query
    }
    timeout_s = _seconds(query.pop("socket_timeout", str(TIMEOUT_S)))
    options, tls = _options(kind, credentials, query, db), base == "rediss"
    tls_options = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    _check_tls_options(tls_options, tls=tls)
    nodes = ((unquote(parts.path), 0),) if kind == "unix" else _nodes(kind, hosts)
    return RedisUrl(
        kind=kind,
        nodes=nodes,
        tls=tls,
        master=master,
        timeout_s=timeout_s,
        options=options,
        sentinel_options={**tls_options, **sentinel_options},
    )


def _check_tls_options(options: Mapping[str, str], *, tls: bool) -> None:
    if options and not tls:
        name = next(iter(options))
        raise _WrongUrlError(f"its option {name} is for TLS, which has rediss:// in the scheme")
    checks = options.get("ssl_cert_reqs", "required")
    if checks not in _CERT_REQS:
        allowed = ", ".join(_CERT_REQS)
        raise _WrongUrlError(f"ssl_cert_reqs is {checks[:40]!r}; it can be {allowed}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise _WrongUrlError("ssl_keyfile needs ssl_certfile")


def _path(kind: str, path: str) -> tuple[str, str]:
    """Return the master's name and the database number from the path."""
    if kind == "unix":
        if not path.strip("/"):
            raise _WrongUrlError("it names no socket")
        return "", "0"
    words = [unquote(word) for word in path.split("/") if word]
    master = words.pop(0) if kind == "sentinel" and words else ""
    if kind == "sentinel" and not master:
        raise _WrongUrlError("the name of the sentinels' master is missing")
    if len(words) > 1 or (words and kind == "cluster"):
        raise _WrongUrlError("its path is too long")
    return master, words[0] if words else "0"


def _nodes(kind: str, hosts: str) -> tuple[Address, ...]:
    nodes = []
    for text in hosts.split(","):
        match = _HOST.fullmatch(unquote(text))
        if match is None or not 0 < int(match[2] or 1) < 65536:
            raise _WrongUrlError("a host is missing or invalid")
        port = int(match[2] or (26379 if kind == "sentinel" else 6379))
        host = match[1].strip("[]")
        host.encode("idna")  # as the resolver does; a ValueError if it cannot be a host name
        nodes.append((host, port))
    if kind == "one" and len(nodes) > 1:
        raise _WrongUrlError("several hosts need redis+cluster:// or redis+sentinel://")
    return tuple(nodes)


def _options(kind: str, credentials: str, query: dict[str, str], db: str) -> dict[str, Any]:
    user, _, password = credentials.partition(":")
    db = query.pop("db", db)
    unknown = sorted(set(query) - set(_OPTIONS))
    if unknown:
        raise _WrongUrlError(f"it has an unknown option {unknown[0][:40]!r}")
    if not db.isdecimal() or (kind == "cluster" and int(db)):
        raise _WrongUrlError("the database must be a number, and 0 in a cluster")
    options: dict[str, Any] = {**query, "db": int(db)}
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    return options


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise _WrongUrlError("socket_timeout must be a number of seconds up to 60")
    return seconds
