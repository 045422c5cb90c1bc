"""The breaker alone: who may ask, when, and what their answer changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keyrot_middleware.state.circuit_breaker import PAUSE_S, CircuitBreaker


class Seconds:
    """A clock of seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Tell them."""
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    """Stand at 100 s."""
    return Seconds()


@pytest.fixture
def breaker(seconds: Seconds) -> CircuitBreaker:
    """Begin closed."""
    return CircuitBreaker(seconds)


def turn_of(breaker: CircuitBreaker) -> int:
    """Enter where there must be a turn."""
    turn = breaker.acquire_permit()
    assert turn is not None
    return turn


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    """Let one turn fail."""
    assert breaker.record_failure(turn_of(breaker))
    return breaker


def test_closed_lets_everyone_in(breaker: CircuitBreaker) -> None:
    """While nothing fails, everyone may ask, and success says nothing new."""
    turns = [turn_of(breaker) for _ in range(5)]
    assert [breaker.record_success(turn) for turn in turns] == [None] * 5
    assert not breaker.is_open


def test_one_failure_opens_it_for_a_pause(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """After a failure nobody may ask before the pause is over; then one may."""
    opened(breaker)
    assert breaker.is_open
    seconds.now += PAUSE_S - 0.01
    assert breaker.acquire_permit() is None
    seconds.now += 0.01
    assert breaker.acquire_permit() is not None
    assert breaker.acquire_permit() is None


def test_a_look_that_succeeds_closes_it_and_tells_how_long(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """The seconds are those since the failure; then everyone may ask again."""
    opened(breaker)
    seconds.now += 7.5
    assert breaker.record_success(turn_of(breaker)) == 7.5
    assert not breaker.is_open
    assert None not in [breaker.acquire_permit() for _ in range(3)]


def test_a_look_that_fails_waits_for_another_pause(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """It opens nothing anew: the whole time counts as one."""
    opened(breaker)
    seconds.now += PAUSE_S
    look = turn_of(breaker)
    seconds.now += 0.2
    assert not breaker.record_failure(look)
    seconds.now += PAUSE_S - 0.01
    assert breaker.acquire_permit() is None
    seconds.now += 0.01
    assert breaker.record_success(turn_of(breaker)) == pytest.approx(2 * PAUSE_S + 0.2)


def test_calls_under_way_when_it_opens_change_nothing(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """Sixty-four that fail together are one failure, and one that did well closes nothing."""
    turns = [turn_of(breaker) for _ in range(64)]
    assert [breaker.record_failure(turn) for turn in turns] == [True] + [False] * 63
    assert breaker.record_success(turns[0]) is None
    assert breaker.is_open


def test_news_from_before_the_recovery_is_old(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """A call that began before the outage, and fails after it, opens nothing."""
    before = turn_of(breaker)
    opened(breaker)
    seconds.now += PAUSE_S
    breaker.record_success(turn_of(breaker))
    assert not breaker.record_failure(before)
    assert not breaker.is_open


def test_a_caller_that_never_comes_back_blocks_nobody(
    breaker: CircuitBreaker, seconds: Seconds
) -> None:
    """A look whose task was cancelled is followed by another after the pause."""
    opened(breaker)
    seconds.now += PAUSE_S
    lost = turn_of(breaker)
    seconds.now += PAUSE_S
    assert breaker.record_success(turn_of(breaker)) is not None
    assert breaker.record_success(lost) is None


def test_of_many_threads_one_looks(breaker: CircuitBreaker, seconds: Seconds) -> None:
    """When the pause is over and all come at once, exactly one is let in."""
    opened(breaker)
    for _ in range(20):
        seconds.now += PAUSE_S
        gate = threading.Barrier(8)

        def come(gate: threading.Barrier = gate) -> int | None:
            gate.wait()
            return breaker.acquire_permit()

        with ThreadPoolExecutor(8) as threads:
            turns = [future.result() for future in [threads.submit(come) for _ in range(8)]]
        assert sum(turn is not None for turn in turns) == 1
