"""The judgement about calls, in cases; tests/state/test_calls_now.py compares it with the pool."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from keyrot_middleware.core.judgement import (
    Availability,
    Judgement,
    availability,
    describe_block,
    ends_by,
    judge,
)
from keyrot_middleware.core.model import Block, CallInfo, Candidate
from keyrot_middleware.core.outcomes import Run, Runs

NOW = 1_000.0
A, B = Candidate("a", "a", "a"), Candidate("b", "b", "b", workload="batch")
MINUTE, DAY = Block("rpm", NOW + 30, waitable=True), Block("rpd", NOW + 40_000)
IN_USE, GUESS = Block("concurrency", NOW + 0.1, waitable=True), Block("capacity", NOW + 30)
CUT = Block("project_cap", NOW + 3_600)
COUNTS = (NOW - 600, 12, 12, NOW)
DOWN = Runs(Run("failed", "overloaded", 503, "", *COUNTS))
UP_AGAIN = Runs(Run("failed", "overloaded", 503, "", *COUNTS, is_on=False))
LOST = Runs(Run("failed", "connect", None, "", *COUNTS))
REFUSED = Runs(refused=Run("refused", "bad_request", 400, "", *COUNTS))
SHORT = Runs(shortage=Run("no_key", "capacity", None, "", *COUNTS))
WAS_SHORT = Runs(shortage=Run("no_key", "rpm", None, "", *COUNTS, is_on=False))
NEXT = Judgement("next", None, "served", 1, 1)


@pytest.mark.parametrize(
    ("workload", "blocks", "more", "expected"),
    [
        ("", {}, {}, {"answer": "served", "able": 2, "key_id": None, "is_trouble": False}),
        ("", {"a": DAY}, {}, {"answer": "served", "able": 1, "key_id": "a", "ends_by": "time"}),
        ("", {"a": DAY, "b": IN_USE}, {}, {"answer": "busy", "key_id": "b", "ends_by": "guess"}),
        ("", {"a": DAY, "b": MINUTE}, {"wait_s": 60.0}, {"answer": "waits", "key_id": "b"}),
        ("", {"a": DAY, "b": MINUTE}, {"wait_s": 9.0}, {"answer": "no", "block": MINUTE}),
        ("", {"a": CUT, "b": GUESS}, {}, {"answer": "no", "key_id": "b", "ends_by": "guess"}),
        (
            "",
            {"a": CUT},
            {"rejected": dict.fromkeys("ab", "key_leaked")},
            {"answer": "due", "key_id": "b"},
        ),
        ("", {"a": CUT, "b": CUT}, {}, {"answer": "no", "ends_by": "person", "is_trouble": True}),
        ("", {"a": DAY, "b": DAY}, {"runs": DOWN}, {"answer": "no", "ends_by": "time"}),
        ("", {}, {"runs": DOWN}, {"answer": "failing", "ends_by": "success", "runs": DOWN}),
        ("", {}, {"runs": UP_AGAIN}, {"answer": "served", "is_trouble": False}),
        ("", {}, {"runs": DOWN, "next_model": NEXT}, {"answer": "served", "is_spare": True}),
        ("", {}, {"runs": DOWN, "next_model": NEXT}, {"next_model": "next", "able": 2}),
        ("", {}, {"runs": LOST, "next_model": NEXT}, {"next_model": ""}),
        ("", {}, {"next_model": NEXT}, {"next_model": "", "is_spare": False}),
        ("", {}, {"runs": LOST, "next_model": NEXT}, {"answer": "failing", "is_spare": False}),
        ("", {}, {"runs": REFUSED}, {"answer": "refused", "is_trouble": False}),
        ("", {"a": DAY, "b": DAY}, {"runs": REFUSED}, {"answer": "no"}),
        ("", {}, {"runs": SHORT}, {"answer": "due", "ends_by": "success", "is_trouble": False}),
        ("", {}, {"runs": WAS_SHORT}, {"answer": "served"}),
        ("batch", {"b": DAY}, {"runs": SHORT}, {"answer": "served", "is_spare": True}),
        ("", {"a": DAY, "b": DAY}, {"next_model": NEXT}, {"answer": "served", "able": 0}),
        ("", {"a": CUT, "b": CUT}, {"next_model": NEXT}, {"answer": "no", "is_spare": False}),
        ("batch", {"a": DAY}, {}, {"answer": "served", "is_spare": False}),
        ("batch", {"b": DAY}, {}, {"is_spare": True, "key_id": "b", "is_trouble": True}),
        ("batch", {}, {"rejected": {"b": "key_leaked"}}, {"is_spare": True, "ends_by": "success"}),
    ],
)
def test_it_answers_from_what_blocks_the_keys(
    workload: str, blocks: dict[str, Block], more: dict[str, Any], expected: dict[str, object]
) -> None:
    """The best key decides; then the last calls, and the next model, if calls would go on to it."""
    info = CallInfo("m", "generateContent", workload=workload or None)
    found = judge(info, [A, B], blocks, **{"now": NOW, "rejected": {}, **more})
    assert {name: getattr(found, name) for name in expected} == expected


def test_no_key_at_all_waits_for_a_person() -> None:
    """A call for which there is no key is not served before somebody adds one."""
    found = judge(CallInfo("m", "generateContent"), [], {}, now=NOW, rejected={})
    assert found == Judgement("m", None, "no", 0, 0, ends_by="person")


def test_a_window_of_a_rejected_key_does_not_bring_it_back() -> None:
    """Whatever ends first for a rejected key, a person ends its rejection."""
    info, rejected = CallInfo("m", "generateContent"), {"a": "key_leaked"}
    found = judge(info, [A], {"a": DAY}, now=NOW, rejected=rejected)
    assert found.block == Block("key_leaked", DAY.until) and found.ends_by == "person"
    assert ends_by(Block("failed", float("inf"))) == "guess"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Block("rpd", NOW), "rpd until 1970-01-01 00:16:40Z"),
        (Block("rpd", NOW, note="share of batch"), "share of batch until 1970-01-01 00:16:40Z"),
        (Block("capacity", NOW), "capacity; tried again at 1970-01-01 00:16:40Z"),
        (
            Block("project_cap", NOW),
            "project_cap: a person ends that at the provider; tried again at 1970-01-01 00:16:40Z",
        ),
        (
            Block("limit_zero", NOW),
            "limit_zero: the provider does not offer this model to the key; tried again at "
            "1970-01-01 00:16:40Z",
        ),
        (
            Block("key_restricted", NOW),
            "key_restricted, rejected; change its restrictions or its project, not its value; "
            "tried again at 1970-01-01 00:16:40Z",
        ),
        (Block("location", inf), "location"),
        (Block("usd", NOW), "the budget of the day is spent until 1970-01-01 00:16:40Z"),
        (Block("usd_reserved", NOW), "requests under way may spend the rest of a budget"),
        (Block("tier", inf), "tier: not one that this call may use (KEYROT_TIERS, workload)"),
    ],
)
def test_a_block_is_said_with_a_time_that_is_named_or_guessed(block: Block, expected: str) -> None:
    """Only a named time is an end; a rejection also says what to do."""
    assert describe_block(block) == expected
    assert "replace its value; tried again at" in describe_block(Block("key_leaked", NOW))
    quoted = describe_block(Block("credit_depleted", NOW), "No credit is left.")
    assert quoted.startswith('credit_depleted "No credit is left."; tried again at ')


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (None, Availability("available")),
        (DAY, Availability("limited", DAY.until, "rpd")),
        (GUESS, Availability("cooling_down", GUESS.until, "capacity")),
        (IN_USE, Availability("limited", None, "concurrency")),
        (Block("location", inf), Availability("cooling_down", None, "location")),
    ],
)
def test_a_key_is_available_at_a_time_that_is_known(block: Any, expected: Availability) -> None:
    """When another call ends nobody knows; it is only when to look again."""
    assert availability(block) == expected
