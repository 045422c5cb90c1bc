"""A pool in a cluster, and behind sentinels: the same state, whichever node has its records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from socket import create_server

import pytest
from redis.crc import key_slot
from support.concurrent_callers import Tasks, Threads
from support.pool import INFO, MODEL, key
from support.servers import (
    BINARIES,
    REDIS_CLI,
    Server,
    cluster_of_three,
    free_port,
    move_slots,
    pool_on,
    sentinel_of,
    wait_for,
    watched_pair,
)
from support.sync_async import OK, AsyncClient, StateClient, SyncClient, failed, used

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Scope
from keyrot_middleware.state import FallbackState
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows
from keyrot_middleware.state.redis import RedisState, RedisStateError

pytestmark = pytest.mark.usefixtures("within_a_minute")

ONE = key("a", Limits(rpm=20, max_concurrency=5), project="p")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    """Run a cluster."""
    with cluster_of_three() as three:
        yield three


def url_of(nodes: list[Server]) -> str:
    """Name one node only; it knows the others."""
    return f"redis+cluster://127.0.0.1:{nodes[0].port}?socket_timeout=5"


@pytest.mark.parametrize("pool", ["one", "two", "three", "four", "five"])
@pytest.mark.parametrize("way", [SyncClient, AsyncClient], ids=["sync", "async"])
async def test_a_pool_lives_on_whichever_node_has_its_slot(
    way: type[StateClient], pool: str, nodes: list[Server]
) -> None:
    """Acquire, settle, cool down, own, reset and snapshot, from the wrong node or the right one."""
    name = f"{pool}-{way.__name__}"
    state = RedisState(url_of(nodes), RetryPolicy(), pool=name)
    client = way(state)
    assert await client.get_owner("files/none") is None
    await client.settle(await client.acquire_lease(ONE), used(42), ["files/1"])
    assert await client.get_owner("files/1") == ("a", "p")
    await client.settle(await client.acquire_lease(ONE), failed(Scope.KEY))
    assert await client.refused(ONE) == {"a": "failure"}
    state.reset(ONE)
    await client.settle(await client.acquire_lease(ONE), OK)
    known = state.snapshot([ONE])["a"]
    assert (known.success_count, known.error_count) == (2, 1)
    assert [used.bucket for used in known.used] == [MODEL]
    state.close()
    homes = [node for node in nodes if any(f"{{{name}}}" in found for found in node.names())]
    assert len(homes) == 1


def test_the_nodes_share_the_pools(nodes: list[Server]) -> None:
    """Five names are enough to use more than one node."""
    for number in range(5):
        state = RedisState(url_of(nodes), RetryPolicy(), pool=f"many-{number}")
        state.settle(_acquire(state), OK)
        state.close()
    assert sum(any("{many-" in name for name in node.names()) for node in nodes) > 1


@pytest.mark.skipif(REDIS_CLI is None, reason="no redis-cli; tools/ci_packages.sh installs it")
@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_the_slot_of_a_pool_is_moved_under_load(
    kind: type[Threads | Tasks], nodes: list[Server]
) -> None:
    """`redis-cli --cluster reshard` there and back: no call fails, and each request counts once."""
    name, one = pool_on(nodes[0], kind.__name__), key("a", Limits(rpd=600))
    with ExitStack() as opened:
        states = [_fallback(nodes, name) for _ in range(2)]
        callers = [opened.enter_context(kind(state, one, number=16)) for state in states]

        def leases() -> int:
            return sum(one.leases["a"] for one in callers)

        callers[0].until(lambda: leases() >= 50)
        move_slots(nodes[0], nodes[1])
        callers[0].until(lambda: leases() >= 200)
        move_slots(nodes[1], nodes[0])
        callers[0].until(lambda: leases() >= 600)
        time.sleep(0.3)
    for one_kind in callers:
        assert one_kind.errors == []
    assert leases() == 600
    wait_for(lambda: states[0].snapshot([one])["a"].used[0].requests_day == 600)
    for state in states:
        state.close()
    moved = [row for node in nodes for row in node.execute("CLUSTER", "NODES").split(b"\n")]
    assert not [row for row in moved if b"myself" in row and (b"->-" in row or b"-<-" in row)]


def _fallback(nodes: list[Server], pool: str) -> FallbackState:
    shared = RedisState(url_of(nodes), RetryPolicy(), pool=pool)
    local = LocalWindows(RetryPolicy(), time.time)
    return FallbackState(shared, local, CircuitBreaker(time.monotonic), "test")


@pytest.mark.skipif(REDIS_CLI is None, reason="no redis-cli; tools/ci_packages.sh installs it")
def test_a_split_slot_is_refused(nodes: list[Server]) -> None:
    """While records of a pool are on two nodes, no script reads or writes a part of them."""
    name = pool_on(nodes[0], "split", 1)
    state = RedisState(url_of(nodes), RetryPolicy(), pool=name)
    state.settle(_acquire(state), OK)
    slot = key_slot(f"keyrot:v1:{{{name}}}".encode())
    ids = [node.execute("CLUSTER", "MYID") for node in nodes]
    nodes[1].execute("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    nodes[0].execute("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    try:
        begun = time.monotonic()
        with pytest.raises(RedisStateError):
            _acquire(state)
        assert time.monotonic() - begun < 11, "twice the time limit of 5 s"
        with pytest.raises(RedisStateError):
            state.check()
    finally:
        for node in nodes[:2]:
            node.execute("CLUSTER", "SETSLOT", slot, "STABLE")
    assert not [found for found in nodes[1].names() if f"{{{name}}}" in found]
    state.settle(_acquire(state), OK)
    assert state.snapshot([ONE])["a"].used[0].requests_day == 2
    state.close()


def _acquire(state: RedisState) -> Lease:
    lease = state.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(lease, Lease)
    return lease


def test_after_a_failover_the_new_master_is_found() -> None:
    """Sentinels name the master; when it is killed, the next one serves within seconds."""
    with watched_pair() as (master, replica, sentinel):
        dead = free_port()
        state = RedisState(
            f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{sentinel.port}/main", RetryPolicy()
        )
        _acquire_async(state)
        state.settle(_acquire(state), OK)
        assert master.names()
        master.stop()
        wait_for(lambda: _tried(state), 20)
        _acquire_async(state)
        assert replica.names()
        state.close()


@pytest.mark.parametrize("way", [SyncClient, AsyncClient], ids=["sync", "async"])
async def test_sentinels_that_hang_are_waited_for_together(
    way: type[StateClient], valkey: Server
) -> None:
    """Six of them cost no more than twice the time limit; one that answers last is used."""
    with ExitStack() as hanging, sentinel_of(valkey) as sentinel:
        silent = [hanging.enter_context(create_server(("127.0.0.1", 0))) for _ in range(6)]
        hosts = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)
        begun = time.monotonic()
        with pytest.raises(RedisStateError):
            await way(
                RedisState(f"redis+sentinel://{hosts}/main?socket_timeout=2", RetryPolicy())
            ).acquire_lease(ONE)
        assert time.monotonic() - begun < 10, "one after the other they would take 12 s"
        url = f"redis+sentinel://{hosts},127.0.0.1:{sentinel.port}/main?socket_timeout=2"
        state = RedisState(url, RetryPolicy())
        begun = time.monotonic()
        await way(state).settle(await way(state).acquire_lease(ONE))
        assert time.monotonic() - begun < 10
        state.close()


def test_a_master_that_no_sentinel_knows_is_an_error() -> None:
    """The error contains the name, so that a typing error is visible."""
    master = Server(BINARIES["valkey"])
    try:
        with sentinel_of(master) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mian"
            with pytest.raises(RedisStateError, match="No master found for 'mian'"):
                _acquire(RedisState(url, RetryPolicy()))
    finally:
        master.remove()


def _tried(state: RedisState) -> bool:
    with suppress(RedisStateError):
        state.settle(_acquire(state), OK)
        return True
    time.sleep(0.05)
    return False


def _acquire_async(state: RedisState) -> None:
    async def work() -> None:
        lease = await state.aacquire(INFO, ((0, ONE),), spread=False)
        assert isinstance(lease, Lease)
        await state.asettle(lease, OK)

    asyncio.run(work())
