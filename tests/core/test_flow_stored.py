"""Stored resources and streams: when a call is bound to a key."""

from contextlib import nullcontext
from math import inf
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key, three
from support.replies import MODEL, Chunks, invalid, minute, no_room, overloaded

from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import HOME, Block, CallInfo, Candidate, Limits, Usage

FILE = INFO._replace(bound_to_owner=True, resources=("files/a",))
UNKNOWN = FILE._replace(resources=("files/z",))
NEW = INFO._replace(bound_to_owner=True)
UPLOAD = CallInfo("", "files", bound_to_owner=True, idempotent=False, counts_in_quota=False)
CACHE = UPLOAD._replace(model=MODEL, verb="cachedContents")
STRANGER = Candidate(f"{HOME}1234", f"{HOME}1234", f"{HOME}1234")


def made(*names: str) -> Done:
    return Done("answer", Usage(), names)


# Streams ---------------------------------------------------------------------------------------


def test_a_probe_has_succeeded_with_the_first_chunk() -> None:
    rig = Rig(key("a"), max_wait_s=0)
    rig.will("a", invalid(), Chunks(1, 2))
    rig.failing()
    rig.clock.advance(1_000)
    stream = rig.open()
    assert next(stream) == 1
    assert rig.call() == "answer"
    assert list(stream) == [2]


def test_names_in_a_stream_that_broke_are_remembered() -> None:
    """What it created is there: its continuation goes with the same key."""
    rig, reply = three(), overloaded()
    rig.will("b", Chunks(1, failed=reply, names=("continuation:t",)))
    bound = STREAMED._replace(bound_to_owner=True)
    rig.failing(bound, rig.selector.keys["b"])
    rig.call(bound._replace(resources=("continuation:t",)), rig.selector.keys["c"])
    assert rig.sent == ["b", "b"]


# Owners and home keys --------------------------------------------------------------------------


@pytest.fixture
def owned() -> Rig:
    """Make a pool whose key b has created a file and a continuation; c is of the same project."""
    rig = Rig(key("a"), key("b", project="p"), key("c", project="p"), strategy="fill")
    rig.will("a", invalid())
    rig.will("b", made("files/a", "continuation:t", "page:t"))
    rig.call()
    rig.sent.clear()
    return rig


def test_the_owners_project_serves_and_no_other(owned: Rig) -> None:
    """Whatever the home key is: the owner's key, else another key of its project."""
    assert owned.call(FILE, STRANGER) == "answer"
    owned.will("b", invalid())
    owned.will("c", invalid())
    owned.failing(FILE, STRANGER)
    assert owned.sent == ["b", "b", "c"]


def test_an_owner_of_another_platform_never_serves(owned: Rig) -> None:
    """An express call goes with its home key, whoever owns what it names."""
    home = Candidate("x", "x", "x", platform="vertex_express")
    owned.call(FILE._replace(platform="vertex_express"), home)
    assert owned.sent == ["x"]


def test_an_unknown_or_new_resource_belongs_to_the_home_project(owned: Rig) -> None:
    """To the home key, else another key of its project; a page is the key's."""
    home = owned.selector.keys["c"]
    owned.call(UNKNOWN, home)
    owned.will("c", invalid())
    owned.call(NEW, home)
    owned.call(UNKNOWN, home)
    assert owned.sent == ["c", "c", "b", "b"]
    assert isinstance(owned.failing(FILE._replace(resources=("page:z",)), home), Exhausted)


def test_an_owner_that_left_the_pool_is_replaced_by_its_project_or_the_home_key(owned: Rig) -> None:
    del owned.selector.keys["b"]
    owned.call(FILE, STRANGER)
    owned.call(FILE._replace(resources=("continuation:t",)), STRANGER)
    del owned.selector.keys["c"]
    owned.call(FILE, STRANGER)
    assert owned.sent == ["c", STRANGER.key_id, STRANGER.key_id]


def test_keys_of_a_tier_that_the_call_may_not_use_never_serve() -> None:
    """Neither the owner's, nor the home key, nor one that may make the resource instead."""
    tiers = {"free": "free", "paid": "tier1"}
    keys = [key(name, project="p", tier=tier) for name, tier in tiers.items()]
    rig = Rig(*keys, key("other", tier="free"), strategy="fill")
    paid = frozenset({"tier1"})
    rig.will("free", made("files/a"))
    rig.call(NEW._replace(verb="files"), rig.selector.keys["free"])
    assert rig.call(FILE._replace(tiers=paid)) == "answer"
    rig.will("paid", invalid())
    rig.failing(FILE._replace(tiers=paid))
    assert rig.sent == ["free", "paid", "paid"]
    for home in (rig.selector.keys["other"], STRANGER):
        failed = rig.failing(UNKNOWN._replace(tiers=paid), home)
        assert failed.unavailable.blocks == {home.key_id: Block("tier", inf)}
    assert len(rig.sent) == 3


def test_what_may_be_googles_own_binds_only_to_a_known_owner() -> None:
    """An agent of the program goes with its owner; one that nobody knows with any key."""
    rig = three()
    agent = NEW._replace(verb="agents")
    rig.will("c", made("agents/mine"))
    rig.call(agent, rig.selector.keys["c"])
    for name in ("agents/mine", "agents/deep-research"):
        rig.call(INFO._replace(resources=(name,)))
    rig.will("c", invalid())
    rig.failing(agent._replace(resources=("agents/mine",)))
    assert rig.sent == ["c", "c", "a", "c"], "a new thing that names it stays with its project too"
    del rig.selector.keys["c"]
    assert rig.call(INFO._replace(resources=("agents/mine",)))


def test_a_foreign_home_key_is_not_managed(owned: Rig) -> None:
    """A home key outside the pool is never cooled down or rejected; its error is raised."""
    for _ in range(2):
        owned.will(STRANGER.key_id, invalid())
        owned.failing(NEW, STRANGER)
    assert owned.sent == [STRANGER.key_id] * 2


def test_a_bound_call_waits_for_its_key_rather_than_use_another(owned: Rig) -> None:
    """No other key may serve, so a named time within the budget is waited for."""
    del owned.selector.keys["c"]
    owned.will("b", minute("5s"))
    assert owned.call(FILE) == "answer"
    assert (owned.sent, owned.slept) == (["b", "b"], [5.0])
    owned.will("b", minute("90s"))
    owned.failing(FILE)
    assert list(owned.failing(FILE).unavailable.blocks) == ["b"]


@pytest.mark.parametrize(
    ("info", "sent"), [(FILE, "bc"), (FILE._replace(resources=("page:t",)), "bb"), (NEW, "aa")]
)
def test_a_5xx_is_repeated_within_the_project(owned: Rig, info: CallInfo, sent: str) -> None:
    """With another key of it if it has one: a failure of the service makes no other its owner."""
    owned.clock.advance(1_000)  # a is tried again
    call = owned.make(info, owned.selector.keys["a"])
    call.home_is_own = False
    owned.will(sent[0], overloaded())
    owned.run(call)
    assert "".join(owned.sent) == sent


# New resources whose home cannot take them -----------------------------------------------------


@pytest.fixture
def full() -> Rig:
    """Make a pool whose home project, of a and b, has no room for a cache, beside two others."""
    rig = Rig(key("a", project="p"), key("b", project="p"), key("c"), key("d"), strategy="fill")
    rig.will("a", no_room())
    return rig


def test_a_foreign_home_key_without_room_is_skipped_too(full: Rig) -> None:
    """It is tried each time, since a foreign key never cools down, and the pool after it."""
    full.will(STRANGER.key_id, no_room(), no_room())
    for _ in range(2):
        full.call(CACHE, STRANGER)
    assert full.sent == [STRANGER.key_id, "a", "c", STRANGER.key_id, "c"]


def test_other_keys_are_used_evenly() -> None:
    """With the strategy `spread` the least utilized of the others is first."""
    rig = Rig(key("a"), *(key(f"k{number}", Limits(rpm=9)) for number in range(2)))
    rig.will("a", no_room())
    for _ in range(4):
        rig.call(CACHE, rig.selector.keys["a"])
    assert sorted(rig.sent) == ["a", "k0", "k0", "k1", "k1"]


def test_where_no_project_has_room_the_pool_is_exhausted(full: Rig) -> None:
    """Each key's reason is reported, and the next call sends nothing."""
    last, home = no_room(), full.selector.keys["a"]
    full.will("c", no_room())
    full.will("d", last)
    assert full.failing(CACHE, home).last is last.error
    blocks = full.failing(CACHE, home).unavailable.blocks
    assert {k: block.reason for k, block in blocks.items()} == dict.fromkeys(
        "abcd", "cache_storage"
    )
    assert full.sent == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("info", "replies", "sent"),
    [
        (CACHE._replace(resources=("files/a",)), (no_room, no_room), "a"),
        (CACHE._replace(verb="batchGenerateContent"), (no_room, no_room), "ab"),
        (CACHE, (lambda: minute("90s"), no_room), "ab"),
        (CACHE, (invalid, no_room), "abc"),
    ],
    ids=["another project cannot read the file", "no cache", "for a while", "for good"],
)
def test_when_a_home_project_is_left(full: Rig, info: CallInfo, replies: Any, sent: str) -> None:
    """Only for a cache of no file, where none of its keys can have any."""
    full.script.clear()
    for name, reply in zip("ab", replies, strict=True):
        full.will(name, reply())
    call = full.make(info, full.selector.keys["a"])
    with nullcontext() if sent == "abc" else pytest.raises(Exception, match=r"429|available|limit"):
        full.run(call)
    assert "".join(full.sent) == sent


@pytest.mark.parametrize("verb", ["files", "cachedContents", "batchGenerateContent"])
def test_a_new_resource_leaves_a_rejected_home_key(verb: str) -> None:
    """At once, and the next call does not try the home key again."""
    rig = three()
    rig.will("a", invalid())
    for _ in range(2):
        rig.call(UPLOAD._replace(verb=verb), rig.selector.keys["a"])
    assert rig.sent[:2] == ["a", "b"]
    assert "a" not in rig.sent[2:]


@pytest.mark.parametrize(
    "info",
    [
        *(UPLOAD._replace(verb=verb) for verb in ("list", "get", "delete")),
        UPLOAD._replace(verb="batchGenerateContent", resources=("files/x",)),
    ],
)
@pytest.mark.parametrize("fault", [invalid, lambda: minute("90s")])
def test_what_exists_stays_with_its_home_key(info: CallInfo, fault: Any) -> None:
    """Nothing of another project is listed or deleted instead; a batch of a file is its owner's."""
    rig, reply = three(max_wait_s=0), fault()
    rig.home_is_own = False
    rig.will("a", reply)
    error = rig.failing(info, rig.selector.keys["a"])
    assert getattr(error, "last", error) is reply.error
    assert rig.sent == ["a"]


@pytest.mark.parametrize("is_own", [True, False])
def test_a_project_that_is_busy_is_left_by_clients_without_a_key(is_own: bool) -> None:
    """A client with a key of its own waits for it; for others any project is as good."""
    rig, reply = three(max_wait_s=0), minute("90s")
    rig.will("a", reply)
    rig.home_is_own = is_own
    if is_own:
        assert rig.failing(UPLOAD, rig.selector.keys["a"]).last is reply.error
    else:
        assert rig.call(UPLOAD, rig.selector.keys["a"]) == "answer"
    assert rig.sent == (["a"] if is_own else ["a", "b"])
