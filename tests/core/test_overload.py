"""The breaker of a model that serves nobody."""

from __future__ import annotations

from support.pool import INFO, Rig, key, three
from support.replies import OK, overloaded

from keyrot_middleware.core.flow import CLOSE_AFTER_S, MAX_FAILED_CALLS, Overload

MODEL, NOW = "gemini-2.5-flash", 1_000.0


def failing(rig: Rig, calls: int) -> None:
    """Let so many calls end with a 503, each sent as often as it may be."""
    for _ in range(calls):
        rig.will("a", *(overloaded() for _ in range(3)))
        rig.failing()
        rig.script.clear()


def test_a_model_that_serves_nobody_is_not_asked_again_and_again() -> None:
    """After three calls that ended with a 503, the next are sent once each."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    assert len(rig.sent) == 3 * MAX_FAILED_CALLS
    failing(rig, 2)
    assert len(rig.sent) == 3 * MAX_FAILED_CALLS + 2


def test_the_first_call_that_is_served_closes_it() -> None:
    """The breaker stops retries and never a call; a success gives them back."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    assert rig.call() == "answer"
    rig.will("a", overloaded(), OK)
    assert rig.call() == "answer"


def test_it_is_about_one_model() -> None:
    """Another model's calls are repeated as ever."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    rig.will("a", overloaded(), OK)
    assert rig.call(INFO._replace(model="gemini-2.5-pro")) == "answer"


def test_it_closes_by_itself() -> None:
    """Half a minute after the last 503 a call is repeated again."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    rig.clock.advance(CLOSE_AFTER_S)
    rig.will("a", overloaded(), OK)
    assert rig.call() == "answer"


def test_one_calls_own_retries_do_not_open_it() -> None:
    """However often one call meets a 503, it is one call."""
    rig = three(max_retries=10)
    rig.will("a", *(overloaded() for _ in range(9)), OK)
    assert rig.call() == "answer"
    assert len(rig.sent) == 10


def test_calls_far_apart_are_not_in_a_row() -> None:
    """A 503 now and then opens nothing."""
    overload = Overload()
    for turn in range(10):
        overload.record_overload(MODEL, NOW + turn * CLOSE_AFTER_S)
    assert not overload.is_open(MODEL, NOW + 9 * CLOSE_AFTER_S)


def test_it_remembers_a_bounded_number_of_models() -> None:
    """Made-up model names of a program leave no growth."""
    overload = Overload()
    for number in range(10_000):
        overload.record_overload(f"model-{number}", NOW)
    assert len(overload.models) <= 256
