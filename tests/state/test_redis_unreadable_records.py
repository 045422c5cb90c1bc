"""Unreadable records: the caller continues, says so once, and the record is replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from support.pool import INFO, MODEL, key
from support.redis_state import acquire_lease
from support.servers import Server, server
from support.sync_async import OK, AsyncClient, StateClient, SyncClient, failed

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Scope
from keyrot_middleware.state.base import UnleasedUsage
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import FallbackState, LocalWindows
from keyrot_middleware.state.redis import RedisState

_pools = count()

ONE = key("one", Limits(rpm=99_000, max_concurrency=5))
NAMES = {
    "quota": f"quota:3:one:{MODEL}",
    "health": "health:one",
    "cooldown of a key": "cooldown:key:one",
    "cooldown of a project": "cooldown:project:one",
    "cooldown of an account": "cooldown:billing:one",
    "leases": "lease:one",
    "bucket": f"bucket:{MODEL}",
    "buckets": "buckets",
}
GARBAGE: dict[str, tuple[Any, ...]] = {
    "no JSON": ("SET", "garbage{"),
    "text": ("SET", '"text"'),
    "a number": ("SET", "7"),
    "null": ("SET", "null"),
    "a list of texts": ("SET", json.dumps(["x"] * 20)),
    "a list of nulls": ("SET", json.dumps([None] * 20)),
    "an object": ("SET", json.dumps({"key": 1, "project": [], "billing": "x"})),
    "half an object": ("SET", json.dumps({"key": {"until": "soon"}, "project": {}, "billing": {}})),
    "a list": ("RPUSH", "garbage"),
    "a set": ("SADD", "garbage"),
    "a hash": ("HSET", "garbage", "1"),
}


@pytest.fixture
def pool(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[RedisState, Server, str]]:
    """Open a pool whose records are all there."""
    caplog.set_level(logging.WARNING)
    name, at = f"garbage-{next(_pools)}", server("valkey")
    state = RedisState(at.url, RetryPolicy(), pool=name)
    lease = state.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, OK, ["files/one"])
    state.snapshot([ONE])
    yield state, at, f"keyrot:v1:{{{name}}}:"
    state.close()


def put(at: Server, name: str, what: str) -> None:
    """Replace a record with garbage."""
    command, *values = GARBAGE[what]
    at.execute("DEL", name)
    at.execute(command, name, *values)


async def _calls(client: StateClient) -> None:
    for outcome in (OK, failed(Scope.NONE, learned=Limits(rpm=90_000)), OK):
        await client.settle(await client.acquire_lease(ONE), outcome)


async def _settles(client: StateClient) -> None:
    await client.settle(client.lease, failed(Scope.KEY_VERB, 1.0, learned=Limits(rpm=90_000)))  # type: ignore[attr-defined]


async def _reads(client: StateClient) -> None:
    assert "one" in client.state.snapshot([ONE])
    assert client.state.get_blocks(INFO, [ONE]) == {}
    client.state.with_values([ONE])


async def _records_usage(client: StateClient) -> None:
    for _ in range(2):
        client.state.record_usage([UnleasedUsage("one", MODEL, 1, 1, 1)])


async def _resets(client: StateClient) -> None:
    client.state.reset(ONE)


@pytest.mark.parametrize("step", [_calls, _settles, _reads, _records_usage, _resets])
@pytest.mark.parametrize("kind", [SyncClient, AsyncClient])
@pytest.mark.parametrize("record", NAMES)
def test_a_caller_that_reads_garbage_continues(
    record: str,
    kind: type[StateClient],
    step: Callable[[Any], Any],
    pool: tuple[RedisState, Server, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With garbage in place of a record no call fails; at most one warning says so."""
    state, at, base = pool
    for what in GARBAGE:
        client: Any = kind(state)
        client.lease = state.acquire(INFO, ((0, ONE),), spread=False)
        put(at, base + NAMES[record], what)
        caplog.clear()

        async def work(client: Any = client) -> None:
            await step(client)
            await _calls(client)

        asyncio.run(work())
        warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warned) <= 1, warned
        assert all("could not be read and were dropped: 1" in text for text in warned)
        if step is _calls and what == "no JSON" and record not in ("bucket", "epoch"):
            assert warned
        _settled(state, client.lease)
        assert state.snapshot([ONE])["one"].success_count >= 0


def _settled(state: RedisState, lease: Any) -> None:
    state.settle(lease, OK)
    state._server.flush()
    state.reset(ONE)


@pytest.mark.parametrize("kind", [SyncClient, AsyncClient])
@pytest.mark.parametrize("what", GARBAGE)
def test_an_unreadable_owner_is_dropped(
    what: str, kind: type[StateClient], pool: tuple[RedisState, Server, str]
) -> None:
    """The next call that learns the owner writes it again."""
    state, at, base = pool
    (name,) = [name for name in at.names() if name.startswith(base + "owner:")]
    put(at, name, what)

    async def work() -> None:
        client = kind(state)
        assert await client.get_owner("files/one") is None
        await client.settle(await client.acquire_lease(ONE), OK, ["files/one"])
        assert await client.get_owner("files/one") == ("one", "one")

    asyncio.run(work())


@pytest.mark.parametrize("what", GARBAGE)
def test_an_unreadable_epoch_is_a_loss_of_data(
    what: str, pool: tuple[RedisState, Server, str]
) -> None:
    """Calls continue, and the process reports once what it has counted."""
    shared, at, base = pool
    before = shared.snapshot([ONE])["one"].used[0].requests_day
    local = LocalWindows(RetryPolicy(), time.time)
    state = FallbackState(shared, local, CircuitBreaker(time.monotonic), "test")
    acquire_lease(state, ONE)
    put(at, base + "epoch", what)
    for _ in range(3):
        acquire_lease(state, ONE)
    assert not state.degraded
    assert state.snapshot([ONE])["one"].used[0].requests_day == before + 1 + 1 + 3


def test_other_errors_of_the_server_are_raised(pool: tuple[RedisState, Server, str]) -> None:
    """An error that is not about a record of ours is raised as before."""
    from keyrot_middleware.state.redis import RedisStateError

    state, at, _ = pool
    at.execute("ACL", "SETUSER", "default", "-set")
    try:
        with pytest.raises(RedisStateError):
            state.settle(state.acquire(INFO, ((0, ONE),), spread=False), OK)  # type: ignore[arg-type]
    finally:
        at.execute("ACL", "SETUSER", "default", "+@all")
