"""The breaker alone: which calls it permits, when, and how their results change it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keyrot_middleware.state.circuit_breaker import FIRST_PAUSE_S, PAUSE_S, CircuitBreaker


class Seconds:
    """A clock of seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    """Start at 100 s."""
    return Seconds()


@pytest.fixture
def breaker(seconds: Seconds) -> CircuitBreaker:
    """Start closed."""
    return CircuitBreaker(seconds)


def permit_of(breaker: CircuitBreaker) -> int:
    """Enter where there must be a permit."""
    turn = breaker.acquire_permit()
    assert turn is not None
    return turn


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    """Let two permitted calls fail."""
    assert not breaker.record_failure(permit_of(breaker))
    assert breaker.record_failure(permit_of(breaker))
    return breaker


def test_a_closed_breaker_permits_every_call(breaker: CircuitBreaker) -> None:
    """While nothing fails, every call is permitted, and a success changes nothing."""
    permits = [permit_of(breaker) for _ in range(5)]
    assert [breaker.record_success(turn) for turn in permits] == [None] * 5
    assert not breaker.is_open


def test_a_success_between_two_failures_keeps_the_breaker_closed(breaker: CircuitBreaker) -> None:
    """Only two failures in a row open it."""
    for _ in range(3):
        assert not breaker.record_failure(permit_of(breaker))
        breaker.record_success(permit_of(breaker))
    assert not breaker.is_open
    opened(breaker)
    assert breaker.is_open


def test_two_failures_open_the_breaker_for_a_pause(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """After two failures no call is permitted until the pause is over; then one is."""
    opened(breaker)
    assert breaker.is_open
    seconds.now += FIRST_PAUSE_S - 0.01
    assert breaker.acquire_permit() is None
    seconds.now += 0.02
    assert breaker.acquire_permit() is not None
    assert breaker.acquire_permit() is None


def test_a_successful_probe_closes_the_breaker_and_repermits_the_duration(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """The seconds are those since the failure; then every call is permitted again."""
    opened(breaker)
    seconds.now += 7.5
    assert breaker.record_success(permit_of(breaker)) == 7.5
    assert not breaker.is_open
    assert None not in [breaker.acquire_permit() for _ in range(3)]


def test_each_failed_probe_doubles_the_pause(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """A short outage ends soon, a long one costs little; the whole time counts as one."""
    opened(breaker)
    pause_s = FIRST_PAUSE_S
    for _ in range(10):
        seconds.now += pause_s - 0.01
        assert breaker.acquire_permit() is None
        seconds.now += 0.02
        assert not breaker.record_failure(permit_of(breaker))
        pause_s = min(2 * pause_s, PAUSE_S)
    assert pause_s == PAUSE_S
    seconds.now += PAUSE_S + 0.01
    lasted_s = breaker.record_success(permit_of(breaker))
    assert lasted_s is not None
    assert lasted_s > 6 * PAUSE_S
    opened(breaker)
    seconds.now += FIRST_PAUSE_S + 0.01
    assert breaker.acquire_permit() is not None


def test_calls_in_flight_when_it_opens_change_nothing(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """Sixty-four that fail together open it once, and one that succeeds does not close it."""
    permits = [permit_of(breaker) for _ in range(64)]
    assert [breaker.record_failure(turn) for turn in permits] == [False, True] + [False] * 62
    assert breaker.record_success(permits[0]) is None
    assert breaker.is_open


def test_a_result_from_before_the_recovery_is_ignored(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """A call that began before the outage, and fails after it, does not open the breaker."""
    before = permit_of(breaker)
    opened(breaker)
    seconds.now += PAUSE_S
    breaker.record_success(permit_of(breaker))
    assert not breaker.record_failure(before)
    assert not breaker.is_open


def test_a_probe_that_never_ends_blocks_no_other(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """A probe whose task was cancelled is followed by another after the pause."""
    opened(breaker)
    seconds.now += PAUSE_S
    lost = permit_of(breaker)
    seconds.now += PAUSE_S
    assert breaker.record_success(permit_of(breaker)) is not None
    assert breaker.record_success(lost) is None


def test_one_of_many_threads_is_the_probe(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """When the pause is over and all come at once, exactly one is permitted."""
    opened(breaker)
    for _ in range(20):
        seconds.now += PAUSE_S
        gate = threading.Barrier(8)

        def come(gate: threading.Barrier = gate) -> int | None:
            gate.wait()
            return breaker.acquire_permit()

        with ThreadPoolExecutor(8) as threads:
            permits = [future.result() for future in [threads.submit(come) for _ in range(8)]]
        assert sum(turn is not None for turn in permits) == 1
