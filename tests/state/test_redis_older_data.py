"""A server that returns to older data: each process reports what was counted since."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pool import INFO, key
from support.redis_state import POLICY, SHORT_S, acquire_lease
from support.servers import BINARIES, ENGINES, Server, wait_for

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Usage
from keyrot_middleware.core.spending import NANO
from keyrot_middleware.state import FallbackState
from keyrot_middleware.state.base import Counted
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.state.redis.epoch import COUNTED_KEPT, DataEpoch

pytestmark = pytest.mark.usefixtures("within_a_minute")

ONE, TEN = key("a"), key("a", Limits(rpd=10))


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Start a server of the test's own."""
    made = Server(BINARIES[request.param.partition("://")[0]])
    yield made
    made.remove()


@pytest.fixture
def states(server: Server) -> Iterator[list[FallbackState]]:
    """Open a pool in three processes."""
    made = [_open(server) for _ in range(3)]
    yield made
    for state in made:
        state.close()


def _open(server: Server) -> FallbackState:
    shared = RedisState(f"{server.strict_url}?socket_timeout=5", POLICY, pool="older")
    local = LocalWindows(POLICY, time.time)
    return FallbackState(shared, local, CircuitBreaker(time.monotonic, SHORT_S), "test")


def saved(server: Server) -> dict[str, Any]:
    """Return all records as they are now."""
    return {name: server.execute("DUMP", name) for name in server.names()}


def restore(server: Server, records: dict[str, Any]) -> None:
    """Empty the server, and restore records."""
    server.execute("FLUSHALL")
    for name, value in records.items():
        server.execute("RESTORE", name, 3_600_000, value, "REPLACE")


def call(state: FallbackState, times: int) -> None:
    """Acquire and settle so often."""
    for _ in range(times):
        acquire_lease(state, ONE)


def day(state: FallbackState) -> int:
    """Return how many requests of the day are counted."""
    return state.snapshot([ONE])["a"].used[0].requests_day


def counts(state: FallbackState, number: int) -> None:
    """Wait until so many are counted, and check that it stays so."""
    wait_for(lambda: day(state) == number and not state._is_behind)


def test_records_restored_from_a_copy(server: Server, states: list[FallbackState]) -> None:
    """What each process sent since the copy is counted again, and nothing else is."""
    call(states[0], 3)
    call(states[1], 2)
    copy = saved(server)
    call(states[0], 4)
    call(states[1], 5)
    call(states[2], 6)
    restore(server, copy)
    for state in states:
        call(state, 1)
    counts(states[0], 3 + 2 + 4 + 5 + 6 + 3)


def test_calls_between_the_loss_and_the_restore(
    server: Server, states: list[FallbackState]
) -> None:
    """All data is lost, then an old copy is restored: its epoch is known, and older."""
    call(states[0], 3)
    copy = saved(server)
    call(states[1], 4)
    server.execute("FLUSHALL")
    for state in states:
        call(state, 1)
    counts(states[0], 3 + 4 + 3)
    restore(server, copy)
    for state in states:
        call(state, 1)
    counts(states[0], 3 + 4 + 3 + 3)


def test_an_old_copy_is_restored_twice(server: Server, states: list[FallbackState]) -> None:
    """What was reported after the first time is reported again, once."""
    call(states[0], 3)
    copy = saved(server)
    call(states[0], 4)
    call(states[1], 5)
    for more in (2, 4):
        restore(server, copy)
        for state in states[:2]:
            call(state, 1)
        counts(states[0], 3 + 4 + 5 + more)


def test_a_copy_of_restored_data_is_restored(server: Server, states: list[FallbackState]) -> None:
    """It has what the first copy had, and what was reported after that."""
    call(states[0], 3)
    copy = saved(server)
    call(states[0], 4)
    restore(server, copy)
    for state in states:
        call(state, 1)
    counts(states[0], 3 + 4 + 3)
    copy = saved(server)
    call(states[1], 5)
    call(states[0], 1)  # it has seen the latest number, and will notice
    server.execute("FLUSHALL")
    call(states[2], 1)
    restore(server, copy)
    for state in states:
        call(state, 1)
    counts(states[0], 3 + 4 + 3 + 5 + 1 + 1 + 3)


def test_a_restart_from_a_snapshot(server: Server, states: list[FallbackState]) -> None:
    """Killed and started with older data: usage of the outage counts too."""
    call(states[0], 3)
    server.execute("SAVE")
    call(states[0], 2)
    call(states[1], 4)
    server.stop()
    for state in states:
        call(state, 2)
    assert Path(server.directory, "dump.rdb").exists()
    server.start()
    time.sleep(SHORT_S)
    for state in states:
        wait_for(lambda state=state: not acquire_lease(state, ONE).degraded)  # type: ignore[misc]
    own = sum(state._local.snapshot([ONE])["a"].used[0].requests_day for state in states)
    assert own >= 3 + 2 + 4 + 6 + 3
    counts(states[0], own)


def test_a_limit_that_is_exhausted_stays_exhausted(
    server: Server, states: list[FallbackState]
) -> None:
    """No process gets a lease when all have noticed; here the one that sent most is the first."""
    acquire_lease(states[0], TEN)
    copy = saved(server)
    for _ in range(9):
        acquire_lease(states[0], TEN)
    restore(server, copy)
    for state in states:
        assert not isinstance(state.acquire(INFO, ((0, TEN),), spread=False), Lease)
        assert not state.degraded


def test_a_budget_is_restored_too(server: Server, states: list[FallbackState]) -> None:
    """Costs since the copy are charged again."""
    paid, info = key("p", usd_per_day=1.0), INFO._replace(longest_cost=NANO // 10)
    done = Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1, cost_usd=0.125))

    def pay(state: FallbackState) -> None:
        lease = state.acquire(info, ((0, paid),), spread=False)
        assert isinstance(lease, Lease)
        state.settle(lease, done)

    pay(states[0])
    copy = saved(server)
    pay(states[0])
    pay(states[1])
    restore(server, copy)
    pay(states[0])
    pay(states[1])
    wait_for(lambda: states[0].snapshot([paid])["p"].spent_usd == pytest.approx(5 * 0.125))


def test_a_new_process_changes_nothing(server: Server, states: list[FallbackState]) -> None:
    """It knows of no other epoch, and finds no loss."""
    call(states[0], 3)
    call(_open(server), 2)
    call(states[0], 1)
    assert day(states[0]) == 6


# The record of what was counted ------------------------------------------------------------------


def epoch_with(number: int) -> DataEpoch:
    """Return an epoch in which so many leases were granted to this process."""
    epoch = DataEpoch()
    for change in range(1, number + 1):
        epoch.read("one", change, Counted(0.0, "p", "m", 1, change))
    return epoch


def missing(epoch: DataEpoch, accepted_at: int = 0) -> list[int] | None:
    """Return what is missing after a loss; accept it."""
    loss = epoch.take_loss()
    assert loss is not None
    epoch.accept(loss, accepted_at)
    return None if loss.missing is None else [one.tokens for one in loss.missing]


def test_only_what_is_newer_than_the_data_is_missing() -> None:
    """The data has the first two of four changes."""
    epoch = epoch_with(4)
    epoch.find_loss("two", 0, "one", 2)
    assert missing(epoch, 7) == [3, 4]
    assert epoch.known == ("two", 7, " one ")


def test_everything_is_missing_where_the_data_is_unknown() -> None:
    """All usage of the current windows is reported then."""
    epoch = epoch_with(4)
    epoch.find_loss("two", 0, "-", 0)
    assert missing(epoch) is None


def test_what_was_reported_after_one_loss_is_not_missing_after_the_next() -> None:
    """All data is lost, then an old copy comes back, then a copy of the time between."""
    epoch = epoch_with(4)
    epoch.find_loss("two", 0, "-", 0)
    assert missing(epoch, 5) is None
    epoch.find_loss("three", 0, "one", 3)
    assert missing(epoch, 9) == [4]
    epoch.find_loss("four", 0, "two", 5)
    assert missing(epoch) == []
    epoch.find_loss("five", 0, "two", 4)
    assert missing(epoch) == [1, 2, 3, 4]


def test_more_than_is_kept_is_missing() -> None:
    """Rather too much is counted than too little: everything is reported."""
    epoch = epoch_with(COUNTED_KEPT + 2)
    epoch.find_loss("two", 0, "one", 1)
    assert missing(epoch) is None


def test_a_second_loss_before_a_report_replaces_the_first() -> None:
    """The server goes back, and back again, before a call notices."""
    epoch = epoch_with(4)
    epoch.find_loss("two", 0, "one", 3)
    epoch.find_loss("three", 0, "one", 1)
    assert missing(epoch) == [2, 3, 4]


def test_a_loss_is_reported_once() -> None:
    """The second caller that finds it has nothing to report."""
    epoch = epoch_with(2)
    epoch.find_loss("two", 0, "one", 1)
    loss = epoch.take_loss()
    epoch.find_loss("two", 5, "one", 1)
    assert epoch.take_loss() is None
    assert loss is not None
    epoch.accept(loss, 6)
    epoch.find_loss("two", 7, "one", 1)
    assert epoch.take_loss() is None
