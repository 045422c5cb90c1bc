"""Real servers that are killed, stopped, emptied, full, closed or read-only: no call notices."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf

import pytest
from callers import Callers, Tasks, Threads
from doors import OK, PATIENCE_S, Asked, Awaited, Door, failed, used
from rig import INFO, key
from servers import BINARIES, Server, free_port, watched_pair

from keyrot_middleware.core.model import Lease, Limits, Scope
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.state import DegradingState, open_shared, open_state
from keyrot_middleware.state.breaker import PAUSE_S, Breaker
from keyrot_middleware.state.mirror import Mirror
from keyrot_middleware.state.redis import RedisTrouble

SHORT_S = 0.3
"""Between two looks, where a test would otherwise wait for nothing but the pause."""

A, B = key("a"), key("b")
POLICY = RetryPolicy()


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()


@pytest.fixture
def state(valkey: Server) -> Iterator[DegradingState]:
    """Open a state as install() does, but for a shorter pause."""
    with opened(valkey.strict_url) as made:
        yield made


@contextmanager
def opened(url: str, pause_s: float = SHORT_S) -> Iterator[DegradingState]:
    """Open a state, and close it at the end."""
    shared = open_shared(url, POLICY, time.time)
    assert shared is not None
    made = DegradingState(
        shared, Mirror(POLICY, time.time), Breaker(time.monotonic, pause_s), "test"
    )
    try:
        yield made
    finally:
        made.close()


def lend(state: DegradingState, *keys: object) -> Lease:
    """Ask once; there must be a key."""
    reply = state.acquire(INFO, tuple((0, one) for one in keys or (A,)), spread=False)  # type: ignore[misc]
    assert isinstance(reply, Lease)
    state.settle(reply, OK)
    return reply


def recovered(state: DegradingState) -> None:
    """Call until the shared state is used again, 5 s at most."""
    until = time.monotonic() + 5
    while lend(state).degraded or state._debts:  # one call tells for 0.1 s, the next goes on
        assert time.monotonic() < until, "it did not come back in time"
        time.sleep(0.05)
    assert not state.degraded


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was warned of."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def unharmed(callers: Callers) -> None:
    """Hold that nothing was raised, and that nobody waited long."""
    assert callers.errors == []
    assert callers.longest_s < PATIENCE_S


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_killed_and_restarted_empty(
    valkey: Server, state: DegradingState, kind: type[Callers]
) -> None:
    """All go on; when it is back, the day's limit holds, though it has forgotten all."""
    limits = {"a": 150, "b": 2_000}
    keys = [key(name, Limits(rpd=most)) for name, most in limits.items()]
    with kind(state, *keys) as callers:
        callers.until(lambda: callers.lent["a"] >= 50, 5)
        valkey.stop()
        callers.until(lambda: callers.alone["b"] > 100, 5)
        assert state.degraded
        valkey.start()
        assert callers.until(lambda: not state.degraded, 5) < 5
        callers.until(lambda: sum(callers.lent.values()) == sum(limits.values()), 15)
        time.sleep(0.3)
    unharmed(callers)
    assert dict(callers.lent) == limits
    assert sum(callers.alone.values()) < sum(callers.lent.values())


def test_stopped_for_five_seconds(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs and refuses nothing: a look every pause, and shared within 5 s of its return."""
    one = key("s", Limits(rpd=20_000))
    with opened(valkey.strict_url, PAUSE_S) as state:
        with Threads(state, one, number=32) as threads, Tasks(state, one, number=32) as tasks:
            threads.until(lambda: threads.lent["s"] > 50 and tasks.lent["s"] > 50, 5)
            valkey.signal(signal.SIGSTOP)
            time.sleep(5)
            assert state.degraded
            valkey.signal(signal.SIGCONT)
            assert threads.until(lambda: not state.degraded, 5) < 5
        for callers in (threads, tasks):
            unharmed(callers)
            assert callers.alone["s"] > 50
        lend(state)
        known = state.snapshot([one])["s"].used[0].requests_day
        assert known >= threads.lent["s"] + tasks.lent["s"]
    said = warned(caplog)  # a busy machine may be slow for 0.2 s once more
    assert all("the shared state cannot be used" in begun for begun in said[::2])
    assert all("is back after" in ended for ended in said[1::2])
    assert len(said) >= 2


def test_failed_over_by_a_sentinel() -> None:
    """The master is killed under 64 callers: they go on, and the new one knows what was sent."""
    one = key("s", Limits(rpd=20_000))
    with watched_pair() as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        with opened(url) as state:
            with Threads(state, one, number=32) as threads, Tasks(state, one, number=32) as tasks:
                threads.until(lambda: threads.lent["s"] > 50 and tasks.lent["s"] > 50, 5)
                master.stop()
                threads.until(lambda: state.degraded, 5)
                threads.until(lambda: replica.ask("ROLE")[0] == b"master", 20)
                assert threads.until(lambda: not state.degraded, 5) < 5
            for callers in (threads, tasks):
                unharmed(callers)
            lend(state)
            known = state.snapshot([one])["s"].used[0].requests_day
            assert known >= threads.lent["s"] + tasks.lent["s"]


@pytest.mark.parametrize("way", [Asked, Awaited], ids=["sync", "async"])
@pytest.mark.parametrize("restarted", [False, True], ids=["flushed", "restarted"])
async def test_emptied_while_two_processes_use_it(
    valkey: Server, way: type[Door], restarted: bool
) -> None:
    """Each tells its own part again: together it is what was used, and who was retired stays so."""
    with opened(valkey.strict_url) as mine, opened(valkey.strict_url) as yours:
        doors = [way(mine), way(yours)]
        await doors[0].fails(B, failed(Scope.KEY, inf))
        for door, times in zip(doors, (3, 4), strict=True):
            for _ in range(times):
                await door.settle(await door.lend(A), used(5))
        assert await doors[1].refused(B) == {"b": "failure"}
        if restarted:
            valkey.stop()
            valkey.start()
            await asyncio.sleep(SHORT_S)
        else:
            valkey.ask("FLUSHALL")
            valkey.ask("SCRIPT", "FLUSH")
        for door in doors * 2:
            await door.settle(await door.lend(A), used(5))
            assert await door.refused(B) == {"b": "failure"}
            await asyncio.sleep(SHORT_S)
        assert not mine.degraded
        assert not yours.degraded
        known = mine.snapshot([A, B])
        (of_a,) = known["a"].used
        assert (of_a.requests_minute, of_a.requests_day) == (11, 11)
        assert of_a.tokens_minute == 11 * 5
        assert known["b"].cooldown_until == inf


def test_whoever_finds_it_emptied_first_nothing_is_counted_twice(
    valkey: Server, state: DegradingState
) -> None:
    """A status page is the first to reach it again; what was sent before and meanwhile is told."""
    for _ in range(3):
        lend(state)
    valkey.stop()
    assert lend(state).degraded
    valkey.start()
    time.sleep(SHORT_S)
    state.snapshot([A])
    assert not state.degraded
    with opened(valkey.strict_url) as other:
        lend(other)
    recovered(state)
    assert state.snapshot([A])["a"].used[0].requests_day == 3 + 1 + 1 + 1


def test_a_limit_holds_for_the_call_that_finds_it_emptied(
    valkey: Server, state: DegradingState
) -> None:
    """What an emptied server lends is not taken where this process alone has used it up."""
    one = key("a", Limits(rpd=2))
    for _ in range(2):
        lend(state, one)
    valkey.ask("FLUSHALL")
    for _ in range(3):
        assert not isinstance(state.acquire(INFO, ((0, one),), spread=False), Lease)
    assert not state.degraded


def test_a_password_that_is_wrong(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Calls go on from the start; the warning says why, and shows no password."""
    valkey.ask("CONFIG", "SET", "requirepass", "right")
    url = valkey.strict_url.replace("//", "//:hunter2@")
    with opened(url) as state:
        state.check()
        assert state.degraded
        assert lend(state).degraded
        (text,) = warned(caplog)
        assert "127.0.0.1" in text
        assert "invalid username-password pair" in text
        assert "hunter2" not in text
        good = valkey.strict_url.replace("//", "//:right@")
        with opened(good) as other:
            assert not lend(other).degraded


def test_a_password_that_is_missing_and_given_up(valkey: Server, state: DegradingState) -> None:
    """When the server asks for one no more, it is used again."""
    with_password = valkey.strict_url.replace("//", "//:right@")
    valkey.ask("CONFIG", "SET", "requirepass", "right")
    assert lend(state).degraded
    import redis

    with redis.Redis.from_url(with_password) as client:
        client.config_set("requirepass", "")
    recovered(state)


def test_a_server_too_old_for_scripts(caplog: pytest.LogCaptureFixture) -> None:
    """It is there and can be written to, but cannot decide: said once, and gone on without."""
    old = Server(BINARIES["valkey"], "--rename-command", "EVALSHA", "")
    try:
        with opened(old.strict_url) as state:
            state.check()
            for _ in range(3):
                assert lend(state).degraded
                time.sleep(SHORT_S)
            assert len(warned(caplog)) == 1
            assert "unknown command" in warned(caplog)[0]
    finally:
        old.remove()


def test_out_of_memory(valkey: Server, state: DegradingState) -> None:
    """A full server refuses to book: this process does; with room again, so does the server."""
    lend(state)
    valkey.ask("CONFIG", "SET", "maxmemory", "1")
    assert lend(state).degraded
    state.settle(lend(state, B), failed(Scope.KEY, inf))
    time.sleep(SHORT_S)
    assert lend(state).degraded
    valkey.ask("CONFIG", "SET", "maxmemory", "0")
    recovered(state)
    assert state.snapshot([B])["b"].cooldown_until == inf


def test_full_between_acquire_and_settle(valkey: Server, state: DegradingState) -> None:
    """A verdict that could not be written rests the key here, and there when there is room."""
    lease = state.acquire(INFO, ((0, B),), spread=False)
    assert isinstance(lease, Lease)
    valkey.ask("CONFIG", "SET", "maxmemory", "1")
    assert state.settle(lease, failed(Scope.KEY, inf)) == inf
    assert not isinstance(state.acquire(INFO, ((0, B),), spread=False), Lease)
    valkey.ask("CONFIG", "SET", "maxmemory", "0")
    recovered(state)
    assert state.snapshot([B])["b"].cooldown_until == inf


def test_a_replica_that_may_only_be_read(valkey: Server, state: DegradingState) -> None:
    """After a failover the old master refuses to write; once it is master again it is used."""
    lend(state)
    valkey.ask("REPLICAOF", "127.0.0.1", free_port())
    assert lend(state).degraded
    valkey.ask("REPLICAOF", "NO", "ONE")
    recovered(state)


def test_a_black_hole() -> None:
    """A server that takes connections and says nothing costs one call a time limit, then nobody."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hole,
        opened(f"redis://127.0.0.1:{hole.getsockname()[1]}/0", PAUSE_S) as state,
    ):
        with Threads(state, A) as callers:
            time.sleep(1)
        unharmed(callers)
        assert callers.alone["a"] == callers.lent["a"] > 500


def test_nobody_there_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Opening a state is no error: it is announced at once, and used once it is there."""
    port = free_port()
    state = open_state(f"redis://user:hunter2@127.0.0.1:{port}/0", POLICY, time.time)
    try:
        assert state.degraded
        (text,) = warned(caplog)
        assert f"redis://127.0.0.1:{port}" in text
        assert "hunter2" not in text
    finally:
        state.close()


def test_closing_does_not_wait_for_a_server_that_hangs(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many lines with an answer to come, one waits for its time limit; it is said once."""
    shared = open_shared(valkey.strict_url, POLICY, time.time)
    assert shared is not None
    together = threading.Barrier(16)

    def call() -> None:
        lease = shared.acquire(INFO, ((0, A),), spread=False)
        together.wait(5)
        assert isinstance(lease, Lease)
        shared.settle(lease, OK)  # leaves each thread's line with an answer to come
        together.wait(5)
        valkey.signal(signal.SIGSTOP)
        together.wait(5)
        with suppress(RedisTrouble):
            shared.settle(lease, OK)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    began = time.monotonic()
    shared.close()
    valkey.signal(signal.SIGCONT)
    assert time.monotonic() - began < 1
    assert len(warned(caplog)) <= 1
