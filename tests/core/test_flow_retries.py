"""Retrying: a failure that penalizes no key is sent again, within a budget of its own."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import INFO, Rig, key, three
from support.replies import (
    OK,
    failure,
    invalid,
    lost,
    minute,
    overloaded,
)


def test_max_attempts_bounds_the_walk_but_not_the_retries() -> None:
    """Walking and retrying have budgets of their own: neither uses up the other's."""
    rig = three(max_attempts=2, max_retries=2)
    rig.will("a", overloaded(), overloaded(), invalid())
    rig.will("b", invalid())
    rig.failing()
    assert rig.sent == ["a", "a", "a", "b"]
    rig = three(max_attempts=0, max_retries=1)
    rig.will("a", invalid())
    rig.will("b", overloaded(), invalid())
    rig.will("c", overloaded())
    rig.failing()
    assert rig.sent == ["a", "b", "b", "c"]


def test_waiting_does_not_use_up_the_retries() -> None:
    """A call that has waited for a key may still be retried, and the other way round."""
    rig = Rig(key("a"), max_retries=2)
    rig.will("a", overloaded(), minute("5s"), overloaded(), OK)
    assert rig.call() == "answer"
    assert [round(pause, 2) for pause in rig.slept] == [0.25, 5.0, 0.5]


@pytest.mark.parametrize(
    "fault",
    [overloaded, lambda: failure(500), lambda: lost("reset"), lambda: lost("connect")],
)
def test_a_server_failure_is_retried_with_backoff_and_penalizes_no_key(fault: Any) -> None:
    """5xx and lost connections: sent again twice, further apart, with the same key."""
    rig = three(max_retries=2)
    replies = [fault() for _ in range(3)]
    rig.will("a", *replies)
    rig.random = 0.999
    assert rig.failing() is replies[-1].error
    assert rig.sent == ["a", "a", "a"]
    assert [round(pause, 1) for pause in rig.slept] == [0.5, 1.0]
    assert rig.call() == "answer"
    assert rig.sent[3:] == ["a"]


def test_the_backoff_is_bounded() -> None:
    """However many retries are allowed, no pause is longer than eight seconds."""
    rig = Rig(key("a"), max_retries=12)
    rig.will("a", *(overloaded() for _ in range(12)))
    rig.random = 0.999999
    rig.call()
    assert max(rig.slept) <= 8.0
    assert rig.slept == sorted(rig.slept)


def test_a_deadline_of_the_server_is_retried_once() -> None:
    """504: the work may have been done, so one more try and no more."""
    rig = Rig(key("a"), max_retries=5)
    rig.will("a", failure(504), failure(504))
    rig.failing()
    assert rig.sent == ["a", "a"]
    rig = Rig(key("a"), max_retries=0)
    rig.will("a", failure(504))
    rig.failing()
    assert rig.sent == ["a"]


@pytest.mark.parametrize(
    ("info", "fault", "sends"),
    [
        (INFO._replace(idempotent=False), overloaded, 1),
        (INFO._replace(idempotent=False), lambda: lost("reset"), 1),
        (INFO._replace(idempotent=False), lambda: lost("connect"), 3),
        (INFO._replace(sdk_retries=True), overloaded, 1),
    ],
)
def test_non_idempotent_calls_and_calls_that_the_sdk_retries_are_not_retried(
    info: Any, fault: Any, sends: int
) -> None:
    """A create is repeated only if nothing was sent; the SDK's own retries are not repeated."""
    rig = three()
    rig.will("a", *(fault() for _ in range(3)))
    rig.failing(info)
    assert rig.sent == ["a"] * sends


def test_a_time_that_the_server_names_is_waited_for_before_a_retry() -> None:
    """It counts as waiting; a delay that does not fit into that budget ends the call."""
    later = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    rig = Rig(key("a"), max_retries=5, max_wait_s=10.0)
    rig.will("a", *(failure(503, "Busy.", later) for _ in range(5)))
    rig.failing()
    assert (rig.sent, rig.slept) == (["a", "a"], [7.0])
