"""The parts of a Redis URL, and the errors for a wrong one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from support.pool import key
from support.servers import BINARIES, Server
from support.sync_async import AsyncClient, SyncClient

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.state import open_shared, open_state
from keyrot_middleware.state.redis import RedisState, parse_url


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "options"),
    [
        ("redis://host", "one", [("host", 6379)], {"db": 0}),
        ("redis://host:7000/5", "one", [("host", 7000)], {"db": 5}),
        (
            "redis://host?db=2&client_name=me",
            "one",
            [("host", 6379)],
            {"db": 2, "client_name": "me"},
        ),
        (
            "redis://u:p%40%3A@[::1]:7000/0",
            "one",
            [("::1", 7000)],
            {"username": "u", "password": "p@:"},
        ),
        ("redis://:p@host", "one", [("host", 6379)], {"password": "p"}),
        (
            "rediss://host?ssl_ca_certs=/ca.pem",
            "one",
            [("host", 6379)],
            {"ssl_ca_certs": "/ca.pem"},
        ),
        ("unix:///run/redis.sock?db=3", "unix", [("/run/redis.sock", 0)], {"db": 3}),
        (
            "unix://u:p@/run/r.sock",
            "unix",
            [("/run/r.sock", 0)],
            {"username": "u", "password": "p"},
        ),
        ("redis+cluster://a:1,b:2,c", "cluster", [("a", 1), ("b", 2), ("c", 6379)], {"db": 0}),
        ("rediss+cluster://u:p@a", "cluster", [("a", 6379)], {"username": "u"}),
        ("redis+sentinel://s1,s2:1/main/4", "sentinel", [("s1", 26379), ("s2", 1)], {"db": 4}),
        ("rediss+sentinel://s1/main", "sentinel", [("s1", 26379)], {"db": 0}),
    ],
)
def test_a_url_is_parsed_into_servers_and_options(
    url: str, kind: str, nodes: list[Any], options: dict[str, Any]
) -> None:
    """Hosts, ports, database, credentials and certificates, for each kind of URL."""
    place = parse_url(url)
    assert (place.kind, list(place.nodes)) == (kind, nodes)
    assert place.options.items() >= options.items()
    assert place.tls == url.startswith("rediss")
    assert place.master == ("main" if kind == "sentinel" else "")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://", "a host is missing"),
        ("redis://:secret@", "a host is missing"),
        ("redis://:secret@host:99999", "a host is missing or invalid"),
        ("redis://:secret@a,b", r"redis\+cluster:// or redis\+sentinel://"),
        ("redis://:secret@host/zero", "database must be a number"),
        ("redis://:secret@host/0/1", "path is too long"),
        ("redis://:secret@host?retry=yes", "unknown option 'retry'"),
        ("redis://:secret@host?socket_timeout=soon", "socket_timeout must be"),
        ("redis://:secret@host?socket_timeout", "cannot be read"),
        ("redis://:secret@[::1", "cannot be read"),
        ("redis+cluster://:secret@host/1", "path is too long"),
        ("redis+cluster://:secret@host?db=1", "0 in a cluster"),
        ("redis+sentinel://:secret@host", "the name of the sentinels' master is missing"),
        ("redis+other://:secret@host", "no state backend for"),
        ("unix://:secret@", "names no socket"),
        ("redis://:secret@a..b", "cannot be read"),
        (
            "redis://:secret@host?ssl_cert_reqs=none",
            "ssl_cert_reqs is for TLS, which has rediss://",
        ),
        ("unix://:secret@/s?ssl_keyfile=/k", "ssl_keyfile is for TLS"),
        (
            "rediss://:secret@host?ssl_cert_reqs=maybe",
            "'maybe'; it can be required, optional, none",
        ),
        ("rediss://:secret@host?ssl_keyfile=/k", "ssl_keyfile needs ssl_certfile"),
        ("rediss+sentinel://:secret@s/m?ssl_ca_certs=/none/ca.pem", "ssl_ca_certs cannot be read"),
        ("rediss://:secret@host?ssl_certfile=/none/c.pem", "'/none/c.pem': No such file"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_its_password(url: str, complaint: str) -> None:
    """The error comes at once: what is wrong, what is allowed, and no credentials."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        open_state(url, RetryPolicy(), time.time)
    assert "llowed: " in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_parsed_url_shows_no_credentials() -> None:
    """Its text and its repr, which appear in logs, are without user and password."""
    for url in ("redis://me:pw1@h/1", "redis+sentinel://me:pw1@h/m?sentinel_password=pw2"):
        place = parse_url(url)
        assert not {"me", "pw1", "pw2"} & set(str(place).replace("/", ":").split(":"))
        assert "pw" not in repr(place)


@pytest.mark.parametrize(
    "url", ["redis://h:1", "rediss://h:1", "rediss+cluster://h:1", "rediss+sentinel://h:1/m"]
)
def test_a_parsed_url_shows_whether_it_uses_tls(url: str) -> None:
    """The log shows the scheme of the URL."""
    assert str(parse_url(url)) == url


def test_a_refusal_names_the_variable_in_which_the_url_stands() -> None:
    """An error of REDIS_URL does not name KEYROT_STATE_URL."""
    for url in ("redis://h?retry=yes", "rediss://h?ssl_ca_certs=/none/ca.pem", "other://h"):
        with pytest.raises(ConfigError, match=r"^REDIS_URL\b"):
            open_shared(url, RetryPolicy(), time.time, variable="REDIS_URL")


def test_a_unix_socket_serves(tmp_path: Path) -> None:
    """unix:// reaches a server that listens on a socket."""
    path = tmp_path / "s"
    own = Server(BINARIES["valkey"], "--unixsocket", str(path))
    try:
        state = open_state(f"unix://{path}", RetryPolicy(), time.time)
        for client in (SyncClient(state), AsyncClient(state)):
            assert _runs(client) is not None
        state.close()
    finally:
        own.remove()


def _runs(client: Any) -> Any:
    async def work() -> Any:
        lease = await client.acquire_lease(key("a"))
        await client.settle(lease)
        return lease

    return asyncio.run(work())


def test_a_state_opened_by_name_is_of_its_pool() -> None:
    """open_state passes the pool's name on."""
    state = open_shared("redis://localhost", RetryPolicy(), time.time, pool="blue")
    assert isinstance(state, RedisState)
    assert not state.is_local
