"""The result of a call, and what the state and the caller learn from it."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from support.pool import INFO, three
from support.replies import (
    bad,
    capacity,
    failure,
    invalid,
    lost,
    minute,
)

from keyrot_middleware.core.commands import Done, GetTime, Settle, Sleep
from keyrot_middleware.core.flow import Exhausted, FailedAttempt, attempt_note
from keyrot_middleware.core.model import Scope, Usage, Verdict
from keyrot_middleware.runtime import sync


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


def test_a_hint_is_part_of_the_note_of_a_rejection() -> None:
    """A failure that rejects no key has no hint."""
    rejected = FailedAttempt("k", Verdict("key_invalid", 400, rejected=True), 1e9)
    assert attempt_note(1, rejected, "Standard keys are over.").endswith(
        "Z. Standard keys are over."
    )
    assert attempt_note(1, FailedAttempt("k", Verdict("capacity", 429), 1e9), "Not this.").endswith(
        "Z"
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
    tape = rig.flow()
    sync.run(tape, sync.SyncDriver(rig.pool, INFO, rig.send))  # type: ignore[arg-type]
    first, second, third = tape.of(Settle)
    assert first.error is reply.error
    assert first.outcome.verdict.scope is Scope.PROJECT_MODEL
    assert [s.outcome.kind.value for s in (first, second, third)] == [
        "failure",
        "unsent",
        "success",
    ]
    assert [sleep.reason for sleep in tape.of(Sleep)] == ["retry"]
    assert tape.of(GetTime)
