"""Real servers that are emptied, closed, too old, full or read-only: no call fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from math import inf

import pytest
from support.concurrent_callers import Callers, Tasks, Threads, check_callers
from support.faulty_state import warnings_of
from support.pool import INFO, key
from support.redis_state import SHORT_S, A, B, acquire_lease, opened
from support.servers import BINARIES, Server, free_port
from support.sync_async import AsyncClient, StateClient, SyncClient, failed, used

from keyrot_middleware.core.model import Lease, Limits, Scope
from keyrot_middleware.state import FallbackState

pytestmark = pytest.mark.usefixtures("within_a_minute")


@pytest.fixture
def state(valkey: Server) -> Iterator[FallbackState]:
    """Open a state as install() does, but with a shorter pause."""
    with opened(valkey.url) as made:
        yield made


def recovered(state: FallbackState) -> None:
    """Call until the shared state is used again."""
    until = time.monotonic() + 60
    while (
        acquire_lease(state).degraded or state._is_behind
    ):  # one call waits for 0.1 s, the next is sent
        assert time.monotonic() < until, "it did not come back in time"
        time.sleep(0.05)
    assert not state.degraded


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_killed_and_restarted_empty(
    valkey: Server, state: FallbackState, kind: type[Callers]
) -> None:
    """All callers continue; when it is back, the day's limit holds, though its data is lost."""
    limits = {"a": 150, "b": 2_000}
    keys = [key(name, Limits(rpd=most)) for name, most in limits.items()]
    with kind(state, *keys) as callers:
        callers.until(lambda: callers.leases["a"] >= 50)
        valkey.stop()
        callers.until(lambda: callers.alone["b"] > 100)
        assert state.degraded
        valkey.start()
        callers.until(lambda: not state.degraded)
        callers.until(lambda: sum(callers.leases.values()) == sum(limits.values()))
        time.sleep(0.3)
    check_callers(callers)
    assert dict(callers.leases) == limits
    assert sum(callers.alone.values()) < sum(callers.leases.values())


@pytest.mark.parametrize("way", [SyncClient, AsyncClient], ids=["sync", "async"])
@pytest.mark.parametrize("restarted", [False, True], ids=["flushed", "restarted"])
async def test_emptied_while_two_processes_use_it(
    valkey: Server, way: type[StateClient], restarted: bool
) -> None:
    """Each process reports its own usage again: together it is the true total."""
    with opened(valkey.url) as mine, opened(valkey.url) as yours:
        clients = [way(mine), way(yours)]
        await clients[0].fails(B, failed(Scope.KEY, inf))
        for client, times in zip(clients, (3, 4), strict=True):
            for _ in range(times):
                await client.settle(await client.acquire_lease(A), used(5))
        assert await clients[1].refused(B) == {"b": "failure"}
        if restarted:
            valkey.stop()
            valkey.start()
            await asyncio.sleep(SHORT_S)
        else:
            valkey.execute("FLUSHALL")
            valkey.execute("SCRIPT", "FLUSH")
        for client in clients * 2:
            await client.settle(await client.acquire_lease(A), used(5))
            await asyncio.sleep(SHORT_S)
        assert not mine.degraded
        assert not yours.degraded
        known = mine.snapshot([A, B])
        (of_a,) = known["a"].used
        assert (of_a.requests_minute, of_a.requests_day) == (11, 11)
        assert of_a.tokens_minute == 11 * 5


def test_after_a_data_loss_nothing_is_counted_twice_whoever_notices_first(
    valkey: Server, state: FallbackState
) -> None:
    """A status page is the first to reach it again; all usage is reported once."""
    for _ in range(3):
        acquire_lease(state)
    valkey.stop()
    assert acquire_lease(state).degraded
    valkey.start()
    time.sleep(SHORT_S)
    state.snapshot([A])
    assert not state.degraded
    with opened(valkey.url) as other:
        acquire_lease(other)
    recovered(state)
    assert state.snapshot([A])["a"].used[0].requests_day == 3 + 1 + 1 + 1


def test_a_limit_holds_for_the_call_that_finds_it_emptied(
    valkey: Server, state: FallbackState
) -> None:
    """A grant of an emptied server is not taken where this process alone has used the limit up."""
    one = key("a", Limits(rpd=2))
    for _ in range(2):
        acquire_lease(state, one)
    valkey.execute("FLUSHALL")
    for _ in range(3):
        assert not isinstance(state.acquire(INFO, ((0, one),), spread=False), Lease)
    assert not state.degraded


def test_a_key_that_others_have_exhausted_is_not_used_in_an_outage(
    valkey: Server, state: FallbackState
) -> None:
    """This process has only got another key in its place."""
    one, many = key("a", Limits(rpd=5)), key("b")
    with opened(valkey.strict_url) as other:
        for _ in range(5):
            acquire_lease(other, one)
        assert acquire_lease(state, one, many).key_id == "b"
    valkey.stop()
    for _ in range(3):
        assert acquire_lease(state, one, many).key_id == "b"


def test_a_wrong_password_falls_back(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Calls continue from the start; the warning names the reason, and shows no password."""
    valkey.execute("CONFIG", "SET", "requirepass", "right")
    url = valkey.url.replace("//", "//:hunter2@")
    with opened(url) as state:
        state.check()
        assert state.degraded
        assert acquire_lease(state).degraded
        (text,) = warnings_of(caplog)
        assert "127.0.0.1" in text
        assert "invalid username-password pair" in text
        assert "hunter2" not in text
        good = valkey.url.replace("//", "//:right@")
        with opened(good) as other:
            assert not acquire_lease(other).degraded


def test_a_missing_password_falls_back_while_it_is_required(
    valkey: Server, state: FallbackState
) -> None:
    """When the server no longer requires one, it is used again."""
    with_password = valkey.strict_url.replace("//", "//:right@")
    valkey.execute("CONFIG", "SET", "requirepass", "right")
    assert acquire_lease(state).degraded
    import redis

    with redis.Redis.from_url(with_password) as client:
        client.config_set("requirepass", "")
    recovered(state)


def test_a_server_too_old_for_scripts_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    """It can be written to, but has no scripts: logged once, then the fallback is used."""
    old = Server(BINARIES["valkey"], "--rename-command", "EVALSHA", "")
    try:
        with opened(old.url) as state:
            state.check()
            for _ in range(3):
                assert acquire_lease(state).degraded
                time.sleep(SHORT_S)
            (text,) = warnings_of(caplog, about=f":{old.port}:")
            assert "unknown command" in text
    finally:
        old.remove()


def test_a_full_server_falls_back(valkey: Server, state: FallbackState) -> None:
    """A full server refuses writes and this process counts; with room again, the server does."""
    acquire_lease(state)
    valkey.execute("CONFIG", "SET", "maxmemory", "1")
    assert acquire_lease(state).degraded
    state.settle(acquire_lease(state, B), failed(Scope.KEY, inf))
    time.sleep(SHORT_S)
    assert acquire_lease(state).degraded
    valkey.execute("CONFIG", "SET", "maxmemory", "0")
    recovered(state)
    assert state.snapshot([B])["b"].cooldown_until == inf


def test_full_between_acquire_and_settle(valkey: Server, state: FallbackState) -> None:
    """A verdict that could not be written cools the key down here, and there once there is room."""
    lease = state.acquire(INFO, ((0, B),), spread=False)
    assert isinstance(lease, Lease)
    valkey.execute("CONFIG", "SET", "maxmemory", "1")
    assert state.settle(lease, failed(Scope.KEY, inf)) == inf
    assert not isinstance(state.acquire(INFO, ((0, B),), spread=False), Lease)
    valkey.execute("CONFIG", "SET", "maxmemory", "0")
    recovered(state)
    assert state.snapshot([B])["b"].cooldown_until == inf


def test_a_read_only_replica_falls_back(valkey: Server, state: FallbackState) -> None:
    """After a failover the old master refuses writes; once it is master again it is used."""
    acquire_lease(state)
    valkey.execute("REPLICAOF", "127.0.0.1", free_port())
    assert acquire_lease(state).degraded
    valkey.execute("REPLICAOF", "NO", "ONE")
    recovered(state)
