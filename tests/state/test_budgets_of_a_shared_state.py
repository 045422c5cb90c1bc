"""A budget that processes share: a dead worker, an outage, a loss of data, an unreadable record."""

from __future__ import annotations

import json
import time
from itertools import count

import pytest
from support.faulty_state import ConnectionLostError, degrading
from support.pool import INFO, key
from support.servers import ENGINES, server
from support.sync_async import UNSENT

from keyrot_middleware.core.model import Lease, LeaseOutcome, Outcome, RetryPolicy, Usage
from keyrot_middleware.core.spending import NANO, nano_usd
from keyrot_middleware.core.windows import next_pacific_midnight
from keyrot_middleware.state import State
from keyrot_middleware.state.circuit_breaker import PAUSE_S, CircuitBreaker
from keyrot_middleware.state.fallback import FallbackState, LocalWindows
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.testing import FakeClock

A = key("a", project="p", usd_per_day=1.0)
B = key("b", project="q", usd_per_day=1.0)
LONG = INFO._replace(longest_cost=2 * NANO)
_pools = count()


def costing(usd: float) -> Outcome:
    """Return a success that cost so much."""
    return Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1, cost_usd=usd))


def acquired(state: State, *, info: object = INFO) -> Lease:
    """Acquire A; it must be there."""
    lease = state.acquire(info, ((0, A),), spread=False)  # type: ignore[arg-type]
    assert isinstance(lease, Lease), lease
    return lease


def spent(state: State) -> float | None:
    """Return what the project has spent."""
    return state.snapshot([A])["a"].spent_usd


def reasons(state: State, *, info: object = INFO) -> dict[str, str]:
    """Return why A is blocked."""
    blocks = state.get_blocks(info, [A])  # type: ignore[arg-type]
    return {key_id: block.reason for key_id, block in blocks.items()}


def over(engine: str, clock: FakeClock, lease_s: float = 15.0) -> RedisState:
    """Open an empty pool on a real server."""
    url = server(engine.partition("://")[0]).url
    name = f"budgets-{next(_pools)}-{time.time_ns()}"
    return RedisState(url, RetryPolicy(), pool=name, lease_s=lease_s, test_clock=clock.time)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_reservation_of_a_dead_worker_ends_with_its_lease(engine: str) -> None:
    """It is no longer renewed, so other processes can use it after 15 s."""
    clock = FakeClock()
    state = over(engine, clock)
    state._renewals.close()  # the worker is dead
    acquired(state, info=LONG)
    assert reasons(state, info=LONG) == {"a": "usd_reserved"}
    clock.advance(15)
    acquired(state, info=LONG)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_without_a_budget_has_no_record(engine: str) -> None:
    """Nothing is read or written for it."""
    state = over(engine, FakeClock())
    lease = state.acquire(INFO, ((0, key("free")),), spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, costing(0.5))
    state._server.flush()
    (names,) = state._server.commands([["KEYS", f"{state._base}:*"]])
    assert not [name for name in names if b"spending" in name or b"lease:" in name]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("record", ["[1]", '[1,"x",{},{}]', '[1,2,{},{"l":3}]', "no JSON"])
def test_an_unreadable_record_is_replaced(engine: str, record: str) -> None:
    """It is dropped, its name is logged, and the call continues."""
    state = over(engine, FakeClock())
    state.settle(acquired(state), costing(0.25))
    state._server.commands([["SET", f"{state._base}:spending:p", record]])
    acquired(state)
    assert spent(state) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_record_expires_with_its_day(engine: str) -> None:
    """No record of a budget stays on the server for long."""
    state = over(engine, FakeClock())
    state.settle(acquired(state), costing(0.25))
    name = f"{state._base}:spending:p"
    left, text = state._server.commands([["PTTL", name], ["GET", name]])
    assert 0 < left <= 25 * 3_600_000
    assert json.loads(text)[1:] == [nano_usd(0.25), {INFO.model: nano_usd(0.25)}, {}]


def test_what_is_spent_in_an_outage_is_reported_afterwards() -> None:
    """Spending of local leases and of unsettled ones is reported once."""
    clock = FakeClock()
    state, shared = degrading(clock.time)
    state.settle(acquired(state), costing(0.125))
    under_way = acquired(state)
    shared.cut()
    own = acquired(state)
    assert own.degraded
    state.settle(own, costing(0.25))
    state.settle(under_way, costing(0.0625))
    assert spent(state) == pytest.approx(0.4375)  # all of it by this process
    shared.restore()
    clock.advance(PAUSE_S)
    state.settle(acquired(state), UNSENT)
    state.settle(acquired(state), UNSENT)
    assert spent(shared.inner) == pytest.approx(0.4375)


def test_a_budget_holds_in_an_outage() -> None:
    """This process's own spending counts against it."""
    state, shared = degrading(FakeClock().time)
    state.settle(acquired(state), costing(0.5))
    shared.cut()
    state.settle(acquired(state), costing(0.5))
    assert reasons(state) == {"a": "usd"}


def test_a_process_may_use_its_share_of_a_budget_in_an_outage() -> None:
    """One process may use its share of the budget, as of each limit."""
    state, shared = degrading(FakeClock().time, share=0.25)
    shared.cut()
    state.settle(acquired(state), costing(0.25))
    assert reasons(state) == {"a": "usd"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shared_state_that_lost_its_data_is_sent_what_was_spent(engine: str) -> None:
    """It gets all that this process has spent today."""
    clock = FakeClock()
    shared = over(engine, clock)
    local = LocalWindows(RetryPolicy(), clock.time)
    state = FallbackState(shared, local, CircuitBreaker(clock.time), "test")
    state.settle(acquired(state), costing(0.5))
    (names,) = shared._server.commands([["KEYS", f"{shared._base}:*"]])
    shared._server.commands([["DEL", *names]])
    state.settle(acquired(state), UNSENT)
    assert spent(shared) == pytest.approx(0.5)


def test_spending_is_recorded_after_an_outage() -> None:
    """Spending recorded by hand while the shared state is down reaches it later."""
    clock = FakeClock()
    state, shared = degrading(clock.time)
    state.record_spending("p", nano_usd(0.25))
    assert spent(shared.inner) == pytest.approx(0.25)
    shared.cut()
    state.record_spending("p", nano_usd(0.25))
    shared.restore()
    clock.advance(PAUSE_S)
    state.settle(acquired(state), UNSENT)
    assert spent(shared.inner) == pytest.approx(0.5)


@pytest.mark.parametrize("again", [False, True], ids=["until midnight", "and after the first try"])
def test_what_an_outage_leaves_unreported_ends_with_its_day(again: bool) -> None:
    """The budget of the next day is not charged for it."""
    clock = FakeClock(next_pacific_midnight(FakeClock().time()) - 60)
    state, shared = degrading(clock.time)
    shared.cut()
    state.settle(acquired(state), costing(0.5))
    if again:  # the report is on its way, and fails
        with pytest.raises(ConnectionLostError):
            state._send_reports()
    clock.advance(120)
    shared.restore()
    state.settle(acquired(state), UNSENT)
    state.settle(acquired(state), UNSENT)
    assert spent(shared.inner) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_absurd_cost_exhausts_the_budget(engine: str) -> None:
    """A broken gateway may report any number of tokens; a sum beyond 64 bits would be negative."""
    state = over(engine, FakeClock())
    state.settle(acquired(state), costing(1e15))
    assert reasons(state) == {"a": "usd"}
    state.record_spending("p", nano_usd(1e300))
    assert reasons(state) == {"a": "usd"}
