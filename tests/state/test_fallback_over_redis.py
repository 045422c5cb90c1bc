"""The fallback over a real server: many threads, ends of processes, lost data."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.pool import INFO, key
from support.redis_state import POLICY, acquire_lease, opened
from support.servers import Server
from support.sync_async import OK

from keyrot_middleware.core.model import Lease, Limits
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import FallbackState, LocalWindows
from keyrot_middleware.state.redis import RedisState

ONE, TWENTY = key("a"), key("t", Limits(rpd=20))
PLACE = key("p", Limits(max_concurrency=1))
SHORT_S = 1.0


def fallback(shared: RedisState, pause_s: float = 0.2) -> FallbackState:
    """Put the fallback over a state, with a short pause of its breaker."""
    local = LocalWindows(POLICY, time.time)
    return FallbackState(shared, local, CircuitBreaker(time.monotonic, pause_s), "test")


def at_once(state: FallbackState, number: int, one: object = ONE) -> int:
    """Acquire from many threads at the same moment; count the leases."""
    start = threading.Barrier(number)

    def acquire(_: int) -> bool:
        start.wait(30)
        reply = state.acquire(INFO, ((0, one),), spread=False)  # type: ignore[arg-type]
        if isinstance(reply, Lease):
            state.settle(reply, OK)
        return isinstance(reply, Lease)

    with ThreadPoolExecutor(number) as threads:
        return sum(threads.map(acquire, range(number)))


@pytest.fixture
def state(valkey: Server) -> Iterator[FallbackState]:
    """Open a state over a server of the test's own."""
    with opened(valkey.url) as made:
        yield made


def test_more_threads_than_redis_py_has_connections_by_default(
    valkey: Server, state: FallbackState
) -> None:
    """150 threads at the same moment are all served by the shared state."""
    valkey.execute("CONFIG", "SET", "maxclients", "1000")
    with opened(f"{valkey.strict_url}?socket_timeout=20") as patient:
        assert at_once(patient, 150) == 150
        assert not patient.degraded
        assert patient.snapshot([ONE])["a"].used[0].requests_day == 150


def test_after_a_data_loss_callers_at_the_same_moment_get_no_limit_twice(
    valkey: Server,
) -> None:
    """Usage is reported before any of them gets a lease."""
    with opened(f"{valkey.strict_url}?socket_timeout=20") as state:
        for _ in range(20):
            acquire_lease(state, TWENTY)
        valkey.execute("FLUSHALL")
        assert at_once(state, 16, TWENTY) == 0
        assert not state.degraded


def test_a_slot_that_was_settled_in_an_outage_is_free_soon(valkey: Server) -> None:
    """The slot of a lease that this process has settled locally is not renewed."""
    mine = RedisState(valkey.url, POLICY, pool="places", lease_s=SHORT_S)
    other = RedisState(valkey.url, POLICY, pool="places", lease_s=SHORT_S)
    state = fallback(mine)
    lease = state.acquire(INFO, ((0, PLACE),), spread=False)
    assert isinstance(lease, Lease)
    valkey.stop()
    state.settle(lease, OK)
    valkey.start()
    until = time.monotonic() + 30 * SHORT_S
    while not isinstance(other.acquire(INFO, ((0, PLACE),), spread=False), Lease):
        assert time.monotonic() < until, "the place is still taken"
        time.sleep(0.1)
    for one in (state, other):
        one.close()


def test_a_success_that_ends_after_close_is_recorded(valkey: Server) -> None:
    """A call that outlives uninstall() is still settled with the shared state."""
    state = RedisState(valkey.url, POLICY, pool="closed")
    lease = state.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(lease, Lease)
    state.close()
    state.settle(lease, OK)
    assert state.snapshot([ONE])["a"].success_count == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reports_only_its_own_usage(valkey: Server, state: FallbackState) -> None:
    """After a loss of data the parent's usage is reported by the parent, and once."""
    for _ in range(5):
        acquire_lease(state)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            valkey.execute("FLUSHALL")
            acquire_lease(state)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    acquire_lease(state)
    assert state.snapshot([ONE])["a"].used[0].requests_day == 7
