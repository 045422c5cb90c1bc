"""A pool in a cluster, and behind sentinels: the same state, whichever node has its records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from support.concurrent_callers import Threads, check_callers
from support.pool import INFO, key
from support.redis_state import opened
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
from support.sync_async import OK, SyncClient, failed, used

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Scope
from keyrot_middleware.state import open_state
from keyrot_middleware.state.redis import RedisState, RedisStateError

ONE = key("a", Limits(rpm=20_000), project="p")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    """Run a cluster."""
    with cluster_of_three() as three:
        yield three


def url_of(nodes: list[Server]) -> str:
    """Name one node only; it knows the others."""
    return f"redis+cluster://127.0.0.1:{nodes[0].port}?socket_timeout=5"


@pytest.mark.parametrize("pool", ["one", "two", "three"])
async def test_a_pool_lives_on_whichever_node_has_its_slot(pool: str, nodes: list[Server]) -> None:
    """Acquire, settle, cool down, own, reset and snapshot, from the wrong node or the right one."""
    with closing(RedisState(url_of(nodes), RetryPolicy(), pool=pool)) as state:
        client = SyncClient(state)
        assert await client.get_owner("files/none") is None
        await client.settle(await client.acquire_lease(ONE), used(42), ["files/1"])
        assert await client.get_owner("files/1") == ("a", "p")
        await client.settle(await client.acquire_lease(ONE), failed(Scope.KEY))
        assert await client.refused(ONE) == {"a": "failure"}
        state.reset(ONE)
        await client.settle(await client.acquire_lease(ONE), OK)
        known = state.snapshot([ONE])["a"]
        assert (known.success_count, known.error_count) == (2, 1)
    homes = [node for node in nodes if any(f"{{{pool}}}" in found for found in node.names())]
    assert len(homes) == 1


@pytest.mark.skipif(REDIS_CLI is None, reason="no redis-cli; tools/ci_packages.sh installs it")
def test_the_slot_of_a_pool_is_moved_under_load(nodes: list[Server]) -> None:
    """`redis-cli --cluster reshard`: no call fails, and limits are shared again afterwards."""
    name = pool_on(nodes[0], "moved")
    with closing(open_state(url_of(nodes), RetryPolicy(), time.time, pool=name)) as state:
        with Threads(state, ONE, number=8) as callers:
            callers.until(lambda: callers.leases["a"] >= 50)
            move_slots(nodes[0], nodes[1])
            callers.until(lambda: callers.leases["a"] >= 200 and not state.degraded)
        check_callers(callers)


def test_after_a_failover_the_new_master_is_found() -> None:
    """Sentinels name the master; when it is killed, the next one serves within seconds."""
    with watched_pair() as (master, replica, sentinel):
        sentinels = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
        with opened(f"redis+sentinel://{sentinels}/main") as state:
            with Threads(state, ONE, number=8) as callers:
                callers.until(lambda: callers.leases["a"] > 50)
                assert master.names()
                master.stop()
                callers.until(lambda: state.degraded)
                callers.until(lambda: replica.execute("ROLE")[0] == b"master")
                callers.until(lambda: not state.degraded)
            check_callers(callers)
            wait_for(lambda: _is_shared(state), 20)
            assert replica.names()


def _is_shared(state: object) -> bool:
    with suppress(RedisStateError):
        reply = state.acquire(INFO, ((0, ONE),), spread=False)  # type: ignore[attr-defined]
        return isinstance(reply, Lease) and not reply.degraded
    return False


def test_a_master_that_no_sentinel_knows_is_an_error() -> None:
    """The error contains the name, so that a typing error is visible."""
    master = Server(BINARIES["valkey"])
    try:
        with sentinel_of(master) as sentinel:
            state = RedisState(f"redis+sentinel://127.0.0.1:{sentinel.port}/mian", RetryPolicy())
            with pytest.raises(RedisStateError, match="No master found for 'mian'"):
                state.acquire(INFO, ((0, ONE),), spread=False)
    finally:
        master.remove()
