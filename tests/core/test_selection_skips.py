"""Keys that the state refused are skipped for a while, and available keys never are."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.candidates import DEAD, NOW, list_candidates, many
from support.pool import INFO

from keyrot_middleware.core.model import Block
from keyrot_middleware.core.selection import SKIP_S, Selector


def test_a_refused_key_is_skipped_until_its_time() -> None:
    """A key blocked until a known time is no candidate before; the call gets the reason."""
    selector, rest = Selector(many(3), "fill"), Block("quota_minute", NOW + 20, waitable=True)
    selector.skip(INFO, {"k1": rest, "unknown": rest}, NOW)
    assert list_candidates(selector) == ["k0", "k2"]
    blocks: dict[str, Block] = {}
    assert list(selector.candidate_batches(INFO, {"k2": 0}, NOW, 0.0, blocks)) != []
    assert blocks == {"k1": rest}
    selector.skip(INFO, {"k1": rest._replace(until=NOW + 5)}, NOW)
    assert list_candidates(selector, now=NOW + 5) == ["k0", "k1", "k2"]


def test_a_key_is_skipped_for_a_minute_at_most() -> None:
    """Another process may have reset it."""
    selector = Selector(many(2), "fill")
    selector.skip(INFO, {"k0": DEAD}, NOW)
    assert list_candidates(selector, now=NOW + SKIP_S - 1) == ["k1"]
    assert list_candidates(selector, now=NOW + SKIP_S) == ["k0", "k1"]
    selector.skip(INFO, {"k0": DEAD}, NOW)
    selector.reset()
    assert list_candidates(selector) == ["k0", "k1"]


@pytest.mark.parametrize(
    "block",
    [
        Block("probe", NOW + 0.1, waitable=True),
        Block("key_method_blocked", inf),
        Block("cache_storage", NOW + 86_400),
        Block("rpm", NOW, waitable=True),
    ],
)
def test_blocks_without_an_end_or_of_one_method_are_not_skipped(block: Block) -> None:
    """A key that is probed, or blocked for one method only, is a candidate again at once."""
    selector = Selector(many(1))
    selector.skip(INFO, {"k0": block}, NOW)
    assert list_candidates(selector) == ["k0"]


def test_a_full_window_is_offered_to_smaller_requests() -> None:
    """A key without room for a large request is a candidate for small ones."""
    selector, large = Selector(many(2), "fill"), INFO._replace(tokens=5_000, requests=100)
    for reason in ("tpm", "rpm"):
        selector.reset()
        selector.skip(large, {"k0": Block(reason, NOW + 31, waitable=True)}, NOW)
        assert list_candidates(selector, large) == ["k1"]
        assert list_candidates(selector, INFO) == ["k0", "k1"]


def test_released_capacity_ends_a_full_window_and_no_cooldown() -> None:
    """A reservation that shrank may have made room before the minute's end."""
    selector = Selector(many(2), "fill")
    full, rest = Block("rpm", NOW + 31, waitable=True), Block("quota_minute", NOW + 20)
    selector.skip(INFO, {"k0": full, "k1": rest}, NOW)
    for key_id in ("k0", "k1", "unknown"):
        selector.release(key_id)
    assert list_candidates(selector) == ["k0"]


STEP = st.tuples(
    st.sampled_from(["skip", "pass", "release"]),
    st.integers(0, 11),
    st.sampled_from(["rpm", "tpm", "quota_minute", "key_invalid"]),
    st.sampled_from([0.5, 3.0, 20.0, 61.0, inf]),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["spread", "fill", "sticky"]), st.lists(STEP, max_size=40))
def test_no_key_is_lost_or_offered_twice(
    strategy: str, steps: list[tuple[str, int, str, float]]
) -> None:
    """In one look each key is either a candidate once, or skipped with a reason."""
    selector, now = Selector(many(12), strategy), NOW
    for what, number, reason, seconds in steps:
        if what == "skip":
            info = INFO._replace(tokens=number)
            selector.skip(info, {f"k{number}": Block(reason, now + seconds)}, now)
        elif what == "release":
            selector.release(f"k{number}")
        else:
            now += min(seconds, 30.0)
        blocks: dict[str, Block] = {}
        offered = [
            candidate.key_id
            for batch in selector.candidate_batches(INFO, {}, now, number / 12, blocks)
            for _, candidate in batch
        ]
        assert sorted([*offered, *blocks]) == sorted(f"k{n}" for n in range(12))
    assert len(list_candidates(selector, now=now + SKIP_S)) == 12
