"""Connections: reused, replaced, never sent a command twice, given up in time."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.pool import INFO, key
from support.redis_state import accept_loss
from support.servers import Server
from support.sync_async import AsyncClient, StateClient, SyncClient, failed, used
from support.timing import ONE, connections, quick

from keyrot_middleware.core.model import Limits, RetryPolicy, Scope
from keyrot_middleware.errors import MissingExtraError
from keyrot_middleware.state import open_state
from keyrot_middleware.state.base import DataLostError
from keyrot_middleware.state.redis import RedisState, RedisStateError

pytestmark = pytest.mark.usefixtures("within_a_minute")

_pools = count()


@pytest.fixture
def state(server: Server) -> Iterator[RedisState]:
    """Open a pool with a time limit that a busy machine keeps."""
    server.execute("CONFIG", "RESETSTAT")
    state = RedisState(
        f"{server.strict_url}?socket_timeout=1", RetryPolicy(), pool=f"lines-{next(_pools)}"
    )
    yield state
    state.close()


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, state: RedisState) -> StateClient:
    """Use its blocking methods, or its awaited ones."""
    client: StateClient = request.param(state)
    return client


async def test_one_connection_is_used_again(client: StateClient, server: Server) -> None:
    """A hundred calls one after another share two connections."""
    await client.settle(await client.acquire_lease(ONE))
    before = connections(server)
    for _ in range(100):
        await client.settle(await client.acquire_lease(ONE), used(3))
    assert connections(server) <= before + 2  # one for callers, one for what is deferred


async def test_a_server_without_the_scripts_is_sent_them_again(
    client: StateClient, server: Server
) -> None:
    """SCRIPT FLUSH between any two steps changes nothing, pending replies included."""
    for _ in range(3):
        server.execute("SCRIPT", "FLUSH")
        lease = await client.acquire_lease(ONE)
        server.execute("SCRIPT", "FLUSH")
        await client.settle(lease, used(20))
    server.execute("SCRIPT", "FLUSH")
    await client.settle(await client.acquire_lease(ONE), used(20))
    await client.acquire_lease(ONE)
    (known,) = client.state.snapshot([ONE])["a"].used
    assert (known.requests_minute, known.tokens_minute) == (5, 4 * 20 + INFO.tokens)


async def test_the_first_deferred_settle_runs_before_the_next_acquire(
    client: StateClient, server: Server
) -> None:
    """A server without settle.lua runs it in the order of the calls."""
    server.execute("SCRIPT", "FLUSH")
    one = key("a", Limits(tpm=1_000))
    await client.settle(await client.acquire_lease(one, info=INFO._replace(tokens=900)), used(50))
    await client.acquire_lease(one, info=INFO._replace(tokens=950))


async def test_a_restart_costs_one_call_and_no_more(client: StateClient, server: Server) -> None:
    """Killed and started again: the call that notices raises at once; the next ones succeed."""
    await client.settle(await client.acquire_lease(ONE))
    server.stop()
    with quick(), pytest.raises(RedisStateError):
        await client.acquire(ONE)
    with quick(), pytest.raises(RedisStateError, match=r"refused|Connect call failed"):
        await client.acquire(ONE)
    server.start()
    with quick(), pytest.raises(DataLostError):
        await client.acquire(ONE)
    accept_loss(client.state)
    with quick():
        await client.settle(await client.acquire_lease(ONE))


async def test_a_connection_that_was_closed_while_idle_is_replaced(
    client: StateClient, server: Server
) -> None:
    """The server closes idle clients: no call fails, and the last settle was recorded."""
    await client.settle(await client.acquire_lease(ONE))
    await asyncio.sleep(0.1)  # the settle is sent
    server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await client.acquire_lease(ONE)
    assert client.state.snapshot([ONE])["a"].success_count == 1


async def test_a_name_that_is_resolved_slowly_is_given_up_in_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server has closed an idle connection, a call does not wait for a new one either."""
    state = RedisState(f"redis://localhost:{server.port}/0", RetryPolicy(), pool="slow-name")
    client, resolve, done = SyncClient(state), socket.getaddrinfo, threading.Event()
    await client.acquire_lease(ONE)

    def wait(*args: Any, **options: Any) -> Any:
        done.wait(30)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    try:
        with quick(), pytest.raises(RedisStateError, match="no reply within"):
            await client.acquire(ONE)
    finally:
        done.set()
    await client.acquire_lease(ONE)
    state.close()


async def test_a_stopped_server_is_given_up_in_time(client: StateClient, server: Server) -> None:
    """SIGSTOP: the first call gives up in time, a new connection too; SIGCONT ends it."""
    await client.acquire_lease(ONE)
    server.signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            with quick(), pytest.raises(RedisStateError):
                await client.acquire(ONE)
    finally:
        server.signal(signal.SIGCONT)
    await client.acquire_lease(ONE)


async def test_a_black_hole_is_given_up_in_time() -> None:
    """Where the connection is not accepted, calls fail after the time limit, sync and async."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # the backlog is full: a further SYN is dropped
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        state = RedisState(f"redis://127.0.0.1:{hole.getsockname()[1]}", RetryPolicy())
        for client in (SyncClient(state), AsyncClient(state)):
            with quick(), pytest.raises(RedisStateError):
                await client.acquire(ONE)
        for filler in fillers:
            filler.close()


async def test_a_server_of_another_protocol_is_an_error() -> None:
    """A port that speaks another protocol is an error at once, sync and async."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        serving = threading.Thread(target=_answer_twice, args=(other,))
        serving.start()
        state = RedisState(f"redis://127.0.0.1:{other.getsockname()[1]}", RetryPolicy())
        for client in (SyncClient(state), AsyncClient(state)):
            with quick(), pytest.raises(RedisStateError, match="Protocol error"):
                await client.acquire(ONE)
        serving.join(5)


def _answer_twice(other: socket.socket) -> None:
    for _ in range(2):
        conn, _ = other.accept()
        with conn:
            conn.recv(100)
            conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            conn.recv(10_000)


async def test_a_replica_refuses_and_nothing_is_half_recorded(
    client: StateClient, server: Server
) -> None:
    """READONLY is an error of acquire and settle; once it is a master again calls succeed."""
    lease = await client.acquire_lease(ONE)
    server.execute("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(RedisStateError):
            await client.acquire(ONE)
    finally:
        server.execute("REPLICAOF", "NO", "ONE")
    await client.settle(lease, used(7))
    (known,) = client.state.snapshot([ONE])["a"].used
    assert (known.requests_minute, known.tokens_minute) == (1, 7)


async def test_a_wrong_password_is_an_error_that_does_not_show_it(server: Server) -> None:
    """The error has the server's message, but not the password."""
    url = f"redis://someone:hunter2-secret@127.0.0.1:{server.port}/0"
    state = RedisState(url, RetryPolicy())
    for client in (SyncClient(state), AsyncClient(state)):
        with pytest.raises(RedisStateError) as caught:
            await client.acquire(ONE)
        assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "echo", ["unknown command 'AUTH', with args beginning with: '{}' ", "no {}"]
)
@pytest.mark.parametrize("kind", [SyncClient, AsyncClient])
async def test_a_server_that_repeats_the_password_is_not_quoted(
    kind: type[StateClient], echo: str
) -> None:
    """Whatever the server echoes, no message and no cause of one contains the password."""
    secret = "s3cret+pass"
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = f"-ERR {echo.format(secret)}\r\n".encode()
        serving = threading.Thread(target=_answer_all, args=(other, answer))
        serving.start()
        port = other.getsockname()[1]
        state = RedisState(f"redis://:s3cret%2Bpass@127.0.0.1:{port}", RetryPolicy())
        with pytest.raises(RedisStateError) as caught:
            await kind(state).acquire(ONE)
        serving.join(5)
    text = "".join(traceback.format_exception(caught.value))
    assert echo.partition(",")[0].format("[redacted]") in str(caught.value)
    assert "s3cret" not in text


def _answer_all(other: socket.socket, answer: bytes) -> None:
    other.settimeout(0.5)
    with suppress(TimeoutError):
        while True:  # the client may try a second connection
            conn, _ = other.accept()
            with conn:
                conn.recv(10_000)
                conn.sendall(answer)


async def test_a_user_and_a_database_of_the_url_are_used(server: Server) -> None:
    """The records are in the database of the URL, by a user with the permissions in the docs."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    allowed = re.search(r"`(get set [a-z ]+)`, and `([a-z\s]+)`", text)
    assert allowed is not None
    may = [f"+{command}" for command in f"{allowed[1]} {allowed[2]} select".split()]
    server.execute("ACL", "SETUSER", "keyrot", "on", ">p@ss:w/rd", "~keyrot:v1:{own}*", *may)
    url = f"redis://keyrot:p%40ss%3Aw%2Frd@127.0.0.1:{server.port}/3"
    state = RedisState(url, RetryPolicy(), pool="own")
    one = key("a", Limits(rpm=50, max_concurrency=5))
    for client in (SyncClient(state), AsyncClient(state)):
        await client.settle(await client.acquire_lease(one), used(3), ["files/1"])
        assert await client.get_owner("files/1")
        await client.settle(
            await client.acquire_lease(one), failed(Scope.KEY_MODEL, None, bucket="family")
        )
        state.reset(one)
    assert state.snapshot([one])["a"].error_count == 2
    state.close()
    assert "db3" in server.execute("INFO", "keyspace")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the redis package the error names what to install, and shows no password."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "redis" or ".state.redis" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"keyrot-middleware\[redis\]") as caught:
        open_state("redis://:hunter2@localhost", RetryPolicy(), time.time)
    assert "hunter2" not in str(caught.value)
