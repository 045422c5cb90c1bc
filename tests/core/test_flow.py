"""Walking the pool: a failed key is excluded, an available one is used at once."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import INFO, Rig, key, three
from support.replies import (
    blocked,
    capacity,
    day,
    denied,
    exceeds_limit,
    failure,
    invalid,
    lost,
    minute,
    unsupported_region,
)

from keyrot_middleware.core.commands import Acquire, Done, Refresh
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Limits, Usage


def test_an_exhausted_an_invalid_and_a_good_key_serve_60_calls() -> None:
    """A 429, B invalid, C good: 1, 1 and 60 requests, none failed, and no call sleeps."""
    rig = three()
    rig.will("a", minute("30s"))
    rig.will("b", invalid())
    assert [rig.call() for _ in range(60)] == ["answer"] * 60
    assert rig.sent == ["a", "b", *["c"] * 60]
    assert rig.slept == []


@pytest.mark.parametrize("fault", [minute, day, capacity, invalid, denied, blocked])
def test_a_failed_key_is_excluded_and_a_healthy_one_used_without_sleeping(fault: Any) -> None:
    """Every failure of a key makes the call continue at once, with another key."""
    rig = three()
    rig.will("a", fault())
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "b"], [])


def test_220_dead_keys_are_tried_once_each() -> None:
    """However many keys are dead, each costs one request in all."""
    rig = Rig(*(key(f"dead{number}") for number in range(220)), key("good"))
    for number in range(220):
        rig.will(f"dead{number}", invalid(), invalid())
    rig.random = 0.999
    for _ in range(3):
        rig.call()
    rig.random = 0.0
    assert [rig.call() for _ in range(20)] == ["answer"] * 20
    dead = [key_id for key_id in rig.sent if key_id != "good"]
    assert len(dead) == len(set(dead)) == 220
    rig.sent.clear()
    rig.call()
    assert rig.sent == ["good"]


def test_a_call_skips_keys_that_are_known_to_cool_down() -> None:
    """Candidates that were all refused are skipped by the next call: cost does not grow."""
    rig = Rig(*(key(f"k{number}", Limits(rpd=1)) for number in range(200)), strategy="fill")
    for _ in range(190):
        rig.call()
    tapes = [rig.recorded() for _ in range(3)]
    assert sum(len(tape.of(Acquire)) for tape in tapes) <= 4


def test_each_key_is_tried_once_and_then_the_pool_is_exhausted() -> None:
    """When all fail without a known time, the SDK's last exception is the cause."""
    rig = three()
    replies = [invalid(), capacity(), denied()]
    for key_id, reply in zip("abc", replies, strict=True):
        rig.will(key_id, reply)
    error = rig.failing()
    assert error.last is replies[-1].error
    assert set(error.unavailable.blocks) == {"a", "b", "c"}
    assert not error.has_untried_keys
    assert (rig.sent, rig.slept) == (["a", "b", "c"], [])


def test_a_capacity_error_is_not_tried_with_every_key() -> None:
    """A 429 without a quota is probably the model's: six keys are tried, not twenty."""
    rig = Rig(*(key(f"k{number}") for number in range(20)), strategy="fill")
    for number in range(20):
        rig.will(f"k{number}", capacity())
    rig.failing()
    assert rig.sent == [f"k{number}" for number in range(6)]


def test_an_unsupported_region_tries_one_key_of_another_tier() -> None:
    """Where the free tier is not offered only a paid key can help; one refusal is enough."""
    rig = Rig(
        *(key(f"free{number}", tier="free") for number in range(3)),
        *(key(f"paid{number}", tier="paid", priority=1) for number in range(3)),
        strategy="fill",
    )
    rig.will("free0", unsupported_region(), unsupported_region())
    assert rig.call() == "answer"
    assert rig.sent == ["free0", "paid0"]
    rig.will("paid0", unsupported_region())
    rig.failing()
    assert rig.sent[2:] == ["free0", "paid0"]


@pytest.mark.parametrize("tier", ["free", None])
def test_a_request_larger_than_the_limit_is_tried_with_two_keys_of_a_tier(tier: str | None) -> None:
    """Our count is an estimate, so a second key is tried; then only another tier can help."""
    free, paid = (key(f"f{number}", tier=tier) for number in range(6)), key("paid", tier="paid")
    rig = Rig(*free, paid, strategy="fill")
    for number in range(6):
        rig.will(f"f{number}", exceeds_limit())
    assert rig.call(INFO._replace(tokens=5_000)) == "answer"
    assert (rig.sent, rig.slept) == (["f0", "f1", "paid"], [])
    rig.script.clear()
    assert rig.call() == "answer"
    assert rig.sent[-1] == "f2", "the others of the tier do not rest"


def test_a_request_that_is_too_large_for_one_key_only_is_tried_again() -> None:
    """The second key of the tier serves, or has no room just now: then the third is tried."""
    rig = Rig(*(key(f"f{number}", tier="free") for number in range(4)), strategy="fill")
    rig.will("f0", exceeds_limit())
    rig.will("f1", minute("9s"))
    assert rig.call(INFO._replace(tokens=5_000)) == "answer"
    assert rig.sent == ["f0", "f1", "f2"]


def test_a_replaced_secret_is_used_at_once_but_only_once() -> None:
    """A rejected key whose value was replaced serves the same call; a second bad value does not."""
    rig = three()

    def replaced() -> Any:
        rig.store.values["a"] += "x"
        return invalid()

    rig.will("a", replaced)
    assert rig.call() == "answer"
    assert rig.sent == ["a", "a"]
    rig.will("a", replaced, replaced)
    assert rig.call() == "answer"
    assert rig.sent[2:] == ["a", "a", "b"]


def test_a_key_is_looked_up_again_only_when_it_is_rejected() -> None:
    """An exhausted minute or a project closed for a day is no reason to query the secret store."""
    rig = three(max_wait_s=0)
    rig.will("a", minute())
    rig.will("b", denied())
    rig.will("c", failure(403, "Permission denied: Consumer 'projects/1' has been suspended."))
    tape = rig.recorded()
    assert [(refresh.key_id, refresh.wait) for refresh in tape.of(Refresh)] == [
        ("c", False),
        ("c", True),
    ]


def test_a_call_waits_for_a_secret_store_only_when_no_other_key_can_serve() -> None:
    """Rejected keys are only looked up while others are available; then each is waited for once."""
    rig = three(max_wait_s=0)
    for key_id in "abc":
        rig.will(key_id, invalid())
    tape = rig.recorded()
    refreshed = [(refresh.key_id, refresh.wait) for refresh in tape.of(Refresh)]
    assert refreshed[:3] == [("a", False), ("b", False), ("c", False)]
    assert sorted(refreshed[3:]) == [("a", True), ("b", True), ("c", True)]


def test_a_late_value_serves_the_call_that_no_other_key_can() -> None:
    """Two keys are rejected; the first one's new value has arrived when the second fails."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)

    def replaced() -> Any:
        rig.store.values["a"] += "x"
        return invalid()

    rig.will("a", invalid())
    rig.will("b", replaced)
    assert rig.call() == "answer"
    assert rig.sent == ["a", "b", "a"]


def test_a_key_of_a_learned_bucket_cools_down_for_all_of_its_names() -> None:
    """Google counts a `-latest` name with its model: both cool down after either's 429."""
    rig = Rig(key("a"), max_wait_s=0)
    latest = INFO._replace(model="gemini-flash-latest")
    rig.will("a", minute("20s", model=INFO.model))
    rig.failing(latest)
    for info in (latest, INFO):
        assert isinstance(rig.failing(info), Exhausted)
    rig.clock.advance(21)
    rig.call(latest)
    rig.will("a", minute("20s", model="gemini-3-flash"))
    rig.failing(latest)
    assert isinstance(rig.failing(latest), Exhausted)
    assert rig.call(INFO) == "answer"


def test_an_unused_reservation_is_available_at_once() -> None:
    """Another call found the minute full; then the request in it was not sent after all."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=0)

    def meanwhile() -> Any:
        assert isinstance(rig.failing(), Exhausted)
        return lost("connect")

    rig.will("a", meanwhile)
    assert rig.call() == "answer"
    assert rig.sent == ["a", "a"]


def test_a_released_window_is_used_before_its_minute_ends() -> None:
    """The part of a reservation that a response released serves the next call at once."""
    rig = Rig(key("a", Limits(tpm=1_000)), max_wait_s=0)
    large = INFO._replace(tokens=900, estimate=900)

    def meanwhile() -> Any:
        assert isinstance(rig.failing(large), Exhausted)
        return Done("answer", Usage(input_tokens=50))

    rig.will("a", meanwhile)
    rig.call(large)
    assert rig.call(large) == "answer"
    assert rig.slept == []
