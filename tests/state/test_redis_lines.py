"""Connections: kept, renewed, never asked twice in secret, quick to say that nobody is there."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from doors import OK, Asked, Awaited, Door, failed, used
from rig import INFO, key
from servers import BINARIES, Server, wait_for

from keyrot_middleware.core.model import Lease, Limits, Scope, Unavailable
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.errors import MissingExtraError
from keyrot_middleware.state import open_state
from keyrot_middleware.state.redis import RedisState, RedisTrouble

_pools = count()
ONE = key("a", Limits(rpm=1_000))
OFFER = ((0, ONE),)
TOO_LONG_S = 0.5
"""No call may be delayed by more."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start one that tests may kill, stop and flush."""
    own = Server(BINARIES["valkey"], "--enable-debug-command", "local")
    yield own
    own.remove()


@pytest.fixture
def state(server: Server) -> Iterator[RedisState]:
    """Open a pool at the defaults."""
    server.ask("CONFIG", "RESETSTAT")
    state = RedisState(server.strict_url, RetryPolicy(), pool=f"lines-{next(_pools)}")
    yield state
    state.close()


@pytest.fixture(params=[Asked, Awaited], ids=["sync", "async"])
def door(request: pytest.FixtureRequest, state: RedisState) -> Door:
    """Use its blocking methods, or its awaited ones."""
    door: Door = request.param(state)
    return door


@contextmanager
def quick() -> Iterator[None]:
    """Hold that what is done inside is done in time."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < TOO_LONG_S


def connections(server: Server) -> int:
    """Count how many connections were ever made, but for this question's own."""
    return int(server.ask("INFO", "stats")["total_connections_received"])


async def test_one_connection_is_used_again(door: Door, server: Server) -> None:
    """A hundred calls one after another share one connection."""
    await door.settle(await door.lend(ONE))
    before = connections(server)
    for _ in range(100):
        await door.settle(await door.lend(ONE), used(3))
    assert connections(server) == before + 1


async def test_a_server_that_forgot_the_scripts_is_told_them(door: Door, server: Server) -> None:
    """SCRIPT FLUSH between any two steps changes nothing, unread answers included."""
    for _ in range(3):
        server.ask("SCRIPT", "FLUSH")
        lease = await door.lend(ONE)
        server.ask("SCRIPT", "FLUSH")
        await door.settle(lease, used(20))
    server.ask("SCRIPT", "FLUSH")
    await door.settle(await door.lend(ONE), used(20))
    await door.lend(ONE)
    (known,) = door.state.snapshot([ONE])["a"].used
    assert (known.requests_minute, known.tokens_minute) == (5, 4 * 20 + INFO.tokens)


async def test_a_restart_costs_one_call_and_no_more(door: Door, server: Server) -> None:
    """Killed and started again: the call that finds out raises, at once; the next ones go on."""
    await door.settle(await door.lend(ONE))
    server.stop()
    with quick(), pytest.raises(RedisTrouble):
        await door.acquire(ONE)
    with quick(), pytest.raises(RedisTrouble, match=r"refused|Connect call failed"):
        await door.acquire(ONE)
    server.start()
    with quick():
        await door.settle(await door.lend(ONE))


async def test_a_connection_that_was_closed_while_it_rested_is_replaced(
    door: Door, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server closes idle clients: nobody notices, and the last settle was booked."""
    monkeypatch.setattr("keyrot_middleware.state.redis.line.FRESH_S", 0.0)
    await door.settle(await door.lend(ONE))
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0.05)  # a loop that rests hears of it
    await door.lend(ONE)
    assert door.state.snapshot([ONE])["a"].success_count == 1


async def test_a_server_that_stands_still_is_given_up_in_time(door: Door, server: Server) -> None:
    """SIGSTOP: the first call gives up after 0.2 s, a new connection too; SIGCONT: all is well."""
    await door.lend(ONE)
    server.signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            with quick(), pytest.raises(RedisTrouble):
                await door.acquire(ONE)
    finally:
        server.signal(signal.SIGCONT)
    await door.lend(ONE)


async def test_a_black_hole_is_given_up_in_time() -> None:
    """Where nobody takes the connection, calls fail after 0.2 s, sync and async."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # the backlog is full: a further SYN is dropped
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        state = RedisState(f"redis://127.0.0.1:{hole.getsockname()[1]}", RetryPolicy())
        for door in (Asked(state), Awaited(state)):
            with quick(), pytest.raises(RedisTrouble):
                await door.acquire(ONE)
        for filler in fillers:
            filler.close()


async def test_tasks_that_wait_for_a_connection_fail_together(server: Server) -> None:
    """64 tasks and a server that stands still: each is told within the time, none waits in line."""
    state = RedisState(server.strict_url, RetryPolicy(), pool="together")
    await asyncio.gather(*(state.aacquire(INFO, OFFER, spread=False) for _ in range(64)))
    server.signal(signal.SIGSTOP)
    try:
        with quick():
            replies = await asyncio.gather(
                *(state.aacquire(INFO, OFFER, spread=False) for _ in range(64)),
                return_exceptions=True,
            )
    finally:
        server.signal(signal.SIGCONT)
    assert all(isinstance(reply, RedisTrouble) for reply in replies)
    assert isinstance(await state.aacquire(INFO, OFFER, spread=False), Lease)
    await state.aclose()


async def test_a_busy_loop_is_not_the_servers_fault(server: Server) -> None:
    """Where the loop itself stood still for longer than the limit, the answer that came counts."""
    state = RedisState(server.strict_url, RetryPolicy(), pool="busy")
    await state.aacquire(INFO, OFFER, spread=False)
    asking = asyncio.create_task(state.aacquire(INFO, OFFER, spread=False))
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251 - that is the point
    assert isinstance(await asking, Lease)
    await state.aclose()


async def test_a_thousand_tasks_share_few_connections(server: Server) -> None:
    """A crowd of tasks opens no crowd of connections."""
    state = RedisState(server.url, RetryPolicy(), pool="crowd")
    before = connections(server)
    lent = await asyncio.gather(*(state.aacquire(INFO, OFFER, spread=False) for _ in range(1_000)))
    assert sum(isinstance(lease, Lease) for lease in lent) == 1_000
    assert connections(server) - before <= 17
    await state.aclose()


async def test_a_settle_nobody_waited_for_fails_the_next_call(door: Door, server: Server) -> None:
    """A success whose booking was refused is not lost in silence: the next question raises."""
    await door.settle(await door.lend(ONE))
    lease = await door.lend(ONE)
    server.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        await door.settle(lease)
        await asyncio.sleep(0.05)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", "0")
    with pytest.raises(RedisTrouble, match="maxmemory"):
        await door.acquire(ONE)
    await door.lend(ONE)


async def test_a_server_that_speaks_something_else_is_trouble() -> None:
    """A wrong port, behind which another protocol is spoken: told at once, sync and async."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        serving = threading.Thread(target=_answer_twice, args=(other,))
        serving.start()
        state = RedisState(f"redis://127.0.0.1:{other.getsockname()[1]}", RetryPolicy())
        for door in (Asked(state), Awaited(state)):
            with quick(), pytest.raises(RedisTrouble, match="Protocol error"):
                await door.acquire(ONE)
        serving.join(5)


def _answer_twice(other: socket.socket) -> None:
    for _ in range(2):
        conn, _ = other.accept()
        with conn:
            conn.recv(100)
            conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            conn.recv(10_000)


async def test_a_replica_refuses_and_nothing_is_half_booked(door: Door, server: Server) -> None:
    """READONLY is trouble, for acquire and settle; when it is a master again all is as before."""
    lease = await door.lend(ONE)
    server.ask("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(RedisTrouble):
            await door.acquire(ONE)
    finally:
        server.ask("REPLICAOF", "NO", "ONE")
    await door.settle(lease, used(7))
    (known,) = door.state.snapshot([ONE])["a"].used
    assert (known.requests_minute, known.tokens_minute) == (1, 7)


async def test_a_wrong_password_is_trouble_that_does_not_tell_it(server: Server) -> None:
    """The server's words come out, the password does not."""
    url = f"redis://someone:hunter2-secret@127.0.0.1:{server.port}/0"
    state = RedisState(url, RetryPolicy())
    for door in (Asked(state), Awaited(state)):
        with pytest.raises(RedisTrouble) as caught:
            await door.acquire(ONE)
        assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


async def test_a_user_and_a_database_of_the_url_are_used(server: Server) -> None:
    """The records are in the database that the URL names, by a user who may what the docs say."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    allowed = re.search(r"`(get set [a-z ]+)`, and `([a-z ]+)`", text)
    assert allowed is not None
    may = [f"+{command}" for command in f"{allowed[1]} {allowed[2]} select".split()]
    server.ask("ACL", "SETUSER", "keyrot", "on", ">p@ss:w/rd", "~keyrot:{own}*", *may)
    url = f"redis://keyrot:p%40ss%3Aw%2Frd@127.0.0.1:{server.port}/3"
    state = RedisState(url, RetryPolicy(), pool="own")
    one = key("a", Limits(rpm=50, max_concurrency=5))
    for door in (Asked(state), Awaited(state)):
        await door.settle(await door.lend(one), used(3), ["files/1"])
        assert await door.owner("files/1")
        await door.settle(await door.lend(one), failed(Scope.KEY_MODEL, None, bucket="family"))
        state.reset(one)
    assert state.snapshot([one])["a"].error_count == 2
    await state.aclose()
    assert "db3" in server.ask("INFO", "keyspace")


async def test_a_cancelled_acquire_gives_back_what_it_was_granted(server: Server) -> None:
    """A task cancelled while the answer is on its way leaves no place taken and no count."""
    state = RedisState(server.url, RetryPolicy(), pool="cancelled")
    one = key("a", Limits(rpm=100, max_concurrency=1))
    await state.asettle(await _lend(state, one), OK)
    for steps in range(1, 8):
        asking = asyncio.create_task(state.aacquire(INFO, ((0, one),), spread=False))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not asking.cancel():
            await state.asettle(await asking, OK)  # type: ignore[arg-type]
        await asyncio.gather(asking, return_exceptions=True)
        until = time.monotonic() + 5
        while isinstance(
            lease := await state.aacquire(INFO, ((0, one),), spread=False), Unavailable
        ):
            assert time.monotonic() < until, "the place was never given back"
            await asyncio.sleep(0.01)
        await state.asettle(lease, OK)
    await state.aclose()


async def _lend(state: RedisState, one: Any) -> Lease:
    lease = await state.aacquire(INFO, ((0, one),), spread=False)
    assert isinstance(lease, Lease)
    return lease


def test_each_loop_has_connections_of_its_own_and_closes_them(server: Server) -> None:
    """Loop after loop: nothing is left open, nothing is warned of, everything is booked."""
    state = RedisState(server.url, RetryPolicy(), pool="loops")

    async def work() -> None:
        for _ in range(3):
            await state.asettle(await _lend(state, ONE), OK)

    before = int(server.ask("INFO", "clients")["connected_clients"])
    for _ in range(5):
        asyncio.run(work())
        gc.collect()
    wait_for(lambda: int(server.ask("INFO", "clients")["connected_clients"]) <= before)
    assert state.snapshot([ONE])["a"].success_count == 15
    state.close()


def test_loops_in_two_threads_at_once(server: Server) -> None:
    """Two running loops and a thread without one share a state, each over its own connections."""
    state = RedisState(server.url, RetryPolicy(), pool="threads")

    async def work() -> None:
        for _ in range(50):
            await state.asettle(await _lend(state, ONE), OK)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        lease = state.acquire(INFO, OFFER, spread=False)
        assert isinstance(lease, Lease)
        state.settle(lease, OK)
    for thread in threads:
        thread.join(20)
    assert state.snapshot([ONE])["a"].success_count == 150
    state.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    """Parent and child go on at once after a fork; no answer of the one reaches the other."""
    state = RedisState(server.url, RetryPolicy(), pool="fork")
    lease = state.acquire(INFO, OFFER, spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, OK)
    child = os.fork()
    fine = _many(state)
    if child == 0:
        state.close()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fine
    assert state.snapshot([ONE])["a"].success_count == 401
    state.close()


def _many(state: RedisState) -> bool:
    seen = set()
    for _ in range(200):
        lease = state.acquire(INFO, OFFER, spread=False)
        if not isinstance(lease, Lease):
            return False
        seen.add(lease.books.lease_id)  # type: ignore[attr-defined]
        state.settle(lease, OK)
    return len(seen) == 200


async def test_close_closes_all_and_late_calls_still_settle(server: Server) -> None:
    """After uninstall nothing stays connected, and a call under way is booked all the same."""
    state = RedisState(server.url, RetryPolicy(), pool="closed")
    before = int(server.ask("INFO", "clients")["connected_clients"])
    first, second = await _lend(state, ONE), state.acquire(INFO, OFFER, spread=False)
    state.close()
    await state.asettle(first, OK)
    assert isinstance(second, Lease)
    state.settle(second, OK)
    until = time.monotonic() + 5
    while int(server.ask("INFO", "clients")["connected_clients"]) > before:
        assert time.monotonic() < until, "something is still connected"
        await asyncio.sleep(0.02)
    assert state.snapshot([ONE])["a"].success_count == 2


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """No redis package: who asks for such a state is told what to install, and no password."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "redis" or ".state.redis" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"keyrot-middleware\[redis\]") as caught:
        open_state("redis://:hunter2@localhost", RetryPolicy(), time.time)
    assert "hunter2" not in str(caught.value)
