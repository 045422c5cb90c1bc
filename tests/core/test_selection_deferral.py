"""Deferral: blocked keys are no candidates, and available keys are never deferred."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.candidates import DEAD, NOW, list_candidates, many
from support.pool import INFO

from keyrot_middleware.core.model import Block
from keyrot_middleware.core.selection import DEFER_S, Selector


def test_a_deferred_key_is_skipped_until_its_time() -> None:
    """A key blocked until a known time is no candidate before; `deferred` has the reason."""
    selector, rest = Selector(many(3), "fill"), Block("quota_minute", NOW + 20, waitable=True)
    selector.defer(INFO, {"k1": rest, "unknown": rest}, NOW)
    selector.defer(INFO, {"k1": rest}, NOW)
    assert list_candidates(selector) == ["k0", "k2"]
    assert selector.deferred(INFO) == {"k1": rest}
    assert list_candidates(selector, now=NOW + 20) == ["k0", "k1", "k2"]
    assert selector.deferred(INFO) == {}


def test_a_key_deferred_again_for_a_shorter_time_is_back_by_then() -> None:
    """The shorter time holds, and the end of the longer one changes nothing."""
    selector, full = Selector(many(3), "fill"), Block("rpm", NOW + 31, waitable=True)
    selector.defer(INFO, {"k0": full, "k2": Block("rpm", NOW + 50, waitable=True)}, NOW)
    selector.defer(INFO, {"k0": Block("quota_minute", NOW + 5, waitable=True)}, NOW)
    assert list_candidates(selector, now=NOW + 4) == ["k1"]
    assert list_candidates(selector, now=NOW + 5) == ["k0", "k1"]
    assert selector.deferred(INFO).keys() == {"k2"}
    assert list_candidates(selector, now=NOW + 32) == ["k0", "k1"]


def test_a_deferral_lasts_at_most_a_minute() -> None:
    """Another process may have reset a rejected key: it is a candidate again after DEFER_S."""
    selector = Selector(many(2), "fill")
    selector.defer(INFO, {"k0": DEAD}, NOW)
    assert list_candidates(selector, now=NOW + DEFER_S - 1) == ["k1"]
    assert list_candidates(selector, now=NOW + DEFER_S) == ["k0", "k1"]


@pytest.mark.parametrize(
    "block",
    [
        Block("probe", NOW + 0.1, waitable=True),
        Block("concurrency", NOW + 0.1, waitable=True),
        Block("key_method_blocked", inf),
        Block("cache_storage", NOW + 86_400),
        Block("rpm", NOW, waitable=True),
    ],
)
def test_blocks_without_an_end_or_of_one_method_are_not_deferred(block: Block) -> None:
    """A key that is busy, probed, or blocked for one method only is a candidate again at once."""
    selector = Selector(many(1))
    selector.defer(INFO, {"k0": block}, NOW)
    assert list_candidates(selector) == ["k0"]


def test_a_reset_ends_every_deferral() -> None:
    """After a key was replaced no key is deferred."""
    selector = Selector(many(3), "fill")
    selector.defer(INFO, {"k0": DEAD, "k2": DEAD}, NOW)
    selector.reset()
    assert list_candidates(selector) == ["k0", "k1", "k2"]


def test_a_full_minute_of_tokens_is_offered_to_smaller_requests() -> None:
    """A key without room for a large request is a candidate for small ones, after others."""
    selector, large = Selector(many(2), "fill"), INFO._replace(tokens=5_000)
    selector.defer(large, {"k0": Block("tpm", NOW + 31, waitable=True)}, NOW)
    assert list_candidates(selector, large) == ["k1"]
    assert list_candidates(selector, INFO._replace(tokens=5_001)) == ["k1"]
    assert list_candidates(selector, INFO) == ["k1", "k0"]
    selector.defer(INFO, {"k0": Block("tpm", NOW + 31, waitable=True)}, NOW)
    assert list_candidates(selector, INFO) == ["k1"]
    assert list_candidates(selector, INFO._replace(tokens=9)) == ["k1", "k0"]


def test_a_batch_without_room_does_not_hide_a_key_from_single_requests() -> None:
    """An RPM that has no room for a hundred embeddings has it for one."""
    selector, batch = Selector(many(1)), INFO._replace(requests=100)
    selector.defer(batch, {"k0": Block("rpm", NOW + 31, waitable=True)}, NOW)
    assert list_candidates(selector, batch) == []
    assert list_candidates(selector, INFO) == ["k0"]


@pytest.mark.parametrize("reason", ["rpm", "tpm", "rpd"])
def test_a_key_is_a_candidate_again_when_capacity_is_released(reason: str) -> None:
    """A reservation that shrank may have made room before the minute's end."""
    selector = Selector(many(2), "fill")
    selector.defer(INFO, {"k0": Block(reason, NOW + 31, waitable=True)}, NOW)
    selector.release("k1")
    assert list_candidates(selector) == ["k1"]
    selector.release("k0")
    assert list_candidates(selector) == ["k1", "k0"]
    assert list_candidates(selector, now=NOW + 31) == ["k0", "k1"]
    assert selector.deferred(INFO) == {}


def test_released_capacity_does_not_end_a_cooldown() -> None:
    """Room in a window does not end a cooldown."""
    selector = Selector(many(2), "fill")
    full, rest = Block("rpm", NOW + 31, waitable=True), Block("quota_minute", NOW + 20)
    selector.defer(INFO, {"k0": rest}, NOW)
    selector.release("k0")
    assert list_candidates(selector) == ["k1"]
    selector.defer(INFO, {"k1": full}, NOW)
    selector.release("k1")
    selector.defer(INFO, {"k1": rest}, NOW)
    assert list_candidates(selector) == []


def test_a_released_key_is_offered_at_most_once_per_call() -> None:
    """A call that is refused by a released key defers it again."""
    selector = Selector(many(1))
    selector.defer(INFO, {"k0": Block("rpm", NOW + 31, waitable=True)}, NOW)
    selector.release("k0")
    offered = 0
    for candidates in selector.candidate_batches(INFO, {}, NOW, 0.0):
        offered += len(candidates)
        selector.defer(INFO, {"k0": Block("rpm", NOW + 31, waitable=True)}, NOW)
    assert offered == 1
    assert list_candidates(selector) == []


def test_a_key_that_is_back_meanwhile_is_not_released_twice() -> None:
    """Between the read and the lock another call may have released it."""
    waiting: list[float] = []

    class Lock:
        def __enter__(self) -> None:
            if waiting:
                list_candidates(selector, now=waiting.pop())

        def __exit__(self, *_: object) -> None:
            pass

    selector = Selector(many(1), "fill", Lock())
    selector.defer(INFO, {"k0": Block("rpm", NOW + 31, waitable=True)}, NOW)
    waiting.append(NOW + 31)
    selector.release("k0")
    assert list_candidates(selector, now=NOW + 31) == ["k0"]


STEP = st.tuples(
    st.sampled_from(["defer", "pass", "offer", "release"]),
    st.integers(0, 11),
    st.sampled_from(["rpm", "tpm", "quota_minute", "key_invalid"]),
    st.sampled_from([0.5, 3.0, 20.0, 61.0, inf]),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["spread", "fill", "sticky"]), st.lists(STEP, max_size=40))
def test_no_key_is_lost_or_offered_twice(
    strategy: str, steps: list[tuple[str, int, str, float]]
) -> None:
    """Each key is either a candidate once, or deferred with a reason, at most for DEFER_S."""
    selector, now = Selector(many(12), strategy), NOW
    for what, number, reason, seconds in steps:
        if what == "defer":
            info = INFO._replace(tokens=number)
            selector.defer(info, {f"k{number}": Block(reason, now + seconds)}, now)
        elif what == "release":
            selector.release(f"k{number}")
        elif what == "pass":
            now += min(seconds, 30.0)
        given_out = Counter(list_candidates(selector, now=now, draw=number / 12))
        assert set(given_out.values()) <= {1}
        assert given_out.keys() | selector.deferred(INFO).keys() == {f"k{n}" for n in range(12)}
    assert len(list_candidates(selector, now=now + DEFER_S)) == 12
