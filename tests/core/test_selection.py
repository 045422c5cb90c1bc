"""Which keys are candidates, in which order, and at what cost."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from support.candidates import DEAD, NOW, list_candidates, many
from support.pool import INFO, key
from support.replies import MODEL

from keyrot_middleware.core.model import LAST_RESORT, Block
from keyrot_middleware.core.selection import BATCH_SIZE, MAX_ORDERS, SKIP_S, Selector


def test_the_order_is_model_then_workload_then_priority() -> None:
    """Keys of the model first, then those of no model, then the others; priority within."""
    selector = Selector(
        [
            key("other", model="gemini-2.5-pro"),
            key("any-late", priority=5),
            key("any"),
            key("any-batch", workload="batch", priority=3),
            key("own-late", model=MODEL, priority=1),
            key("own-batch", model=MODEL, workload="batch", priority=9),
            key("own", model=MODEL),
        ],
        "fill",
    )
    assert list_candidates(selector) == [
        *("own", "own-late", "own-batch"),
        *("any", "any-batch", "any-late"),
        "other",
    ]
    assert list_candidates(selector, INFO._replace(workload="batch")) == [
        *("own-batch", "own", "own-late"),
        *("any-batch", "any", "any-late"),
        "other",
    ]


def test_the_single_key_comes_after_keys_of_other_models() -> None:
    """The single key serves only while no other is available, whatever its own model is."""
    keys = [
        key("single", priority=LAST_RESORT),
        key("single-own", priority=LAST_RESORT + 1, model=MODEL),
        key("other", model="gemini-2.5-pro", priority=LAST_RESORT - 1),
        key("any"),
    ]
    assert list_candidates(Selector(keys)) == ["any", "other", "single-own", "single"]


def test_each_group_has_a_rank_of_its_own() -> None:
    """The state distinguishes groups of candidates by rank, the first ones lowest."""
    selector = Selector([key("b", priority=1), key("a"), key("c", priority=1)])
    ranks = [
        [rank for rank, _ in some] for some in selector.candidate_batches(INFO, {}, NOW, 0.0, {})
    ]
    assert ranks == [[0], [1, 1]]


def test_inactive_keys_are_never_candidates() -> None:
    """A key with `active: false` in keys.json is not in the pool."""
    assert list_candidates(Selector([key("on"), key("off", disabled="active=false")])) == ["on"]


@pytest.mark.parametrize("strategy", ["spread", "fill", "sticky"])
@pytest.mark.parametrize("count", [1, 3, BATCH_SIZE, BATCH_SIZE + 1, 3 * BATCH_SIZE + 1])
def test_every_key_is_a_candidate_exactly_once(strategy: str, count: int) -> None:
    """From any starting point every key is reached, in batches of at most eight."""
    selector = Selector(many(count), strategy)
    for draw in (0.0, 0.37, 0.999):
        info = INFO._replace(conversation=f"{int(draw * 100):x}")
        lists = list(selector.candidate_batches(info, {}, NOW, draw, {}))
        assert all(0 < len(candidates) <= BATCH_SIZE for candidates in lists)
        assert Counter(list_candidates(selector, info, draw=draw)) == {
            f"k{n}": 1 for n in range(count)
        }


def test_spread_begins_anywhere_and_fill_at_the_beginning() -> None:
    """Ties are broken at random by the starting point; `fill` keeps the order of keys.json."""
    keys = many(10)
    begun = {list_candidates(Selector(keys), draw=draw / 10)[0] for draw in range(10)}
    assert begun == {f"k{number}" for number in range(10)}
    assert {list_candidates(Selector(keys, "fill"), draw=draw / 10)[0] for draw in range(10)} == {
        "k0"
    }


@pytest.mark.parametrize("strategy", ["spread", "fill", "sticky"])
def test_a_conversation_keeps_its_key(strategy: str) -> None:
    """The same conversation begins at the same key, others elsewhere; a session is one."""
    selector = Selector(many(20), strategy)
    first = {
        hash_: {
            list_candidates(selector, INFO._replace(conversation=hash_), draw=d / 10)[0]
            for d in (0, 7)
        }
        for hash_ in ("00", "07", "13", "1b")
    }
    assert first == {"00": {"k0"}, "07": {"k7"}, "13": {"k19"}, "1b": {"k7"}}


def test_sticky_without_a_conversation_begins_anywhere() -> None:
    """Not always at the first key."""
    selector = Selector(many(20), "sticky")
    assert {list_candidates(selector, draw=draw / 20)[0] for draw in range(20)} == {
        k.key_id for k in many(20)
    }


def test_sticky_uses_another_key_only_while_its_key_is_skipped() -> None:
    """While its key is skipped a conversation uses the next one, and then comes back."""
    selector = Selector(many(12), "sticky")
    info = INFO._replace(conversation="0b")
    selector.skip(info, {"k11": Block("rpd", NOW + 3_600)}, NOW)
    assert list_candidates(selector, info)[0] == "k0"
    assert list_candidates(selector, info, now=NOW + SKIP_S)[0] == "k11"


def test_excluded_keys_are_no_candidates() -> None:
    """A key that failed this call is not offered to it again."""
    assert list_candidates(Selector(many(20), "fill"), excluded=["k0", "k9", "k19"]) == [
        f"k{number}" for number in range(20) if number not in (0, 9, 19)
    ]
    assert list_candidates(Selector(many(2)), excluded=["k0", "k1"]) == []


def test_orders_are_per_model_and_workload_and_bounded() -> None:
    """A key that cools down for one model serves others; old ones of many models are dropped."""
    selector = Selector(many(1))
    selector.skip(INFO, {"k0": DEAD}, NOW)
    assert list_candidates(selector, INFO._replace(model="gemini-2.5-pro")) == ["k0"]
    assert list_candidates(selector, INFO._replace(workload="batch")) == ["k0"]
    for number in range(3 * MAX_ORDERS):
        list_candidates(selector, INFO._replace(model=f"tuned-{number}"))
    assert len(selector._orders) <= MAX_ORDERS


def test_projects_know_their_keys() -> None:
    """All keys of a project may use its stored resources."""
    one, two, three = key("a", project="p"), key("b"), key("c", project="p")
    assert Selector([one, two, three]).find_project_keys("p") == [one, three]


@pytest.mark.parametrize("strategy", ["spread", "fill", "sticky"])
def test_a_call_gets_candidates_of_its_platform_alone(strategy: str) -> None:
    """In no batch, and no ranking is a key of the other platform."""
    keys = [
        key("a", project="p"),
        *(key(f"x{n}", project="p", platform="vertex_express", priority=n) for n in range(20)),
        key("b", priority=9),
    ]
    selector, express = Selector(keys, strategy), INFO._replace(platform="vertex_express")
    assert list_candidates(selector) == ["a", "b"]
    assert list_candidates(selector, express) == [f"x{n}" for n in range(20)]
    assert [one.key_id for _, one in selector.ranking(INFO)] == ["a", "b"]
    assert selector.platforms == {"gemini_api", "vertex_express"}
    selector.skip(express, {"a": DEAD, "x0": DEAD}, NOW)
    assert list_candidates(selector) == ["a", "b"]


def test_a_call_gets_candidates_of_its_tiers_alone() -> None:
    """Two calls with other conditions have other orders; a key without a tier is of none."""
    keys = [key("free", tier="free"), key("paid", tier="tier1"), key("none")]
    selector, paid = Selector(keys, "fill"), INFO._replace(tiers=frozenset({"tier1", "tier2"}))
    assert list_candidates(selector) == ["free", "paid", "none"]
    assert list_candidates(selector, paid) == ["paid"]
    assert selector.other_tiers(INFO) == {}
    assert selector.other_tiers(paid) == {key_id: Block("tier", inf) for key_id in ("free", "none")}


def test_a_call_gets_candidates_of_its_project_alone() -> None:
    """A key without a project is its own, whatever its value; other projects are not named."""
    keys = [key("a", project="p", tier="free"), key("b", project="p", tier="tier1"), key("c")]
    own = key("d", project="key:d").with_value("1f")
    selector, mine = Selector([*keys, own], "fill"), INFO._replace(project="p")
    assert list_candidates(selector) == ["a", "b", "c", "d"]
    assert list_candidates(selector, mine) == ["a", "b"]
    assert list_candidates(selector, INFO._replace(project="key:d")) == ["d"]
    assert selector.other_tiers(mine) == {}
    paid = mine._replace(tiers=frozenset({"tier1"}))
    assert list_candidates(selector, paid) == ["b"]
    assert selector.other_tiers(paid) == {"a": Block("tier", inf)}
    assert [mine.why_not(one) for one in keys] == [None, None, "project"]


@pytest.mark.parametrize("strategy", ["spread", "fill", "sticky"])
def test_a_call_gets_as_few_candidates_of_10_000_keys_as_of_10(strategy: str) -> None:
    """The first batch is eight keys; with 9,990 skipped the call still sees ten at most."""
    selector = Selector(many(10_000), strategy)
    assert len(next(selector.candidate_batches(INFO, {}, NOW, 0.5, {}))) == BATCH_SIZE
    dead = {f"k{number}": DEAD for number in range(10_000) if number % 1_000}
    selector.skip(INFO, dead, NOW)
    assert sorted(list_candidates(selector, draw=0.5)) == sorted(
        f"k{n}" for n in range(0, 10_000, 1_000)
    )
