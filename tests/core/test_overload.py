"""The breaker of an overloaded model."""

from __future__ import annotations

from support.pool import INFO, Rig, key, three
from support.replies import OK, overloaded

from keyrot_middleware.core.flow import CLOSE_AFTER_S, MAX_FAILED_CALLS, Overload

NOW = 1_000.0


def failing(rig: Rig, calls: int) -> None:
    """Let so many calls end with a 503, each sent as often as allowed."""
    for _ in range(calls):
        rig.will("a", *(overloaded() for _ in range(3)))
        rig.failing()
        rig.script.clear()


def test_an_overloaded_model_is_not_retried_by_every_call() -> None:
    """After three calls that ended with a 503, the next are sent once each."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    assert len(rig.sent) == 3 * MAX_FAILED_CALLS
    failing(rig, 2)
    assert len(rig.sent) == 3 * MAX_FAILED_CALLS + 2


def test_the_first_served_call_closes_the_breaker() -> None:
    """The breaker stops retries and never a call; a success permits them again."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    assert rig.call() == "answer"
    rig.will("a", overloaded(), OK)
    assert rig.call() == "answer"


def test_the_breaker_is_per_model() -> None:
    """Another model's calls are retried as before."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    rig.will("a", overloaded(), OK)
    assert rig.call(INFO._replace(model="gemini-2.5-pro")) == "answer"


def test_the_breaker_is_per_service_tier() -> None:
    """Flex calls that end with a 503 say nothing about standard ones, which are retried."""
    rig = Rig(key("a"), max_retries=2)
    flex = INFO._replace(service_tier="flex")
    for _ in range(MAX_FAILED_CALLS):
        rig.will("a", *(overloaded() for _ in range(3)))
        rig.failing(flex)
    rig.will("a", overloaded(), OK)
    assert rig.call() == "answer"
    sent = len(rig.sent)
    rig.will("a", overloaded(), OK)
    rig.failing(flex)
    assert len(rig.sent) == sent + 1


def test_the_breaker_closes_after_half_a_minute() -> None:
    """Half a minute after the last 503 a call is retried again."""
    rig = Rig(key("a"), max_retries=2)
    failing(rig, MAX_FAILED_CALLS)
    rig.clock.advance(CLOSE_AFTER_S)
    rig.will("a", overloaded(), OK)
    assert rig.call() == "answer"


def test_one_calls_own_retries_do_not_open_the_breaker() -> None:
    """However often one call meets a 503, it is one call."""
    rig = three(max_retries=10)
    rig.will("a", *(overloaded() for _ in range(9)), OK)
    assert rig.call() == "answer"
    assert len(rig.sent) == 10


def test_calls_far_apart_are_not_in_a_row() -> None:
    """A 503 now and then opens nothing."""
    overload = Overload()
    for turn in range(10):
        overload.record_overload(INFO, NOW + turn * CLOSE_AFTER_S)
    assert not overload.is_open(INFO, NOW + 9 * CLOSE_AFTER_S)


def test_the_breaker_keeps_a_bounded_number_of_models() -> None:
    """Invented model names of a program use bounded memory."""
    overload = Overload()
    for number in range(10_000):
        overload.record_overload(INFO._replace(model=f"model-{number}"), NOW)
    assert len(overload.models) <= 256
