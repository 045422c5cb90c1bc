"""The result of a call, and what the state and the caller learn from it."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from support.pool import INFO, Rig, key, three
from support.replies import (
    bad,
    capacity,
    day,
    failure,
    invalid,
    lost,
    minute,
    overloaded,
    unsupported_region,
)

from keyrot_middleware.core.commands import Done, Settle, Sleep
from keyrot_middleware.core.flow import Exhausted, FailedAttempt, attempt_note
from keyrot_middleware.core.model import Scope, Usage, Verdict


@pytest.mark.parametrize(
    "fault", [bad, lambda: failure(404), lambda: lost("timeout"), lambda: lost("other")]
)
def test_a_bad_request_is_sent_once_and_penalizes_no_key(fault: Any) -> None:
    """The request's own failure, or the caller's deadline, is raised at once."""
    rig = three()
    reply = fault()
    rig.will("a", reply)
    assert rig.failing() is reply.error
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "a"], [])


def test_the_exception_lists_every_attempt() -> None:
    """Notes list which key failed how and until when it cools down; a bad request has them too."""
    rig = three(max_wait_s=0)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.will("c", bad())
    assert rig.failing().__notes__ == [
        "keyrot: attempt 1 with key a: quota_minute (429), cooling down until 2026-01-01 12:30:50Z",
        "keyrot: attempt 2 with key b: key_invalid (400), rejected; replace its value; "
        "tried again at 2026-01-01 12:45:30Z",
        "keyrot: attempt 3 with key c: bad_request (400)",
    ]
    assert attempt_note(1, FailedAttempt("k", Verdict("key_invalid", 400), 1e12)).endswith(
        "9999-12-31 23:59:59Z"
    )


def test_without_an_available_key_the_error_has_a_reason_per_key() -> None:
    """No key is available soon: nothing is sent, and the error has each key's reason."""
    rig = three(max_wait_s=10)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.will("c", capacity())
    rig.failing()
    rig.sent.clear()
    for _ in range(2):
        error = rig.failing()
        assert isinstance(error, Exhausted)
        blocks = error.unavailable.blocks
        assert {key_id: block.reason for key_id, block in blocks.items()} == {
            "a": "quota_minute",
            "b": "key_invalid",
            "c": "capacity",
        }
        assert error.unavailable.retry_at == rig.clock.time() + 20
    assert rig.sent == []


def test_a_pool_without_a_candidate_has_no_retry_time() -> None:
    """A stored resource with neither owner nor home key cannot be requested."""
    error = three().failing(INFO._replace(bound_to_owner=True, resources=("files/a",)))
    assert isinstance(error, Exhausted)
    assert error.unavailable.retry_at == inf


def test_true_tokens_adjust_the_scale() -> None:
    """The tokens of a response scale the next estimate."""
    rig = three()
    rig.will("a", Done("answer", Usage(input_tokens=30)))
    rig.call()
    assert rig.pool.token_scale.scaled(INFO.model, 10) == 30


def test_every_failure_is_settled_with_its_verdict_and_error() -> None:
    """The state and the telemetry get the failure; a success carries its usage and names."""
    rig = three()
    reply = minute()
    rig.will("a", reply)
    rig.will("b", lost("connect"))
    tape = rig.recorded()
    first, second, third = tape.of(Settle)
    assert first.error is reply.error
    assert first.outcome.verdict.scope is Scope.PROJECT_MODEL
    assert [s.outcome.kind.value for s in (first, second, third)] == [
        "failure",
        "unsent",
        "success",
    ]
    assert [sleep.reason for sleep in tape.of(Sleep)] == ["retry"]


# What is raised when no key could serve ---------------------------------------------------------


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_what_is_raised_does_not_depend_on_the_order_of_keys(order: str) -> None:
    """An invalid key, an exhausted day and an exhausted minute: always exhausted, never the 400."""
    rig = Rig(*(key(key_id) for key_id in order), strategy="fill", max_wait_s=0)
    for key_id, reply in (("a", invalid()), ("b", day()), ("c", minute("31s"))):
        rig.will(key_id, reply)
    error = rig.failing()
    assert isinstance(error, Exhausted)
    assert {key_id: block.reason for key_id, block in error.unavailable.blocks.items()} == {
        "a": "key_invalid",
        "b": "quota_day",
        "c": "quota_minute",
    }
    assert [note.split()[5] for note in error.__notes__] == [f"{key_id}:" for key_id in order]


@pytest.mark.parametrize("fault", [bad, overloaded, unsupported_region])
def test_errors_of_the_request_and_of_the_service_are_the_sdks_own(fault: Any) -> None:
    """Also behind keys that failed as keys."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0, max_retries=0)
    rig.will("a", invalid())
    last = fault()
    rig.will("b", last)
    assert rig.failing() is last.error


def test_a_limit_on_the_attempts_leaves_keys_untried() -> None:
    """Two of three keys fail and the third is not tried: the pool itself is not exhausted."""
    rig = three(max_attempts=2, max_wait_s=0)
    for key_id in "ab":
        rig.will(key_id, day())
    error = rig.failing()
    assert isinstance(error, Exhausted)
    assert (error.has_untried_keys, set(error.unavailable.blocks)) == (True, {"a", "b"})
