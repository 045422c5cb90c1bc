"""Which keys are candidates, in which order, and at what cost; and how a key's state is named."""

from collections import Counter
from collections.abc import Iterable
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.replies import MODEL

from keyrot_middleware.core.judgement import AVAILABLE, KEY_STATES, Availability, availability
from keyrot_middleware.core.ledger import Ledger, Records
from keyrot_middleware.core.model import (
    LAST_RESORT,
    Block,
    CallInfo,
    Candidate,
    Limits,
    RetryPolicy,
    project_label,
    project_name,
)
from keyrot_middleware.core.selection import BATCH_SIZE, FIRST_BATCH, MAX_ORDERS, SKIP_S, Selector
from keyrot_middleware.keys_file import KeySpec

NOW = 1_767_270_630.0
DEAD = Block("key_invalid", inf)
STRATEGIES = pytest.mark.parametrize("strategy", ["spread", "fill", "sticky"])
BATCH = INFO._replace(workload="batch")


def listed(
    selector: Selector,
    info: CallInfo = INFO,
    excluded: Iterable[str] = (),
    now: float = NOW,
    draw: float = 0.0,
) -> list[str]:
    lists = selector.candidate_batches(info, dict.fromkeys(excluded), now, draw, {})
    return [candidate.key_id for candidates in lists for _, candidate in candidates]


def many(count: int, **labels: object) -> list[Candidate]:
    return [key(f"k{number}", **labels) for number in range(count)]


def names(*numbers: int) -> list[str]:
    return [f"k{number}" for number in numbers]


# The order -------------------------------------------------------------------------------------


def test_the_order_is_model_then_workload_then_priority() -> None:
    """Keys of the model first, then those of no model, then the others; the single key last."""
    selector = Selector(
        [
            key("single", priority=LAST_RESORT),
            key("single-own", priority=LAST_RESORT + 1, model=MODEL),
            key("other", model="gemini-3.1-pro-preview"),
            key("any-late", priority=5),
            key("any"),
            key("any-batch", workload="batch", priority=3),
            key("own-late", model=MODEL, priority=1),
            key("own-batch", model=MODEL, workload="batch", priority=9),
            key("own", model=MODEL),
            key("off", disabled="active=false"),
        ],
        "fill",
    )
    last = ["other", "single-own", "single"]
    own, own_batch = ["own", "own-late", "own-batch"], ["own-batch", "own", "own-late"]
    assert listed(selector) == [*own, *["any", "any-batch", "any-late"], *last]
    assert listed(selector, BATCH) == [*own_batch, *["any-batch", "any", "any-late"], *last]


def test_each_group_has_a_rank_of_its_own() -> None:
    """The state distinguishes groups of candidates by rank, the first ones lowest."""
    selector = Selector([key("b", priority=1), key("a"), key("c", priority=1)])
    batches = selector.candidate_batches(INFO, {}, NOW, 0.0, {})
    assert [[rank for rank, _ in some] for some in batches] == [[0], [1, 1]]


@STRATEGIES
@pytest.mark.parametrize("count", [1, BATCH_SIZE, BATCH_SIZE + 1, 3 * BATCH_SIZE + 1])
def test_every_key_is_a_candidate_exactly_once(strategy: str, count: int) -> None:
    """From any starting point every key is reached, in batches of at most eight."""
    selector = Selector(many(count), strategy)
    for draw in (0.0, 0.37, 0.999):
        info = INFO._replace(conversation=f"{int(draw * 100):x}")
        lists = list(selector.candidate_batches(info, {}, NOW, draw, {}))
        assert all(0 < len(candidates) <= BATCH_SIZE for candidates in lists)
        assert Counter(listed(selector, info, draw=draw)) == Counter(names(*range(count)))


@pytest.mark.parametrize(("strategy", "begun"), [("spread", 10), ("sticky", 10), ("fill", 1)])
def test_spread_begins_anywhere_and_fill_at_the_beginning(strategy: str, begun: int) -> None:
    """`fill` keeps the order of keys.json; `sticky` without a conversation begins anywhere."""
    selector = Selector(many(10), strategy)
    found = {listed(selector, draw=draw / 10)[0] for draw in range(10)}
    assert found == set(names(*range(begun)))


@STRATEGIES
def test_a_conversation_keeps_its_key(strategy: str) -> None:
    """It uses the next one while its key is skipped or excluded, and then comes back."""
    selector = Selector(many(20), strategy)
    for number, first in (("00", "k0"), ("07", "k7"), ("13", "k19"), ("1b", "k7")):
        info = INFO._replace(conversation=number)
        assert {listed(selector, info, draw=d / 10)[0] for d in (0, 7)} == {first}
    selector.skip(info, {"k7": Block("rpd", NOW + 3_600)}, NOW)
    assert listed(selector, info)[0] == "k8"
    assert listed(selector, info, now=NOW + SKIP_S)[0] == "k7"


def test_excluded_keys_are_no_candidates() -> None:
    rest = [number for number in range(20) if number not in (0, 9, 19)]
    assert listed(Selector(many(20), "fill"), excluded=names(0, 9, 19)) == names(*rest)
    assert listed(Selector(many(2)), excluded=names(0, 1)) == []


@STRATEGIES
def test_a_call_gets_candidates_of_its_platform_alone(strategy: str) -> None:
    """In no batch, and no ranking is a key of the other platform."""
    express = {"project": "p", "platform": "vertex_express"}
    others = [key(f"x{n}", priority=n, **express) for n in range(20)]
    selector = Selector([key("a", project="p"), *others, key("b", priority=9)], strategy)
    info = INFO._replace(platform="vertex_express")
    assert listed(selector) == ["a", "b"]
    assert listed(selector, info) == [f"x{n}" for n in range(20)]
    assert [one.key_id for _, one in selector.ranking(INFO)] == ["a", "b"]
    assert selector.platforms == {"gemini_api", "vertex_express"}
    selector.skip(info, {"a": DEAD, "x0": DEAD}, NOW)
    assert listed(selector) == ["a", "b"]


def test_a_call_gets_candidates_of_its_project_and_tiers_alone() -> None:
    """A key without a tier is of none, one without a project is its own, whatever its value."""
    keys = [key("a", project="p", tier="free"), key("b", project="p", tier="tier1"), key("c")]
    own = key("d", project="key:d").with_value("1f")
    selector, mine = Selector([*keys, own], "fill"), INFO._replace(project="p")
    paid = frozenset({"tier1", "tier2"})
    other = Block("tier", inf)
    for info, found, of_other_tiers in (
        (INFO, "a b c d", {}),
        (INFO._replace(tiers=paid), "b", {"a": other, "c": other, "d": other}),
        (mine, "a b", {}),
        (INFO._replace(project="key:d"), "d", {}),
        (mine._replace(tiers=paid), "b", {"a": other}),
    ):
        assert listed(selector, info) == found.split()
        assert selector.other_tiers(info) == of_other_tiers
    assert [mine.why_not(one) for one in keys] == [None, None, "project"]
    assert Selector(keys).find_project_keys("p") == keys[:2]


# Keys that are skipped -------------------------------------------------------------------------


def test_a_refused_key_is_skipped_until_its_time() -> None:
    """It is no candidate before, for a minute at most: another process may have reset it."""
    selector, rest = Selector(many(3), "fill"), Block("quota_minute", NOW + 20, waitable=True)
    selector.skip(INFO, {"k1": rest, "unknown": rest}, NOW)
    blocks: dict[str, Block] = {}
    assert list(selector.candidate_batches(INFO, {"k2": 0}, NOW, 0.0, blocks)) != []
    assert blocks == {"k1": rest}, "the call gets the reason"
    selector.skip(INFO, {"k0": DEAD, "k1": rest._replace(until=NOW + 5)}, NOW)
    assert listed(selector) == ["k2"]
    assert listed(selector, now=NOW + 5) == ["k1", "k2"]
    assert listed(selector, now=NOW + SKIP_S) == ["k0", "k1", "k2"]
    selector.reset()
    assert listed(selector) == ["k0", "k1", "k2"]


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
    selector = Selector(many(1))
    selector.skip(INFO, {"k0": block}, NOW)
    assert listed(selector) == ["k0"]


def test_a_full_window_is_offered_again_where_capacity_is_released() -> None:
    """A reservation that shrank may have made room before the minute's end; no cooldown ends."""
    selector, large = Selector(many(3), "fill"), INFO._replace(tokens=5_000, requests=100)
    for reason in ("tpm", "rpm"):
        selector.reset()
        full = Block(reason, NOW + 31, waitable=True)
        selector.skip(large, {"k0": full, "k1": Block("quota_minute", NOW + 20)}, NOW)
        assert listed(selector, large) == ["k2"]
        for key_id in ("k0", "k1", "unknown"):
            selector.release(key_id)
        assert listed(selector, large) == ["k0", "k2"]


@STRATEGIES
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_no_key_is_lost_or_offered_twice(strategy: str, seed: int) -> None:
    """In one look each key is either a candidate once, or skipped with a reason."""
    draw, selector, now = Random(seed), Selector(many(12), strategy), NOW
    for _ in range(draw.randint(0, 40)):
        number, seconds = draw.randint(0, 11), draw.choice([0.5, 3.0, 20.0, 61.0, inf])
        match draw.choice(["skip", "pass", "release"]):
            case "skip":
                why = draw.choice(["rpm", "tpm", "quota_minute", "key_invalid"])
                info = INFO._replace(tokens=number)
                selector.skip(info, {f"k{number}": Block(why, now + seconds)}, now)
            case "release":
                selector.release(f"k{number}")
            case _:
                now += min(seconds, 30.0)
        blocks: dict[str, Block] = {}
        batches = selector.candidate_batches(INFO, {}, now, number / 12, blocks)
        offered = [candidate.key_id for batch in batches for _, candidate in batch]
        assert sorted([*offered, *blocks]) == sorted(names(*range(12)))
    assert len(listed(selector, now=now + SKIP_S)) == 12


# Cost ------------------------------------------------------------------------------------------


def test_orders_are_per_model_and_workload_and_bounded() -> None:
    """A key that cools down for one model serves others; old ones of many models are dropped."""
    selector = Selector(many(1))
    selector.skip(INFO, {"k0": DEAD}, NOW)
    assert listed(selector, INFO._replace(model="gemini-3.1-pro-preview")) == ["k0"]
    assert listed(selector, BATCH) == ["k0"]
    for number in range(3 * MAX_ORDERS):
        listed(selector, INFO._replace(model=f"tuned-{number}"))
    assert len(selector._orders) <= MAX_ORDERS


@STRATEGIES
def test_a_call_gets_as_few_candidates_of_10_000_keys_as_of_10(strategy: str) -> None:
    """The first batch is three keys, later ones are eight; with 9,990 skipped it sees ten."""
    selector = Selector(many(10_000), strategy)
    for excluded in ({}, {"k5001": DEAD}):
        batches = selector.candidate_batches(INFO, excluded, NOW, 0.5, {})
        assert [len(next(batches)) for _ in range(3)] == [FIRST_BATCH, BATCH_SIZE, BATCH_SIZE]
    dead = {f"k{number}": DEAD for number in range(10_000) if number % 1_000}
    selector.skip(INFO, dead, NOW)
    assert sorted(listed(selector, draw=0.5)) == sorted(names(*range(0, 10_000, 1_000)))


@pytest.mark.parametrize("unlike", [{"weight": 7.0}, {"use": 0.5}, {"limits": Limits(rpm=9)}])
def test_keys_that_may_be_used_unequally_are_compared_with_more_others(unlike: Any) -> None:
    """With two others of a random start, a key of seven times the weight got half of its share."""
    keys = [key("big", **unlike), *(key(f"k{number}") for number in range(19))]
    batches = Selector(keys).candidate_batches(INFO, {}, NOW, 0.5, {})
    assert [len(batch) for batch in batches] == [BATCH_SIZE, BATCH_SIZE, 4]


# The name of a key's records, and of its state -------------------------------------------------


def test_a_key_without_a_project_is_another_project_with_another_value() -> None:
    """And another billing account; a named project keeps its records, and labels stay."""
    spec = KeySpec(key_id="one").candidate
    old, new = spec.with_value("01234567"), spec.with_value("01234567").with_value("89abcdef")
    assert (spec.record, old.record, new.record) == ("one", "one@01234567", "one@89abcdef")
    assert (old.project, new.project) == ("key:one@01234567", "key:one@89abcdef")
    assert new.billing_account == "project:key:one@89abcdef"
    assert {project_label(k.project) for k in (spec, old, new)} == {"key:one"}
    assert new.with_value("") == spec
    assert (spec.fingerprint, new.fingerprint) == ("", "89abcdef")
    assert (project_name(new.project), project_name("p")) == (None, "p")
    named = KeySpec(key_id="one", project="web", billing_account="acme").candidate
    bound = named.with_value("01234567")
    assert (bound.project, bound.billing_account) == ("web", "acme")
    assert project_label("web@home") == "web@home"


def test_a_selector_replaces_a_key_whose_value_changed() -> None:
    """It keeps its position, also in calls under way; values that no process uses are unknown."""
    selector = Selector([key("a"), key("b")], "fill")
    selector.update([key("a").with_value("01234567"), key("b")])
    assert listed(selector) == ["a", "b"]
    assert selector.keys["a"].record == "a@01234567"
    assert selector.find_project_keys("a")[0] is selector.keys["a"]
    records = Records(fingerprints={"one": "01234567"})
    one, two = (KeySpec(key_id=name).candidate for name in ("one", "two"))
    found = Ledger(records, RetryPolicy()).with_values([one, two])
    assert found == [one.with_value("01234567"), two]


@pytest.mark.parametrize(
    ("reason", "until", "expected"),
    [
        ("rpm", 61.0, ("limited", 61.0)),
        ("tpm", 61.0, ("limited", 61.0)),
        ("rpd", 900.0, ("limited", 900.0)),
        ("concurrency", 1.1, ("limited", None)),
        ("quota_minute", 20.0, ("cooling_down", 20.0)),
        ("probe", 1.1, ("cooling_down", None)),
        ("key_method_blocked", inf, ("cooling_down", None)),
        ("key_invalid", inf, ("rejected", None)),
        ("project_suspended", 86400.0, ("rejected", 86400.0)),
        ("disabled", 900.0, ("disabled", 900.0)),
        ("a_class_of_another_version", 20.0, ("cooling_down", 20.0)),
    ],
)
def test_each_reason_has_its_state(reason: str, until: float, expected: tuple[str, float]) -> None:
    """Full windows are `limited`, refusals `cooling_down` or `rejected`; a known end is given."""
    found = availability(Block(reason, until))
    assert found == Availability(*expected, reason)
    assert found.state in KEY_STATES
    assert availability(None) == AVAILABLE
