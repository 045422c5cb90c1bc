"""A shared state that fails: calls continue, limits of this process hold, and it is tried again."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from support.pool import INFO, key
from support.servers import closed_port, wait_for
from support.states import (
    OK,
    A,
    Faulty,
    degrading,
    failed,
    granted,
    lease_of,
    refused,
    settle,
    warnings_of,
)

from keyrot_middleware.core.model import (
    NANO,
    Budget,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Terms,
    Usage,
)
from keyrot_middleware.state import FallbackState
from keyrot_middleware.state.fallback import PAUSE_S
from keyrot_middleware.testing import FakeClock

FIVE = key("f", Limits(rpm=5))
Restore = Callable[[], None]


@pytest.fixture
def both(clock: FakeClock) -> tuple[FallbackState, Faulty]:
    return degrading(clock.time)


@pytest.fixture
def state(both: tuple[FallbackState, Faulty]) -> FallbackState:
    return both[0]


@pytest.fixture
def shared(both: tuple[FallbackState, Faulty]) -> Faulty:
    return both[1]


@pytest.fixture
def restore(state: FallbackState, shared: Faulty, clock: FakeClock) -> Restore:
    """Restore the connection, let the pause pass, and call until the state is shared again."""

    def do() -> None:
        shared.restore()
        clock.advance(PAUSE_S)
        lease_of(state, key("other"))
        wait_for(lambda: not state._breaker.is_open)

    return do


@pytest.mark.parametrize("method", ["acquire", "settle", "get_owner"])
async def test_nothing_is_raised_whatever_fails(
    state: FallbackState, shared: Faulty, method: str
) -> None:
    """Each method that a call uses has an answer when the shared state is down, awaited too."""
    shared.cut(method)
    settle(state, A, OK, "files/1")
    assert state.get_owner(["files/1"]) == ("a", "a")
    lease = await state.do(state.acquire, INFO, ((0, A),), strategy="fill")
    await state.do(state.settle, lease, OK, ["files/2"])
    assert await state.do(state.get_owner, ["files/2"]) == ("a", "a")


def test_a_state_that_fails_is_tried_once_in_a_pause_by_no_call(
    state: FallbackState, shared: Faulty, clock: FakeClock, restore: Restore
) -> None:
    """It is called once; a thread tries it after a pause; its answer ends the outage."""
    shared.cut()
    for _ in range(10):
        settle(state, A)
    assert shared.calls == ["acquire"]
    clock.advance(PAUSE_S)
    for _ in range(10):
        assert lease_of(state, A).degraded
    wait_for(lambda: shared.calls == ["acquire", "check"])
    restore()
    assert not lease_of(state, A).degraded


def test_one_warning_at_the_start_of_an_outage_and_one_at_its_end(
    state: FallbackState,
    shared: Faulty,
    clock: FakeClock,
    restore: Restore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared.cut()
    for _ in range(3):
        settle(state, A)
    clock.advance(10)
    for _ in range(3):  # a trial succeeds, and the calls fail all the same
        restore()
        shared.cut("acquire")
        settle(state, A)
    restore()
    settle(state, A)
    assert state.degraded
    clock.advance(PAUSE_S)
    settle(state, A)
    assert not state.degraded
    assert warnings_of(caplog) == [
        "pool test: the shared state cannot be used (ConnectionLostError); falling back to "
        "in-process limits",
        "pool test: the shared state is back after 18.0 s; limits are shared again",
    ]


def test_what_its_own_calls_have_found_holds_in_an_outage(
    state: FallbackState, shared: Faulty, clock: FakeClock
) -> None:
    """Cooldowns, learned limits, owners and what it has sent; not what others have used."""
    settle(state, A, failed(Scope.KEY, clock.time() + 600))
    settle(state, FIVE, failed(Scope.NONE, learned=Limits(rpm=3)))
    settle(state, key("d"), OK, "files/1")
    shared.cut()
    assert refused(state, A) == {"a": "failure"}
    assert granted(state, FIVE) == 2
    assert state.get_owner(["files/1"]) == ("d", "d")
    state.reset(A)
    lease_of(state, A)


def test_both_names_of_a_model_that_it_has_sent_count_in_an_outage(
    state: FallbackState, shared: Faulty
) -> None:
    """That of the model that answers, and the old one, as before."""
    old = INFO._replace(model="gemini-2.5-flash", replaced_by="gemini-3.5-flash-lite")
    assert granted(state, FIVE, 3, info=old) == 3
    shared.cut()
    assert granted(state, FIVE, 1, info=INFO._replace(model="gemini-3.5-flash-lite")) == 1
    assert granted(state, FIVE, 1, info=INFO._replace(model="gemini-2.5-flash")) == 1
    assert granted(state, FIVE, info=old) == 1


def test_a_lease_of_a_state_that_reserves_nothing_counts_in_an_outage(
    state: FallbackState, shared: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of another distribution, which keeps what it has reserved by itself."""
    lease = lease_of(shared.inner, FIVE)._replace(reservation=None)
    monkeypatch.setattr(shared.inner, "_acquire", lambda *_, **__: lease)
    assert granted(state, FIVE, 3) == 3
    shared.cut()
    assert granted(state, FIVE) == 2


def test_what_its_own_calls_have_cost_is_spent_in_an_outage(
    state: FallbackState, shared: Faulty
) -> None:
    """So is what a workload has used of its share."""
    one = key("paid", usd=Budget(day=10 * NANO))
    chat = INFO._replace(terms=Terms("batch", share=0.5), input_cost=1, longest_cost=NANO)
    settle(state, one, Outcome(LeaseOutcome.SUCCESS, None, Usage(10, cost_usd=10.0)))
    settle(state, key("shared", Limits(rpd=10)), info=chat)
    shared.cut()
    assert refused(state, one) == {"paid": "usd"}
    assert granted(state, key("shared", Limits(rpd=10)), info=chat) == 4


def test_a_long_outage_is_tried_as_often_as_a_short_one(
    state: FallbackState, shared: Faulty, clock: FakeClock
) -> None:
    """The pause between two trials doubles up to `PAUSE_S`, and no further."""
    shared.cut()
    lease_of(state, A)
    for number in range(1, 13):
        clock.advance(PAUSE_S)
        lease_of(state, A)
        wait_for(lambda n=number: shared.calls.count("check") == n)  # type: ignore[misc]


def test_limits_that_were_read_hold_in_an_outage(state: FallbackState, shared: Faulty) -> None:
    """As learned ones do: nobody reads them anew for each process."""
    state.take_limits("f", {INFO.model: Limits(rpm=3)})
    shared.cut()
    assert granted(state, FIVE) == 3


def test_a_probe_that_succeeded_is_known_in_an_outage(
    state: FallbackState, shared: Faulty, clock: FakeClock
) -> None:
    """The next failure is the first one of its kind again, and cools down for 30 s, not 60."""
    settle(state, A, failed(Scope.KEY))
    clock.advance(30)
    settle(state, A)
    shared.cut()
    assert settle(state, A, failed(Scope.KEY)) == clock.time() + 30


def test_a_lease_is_settled_where_it_was_granted(
    state: FallbackState, shared: Faulty, restore: Restore
) -> None:
    """One of before the outage is lost with it, one of the outage is unknown afterwards."""
    before = lease_of(state, FIVE)
    shared.cut()
    during = lease_of(state, FIVE)
    settle(state, before)
    restore()
    settle(state, during)
    known = shared.inner.snapshot([FIVE])["f"]
    assert (known.success_count, known.used[0].requests_minute) == (0, 1)


def test_leases_in_flight_count_in_max_concurrency(state: FallbackState, shared: Faulty) -> None:
    one = key("k", Limits(max_concurrency=2))
    first = lease_of(state, one)
    shared.cut()
    second = lease_of(state, one)
    assert refused(state, one) == {"k": "concurrency"}
    settle(state, first)
    first = lease_of(state, one)
    assert refused(state, one) == {"k": "concurrency"}
    settle(state, second)
    lease_of(state, one)


# What a program without logging sees -----------------------------------------------------------

PROGRAM = """
import logging, sys, time
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state import open_state
if sys.argv[2] == "logging":
    logging.basicConfig(format="logged: %(message)s")
open_state(sys.argv[1], RetryPolicy(), time.time).close()
"""


@pytest.mark.parametrize(
    ("options", "logs", "begins"),
    [
        ((), "none", "KeyrotWarning: pool default: the shared state cannot be used"),
        ((), "logging", "logged: pool default: the shared state cannot be used"),
        (("-W", "error"), "none", ""),
    ],
)
def test_a_lost_state_is_one_warning_and_no_error(
    options: tuple[str, ...], logs: str, begins: str
) -> None:
    """Of Python where no logging is set up; a program whose warnings are errors continues."""
    url = f"redis://:hunter2@127.0.0.1:{closed_port()}/0"
    command = [sys.executable, *options, "-c", PROGRAM, url, logs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert begins in done.stderr
    assert done.stderr.count("cannot be used") == 1 or options
    assert "hunter2" not in done.stderr
