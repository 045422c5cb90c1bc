"""Stored resources and streams: when a call is bound to a key."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key, three
from support.replies import (
    MODEL,
    Chunks,
    invalid,
    minute,
    no_room,
    overloaded,
)

from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import HOME, Block, CallInfo, Candidate, Limits, Usage


class TestStreams:
    """A stream may change its key until its first chunk has arrived, and never after."""

    def test_a_stream_is_passed_on_to_its_end(self) -> None:
        """All chunks are passed on, and the last usage is recorded."""
        rig = three()
        rig.will("a", Chunks(1, 2, 3))
        assert rig.call(STREAMED) == [1, 2, 3]
        assert rig.state.snapshot([key("a")])["a"].used[0].tokens_minute == 6

    def test_a_failure_before_the_first_chunk_changes_the_key(self) -> None:
        """No chunk was passed on yet, so another key may answer."""
        rig = three()
        rig.will("a", minute())
        rig.will("b", Chunks("b"))
        assert rig.call(STREAMED) == ["b"]

    @pytest.mark.parametrize("fault", [overloaded, minute, invalid])
    def test_a_broken_stream_is_never_restarted(self, fault: Any) -> None:
        """After a chunk the SDK's error is raised, with notes; the tokens so far are recorded."""
        rig, reply = three(), fault()
        rig.will("a", Chunks(1, 2, failed=reply))
        assert rig.failing(STREAMED) is reply.error
        assert rig.sent == ["a"]
        assert reply.error.__notes__[0].startswith("keyrot: attempt 1 with key a: ")
        assert rig.state.snapshot([key("a")])["a"].used[0].tokens_minute == 5

    def test_a_probe_has_succeeded_with_the_first_chunk(self) -> None:
        """Other calls need not wait for the end of the stream."""
        rig = Rig(key("a"), max_wait_s=0)
        rig.will("a", invalid(), Chunks(1, 2))
        rig.failing()
        rig.clock.advance(1_000)
        stream = rig.open()
        assert next(stream) == 1
        assert rig.call() == "answer"
        assert list(stream) == [2]


class TestStoredResources:
    """A call that names stored resources uses their owner's key, or the home key."""

    FILE = INFO._replace(bound_to_owner=True, resources=("files/a",))
    HOME_KEY = Candidate(f"{HOME}1234", f"{HOME}1234", f"{HOME}1234")

    def owned(self) -> Rig:
        """Make a pool whose key b has created a file; c is of the same project."""
        rig = Rig(key("a"), key("b", project="p"), key("c", project="p"), strategy="fill")
        rig.will("a", invalid())
        rig.will("b", Done("answer", Usage(input_tokens=10), ("files/a", "continuation:t")))
        rig.call()
        rig.sent.clear()
        return rig

    def test_an_owner_of_another_platform_never_serves(self) -> None:
        """An express call goes with its home key, whoever owns what it names."""
        rig = self.owned()
        home = Candidate("x", "x", "x", platform="vertex_express")
        rig.will("x", Done("express", Usage(input_tokens=10)))
        assert rig.call(self.FILE._replace(platform="vertex_express"), home) == "express"
        assert rig.sent == ["x"]

    def test_the_owners_key_serves(self) -> None:
        """Whatever the home key is, the owner's key is used."""
        rig = self.owned()
        assert rig.call(self.FILE, self.HOME_KEY) == "answer"
        assert rig.sent == ["b"]

    def test_another_key_of_the_project_serves_when_the_owner_cannot(self) -> None:
        """The file is the project's, so each of its keys may be used, and no other project's."""
        rig = self.owned()
        rig.will("b", invalid())
        rig.will("c", invalid())
        rig.failing(self.FILE, self.HOME_KEY)
        assert rig.sent == ["b", "c"]

    @pytest.mark.parametrize("name", ["continuation:t", "page:t"])
    def test_hops_of_one_answer_use_the_key_of_the_first(self, name: str) -> None:
        """A continuation is bound to its key, not only to the project."""
        rig = self.owned()
        rig.will("b", Done("answer", Usage(), ("page:t",)))
        rig.call(self.FILE)
        rig.will("b", invalid())
        rig.failing(self.FILE._replace(resources=(name,)), self.HOME_KEY)
        assert rig.sent == ["b", "b"]

    def test_an_unknown_resource_belongs_to_the_home_key(self) -> None:
        """Unknown resources, and calls that create new ones, use the home key."""
        rig = self.owned()
        home = rig.selector.keys["c"]
        for info in (
            self.FILE._replace(resources=("files/z",)),
            INFO._replace(bound_to_owner=True),
        ):
            rig.call(info, home)
        assert rig.sent == ["c", "c"]

    def test_another_key_of_the_home_project_serves_when_the_home_key_cannot(self) -> None:
        """A new resource is the project's too; only a continuation or page is the key's."""
        rig = self.owned()
        home = rig.selector.keys["c"]
        rig.will("c", invalid())
        rig.call(INFO._replace(bound_to_owner=True), home)
        rig.call(self.FILE._replace(resources=("files/z",)), home)
        assert rig.sent == ["c", "b", "b"]
        assert isinstance(rig.failing(self.FILE._replace(resources=("page:z",)), home), Exhausted)

    def test_an_owner_that_left_the_pool_is_replaced_by_its_project_or_the_home_key(self) -> None:
        """If the owner's key is gone from the file: its project's keys, otherwise the home key."""
        rig = self.owned()
        del rig.selector.keys["b"]
        rig.call(self.FILE, self.HOME_KEY)
        rig.call(self.FILE._replace(resources=("continuation:t",)), self.HOME_KEY)
        del rig.selector.keys["c"]
        rig.call(self.FILE, self.HOME_KEY)
        assert rig.sent == ["c", self.HOME_KEY.key_id, self.HOME_KEY.key_id]

    def test_keys_of_a_tier_that_the_call_may_not_use_never_serve(self) -> None:
        """Neither the owner's, nor the home key, nor one that may make the resource instead."""
        rig = Rig(
            key("free", project="p", tier="free"),
            key("paid", project="p", tier="tier1"),
            key("other", tier="free"),
            strategy="fill",
        )
        paid = frozenset({"tier1"})
        rig.will("free", Done("made", Usage(), ("files/a",)))
        rig.call(self.FILE._replace(resources=(), verb="files"), rig.selector.keys["free"])
        assert rig.call(self.FILE._replace(tiers=paid)) == "answer"
        rig.will("paid", invalid())
        rig.failing(self.FILE._replace(tiers=paid))
        assert rig.sent == ["free", "paid", "paid"]
        for home in (rig.selector.keys["other"], self.HOME_KEY):
            info = self.FILE._replace(resources=("files/z",), tiers=paid)
            failed = rig.failing(info, home)
            assert isinstance(failed, Exhausted)
            assert failed.unavailable.blocks == {home.key_id: Block("tier", inf)}
        assert len(rig.sent) == 3

    def test_what_may_be_googles_own_binds_only_to_a_known_owner(self) -> None:
        """An agent of the program goes with its owner; one that nobody knows with any key."""
        rig = three()
        made = INFO._replace(bound_to_owner=True, verb="agents")
        rig.will("c", Done("made", Usage(), ("agents/mine",)))
        rig.call(made, rig.selector.keys["c"])
        for name in ("agents/mine", "agents/deep-research"):
            rig.call(INFO._replace(resources=(name,)))
        assert rig.sent == ["c", "c", "a"]
        rig.will("c", invalid())
        rig.failing(made._replace(resources=("agents/mine",)))
        assert rig.sent[3:] == ["c"], "a new thing that names it stays with its project too"

    def test_a_known_owner_that_left_the_pool_binds_no_longer(self) -> None:
        """Where neither it nor its project has a key, any key may try."""
        rig = self.owned()
        rig.will("a", Done("from a", Usage(), ("agents/mine",)))
        rig.will("b", Done("from b", Usage(), ("agents/mine",)))
        rig.call(self.FILE)
        for name in ("b", "c"):
            del rig.selector.keys[name]
        assert rig.call(INFO._replace(resources=("agents/mine",)))

    def test_names_in_a_stream_that_broke_are_remembered(self) -> None:
        """What it created is there: its continuation goes with the same key."""
        rig, reply = three(), overloaded()
        rig.will("b", Chunks(1, failed=reply, names=("continuation:t",)))
        bound = STREAMED._replace(bound_to_owner=True)
        rig.failing(bound, rig.selector.keys["b"])
        rig.call(bound._replace(resources=("continuation:t",)), rig.selector.keys["c"])
        assert rig.sent == ["b", "b"]

    def test_a_foreign_home_key_is_not_managed(self) -> None:
        """A home key outside the pool is never cooled down or rejected; its error is raised."""
        rig = self.owned()
        stranger = self.HOME_KEY.key_id
        for _ in range(2):
            rig.will(stranger, invalid())
            rig.failing(self.FILE._replace(resources=()), self.HOME_KEY)
        assert rig.sent == [stranger, stranger]

    def test_a_bound_call_waits_for_its_key_rather_than_use_another(self) -> None:
        """No other key may serve, so a named time within the budget is waited for."""
        rig = self.owned()
        rig.will("b", minute("5s"))
        del rig.selector.keys["c"]
        assert rig.call(self.FILE) == "answer"
        assert (rig.sent, rig.slept) == (["b", "b"], [5.0])
        rig.will("b", minute("90s"))
        rig.failing(self.FILE)
        error = rig.failing(self.FILE)
        assert isinstance(error, Exhausted)
        assert list(error.unavailable.blocks) == ["b"]


class TestNewCaches:
    """A cache is created elsewhere if its home project has no room for any."""

    CACHE = CallInfo(
        MODEL, "cachedContents", bound_to_owner=True, idempotent=False, counts_in_quota=False
    )
    STRANGER = Candidate(f"{HOME}1234", f"{HOME}1234", f"{HOME}1234")

    def pool_without_room(self) -> Rig:
        """Make a pool whose home project, of a and b, has no room, beside two others."""
        rig = Rig(key("a", project="p"), key("b", project="p"), key("c"), key("d"), strategy="fill")
        rig.will("a", no_room())
        return rig

    def test_a_new_cache_is_created_in_another_project(self) -> None:
        """At once, in the selector's order; the next call skips the home project."""
        rig = self.pool_without_room()
        rig.will("c", no_room())
        assert [rig.call(self.CACHE, rig.selector.keys["a"]) for _ in range(2)] == ["answer"] * 2
        assert (rig.sent, rig.slept) == (["a", "c", "d", "d"], [])

    def test_a_cache_is_used_where_it_was_created(self) -> None:
        """Its owner is recorded, so that later calls use that project."""
        rig = self.pool_without_room()
        rig.will("c", Done("answer", Usage(), ("cachedContents/x",)))
        rig.call(self.CACHE, rig.selector.keys["a"])
        rig.call(
            INFO._replace(bound_to_owner=True, resources=("cachedContents/x",)),
            rig.selector.keys["a"],
        )
        assert rig.sent == ["a", "c", "c"]

    def test_a_foreign_home_key_without_room_is_skipped_too(self) -> None:
        """It is tried each time, since a foreign key never cools down, and the pool after it."""
        rig = self.pool_without_room()
        stranger = self.STRANGER.key_id
        rig.will(stranger, no_room(), no_room())
        for _ in range(2):
            rig.call(self.CACHE, self.STRANGER)
        assert rig.sent == [stranger, "a", "c", stranger, "c"]

    def test_other_keys_are_used_evenly(self) -> None:
        """With the strategy `spread` the least utilized of the others is first."""
        rig = Rig(key("a"), *(key(f"k{number}", Limits(rpm=9)) for number in range(3)))
        rig.will("a", no_room())
        for _ in range(3):
            rig.call(self.CACHE, rig.selector.keys["a"])
        assert sorted(rig.sent) == ["a", "k0", "k1", "k2"]

    def test_where_no_project_has_room_the_pool_is_exhausted(self) -> None:
        """Each key's reason is reported, and the next call sends nothing."""
        rig = self.pool_without_room()
        last = no_room()
        rig.will("c", no_room())
        rig.will("d", last)
        assert rig.failing(self.CACHE, rig.selector.keys["a"]).last is last.error
        error = rig.failing(self.CACHE, rig.selector.keys["a"])
        assert isinstance(error, Exhausted)
        reasons = {key_id: block.reason for key_id, block in error.unavailable.blocks.items()}
        assert reasons == dict.fromkeys("abcd", "cache_storage")
        assert rig.sent == ["a", "c", "d"]

    @pytest.mark.parametrize(
        "info",
        [CACHE._replace(resources=("files/a",)), CACHE._replace(verb="batchGenerateContent")],
        ids=["names a file", "is no cache"],
    )
    def test_a_cache_of_a_stored_file_stays_with_its_project(self, info: CallInfo) -> None:
        """Another project cannot read the file, and nothing else is moved."""
        rig = self.pool_without_room()
        rig.will("b", no_room())
        rig.failing(info, rig.selector.keys["a"])
        assert set(rig.sent) <= {"a", "b"}

    def test_a_temporary_failure_of_the_home_project_is_not_bypassed(self) -> None:
        """A temporary failure is waited for, or raised."""
        rig = self.pool_without_room()
        rig.script["a"].clear()
        rig.will("a", minute("90s"))
        rig.will("b", no_room())
        for _ in range(2):
            rig.failing(self.CACHE, rig.selector.keys["a"])
        assert rig.sent == ["a", "b"]

    def test_a_home_project_without_room_or_key_is_bypassed(self) -> None:
        """One key of the project is rejected, and the other has no room."""
        rig = self.pool_without_room()
        rig.script["a"].clear()
        rig.will("a", invalid())
        rig.will("b", no_room())
        for _ in range(2):
            rig.call(self.CACHE, rig.selector.keys["a"])
        assert rig.sent == ["a", "b", "c", "c"]


class TestRejectedHome:
    """A resource that a rejected home key cannot create is created by another project."""

    UPLOAD = CallInfo("", "files", bound_to_owner=True, idempotent=False, counts_in_quota=False)

    @pytest.mark.parametrize("verb", ["files", "cachedContents", "batchGenerateContent"])
    def test_a_new_resource_may_use_any_key(self, verb: str) -> None:
        """At once, and the next call does not try the home key again."""
        rig = three()
        rig.will("a", invalid())
        for _ in range(2):
            rig.call(self.UPLOAD._replace(verb=verb), rig.selector.keys["a"])
        assert rig.sent[:2] == ["a", "b"]
        assert "a" not in rig.sent[2:]

    @pytest.mark.parametrize("verb", ["list", "get", "delete"])
    def test_existing_resources_stay_with_the_home_key(self, verb: str) -> None:
        """Nothing of another project is listed or deleted instead."""
        rig, reply = three(), invalid()
        rig.will("a", reply)
        assert (
            rig.failing(self.UPLOAD._replace(verb=verb), rig.selector.keys["a"]).last is reply.error
        )
        assert rig.sent == ["a"]

    def test_a_call_that_names_a_stored_resource_stays_with_its_owner(self) -> None:
        """A batch of a file is its owner's."""
        rig, reply = three(), invalid()
        rig.will("a", reply)
        batch = self.UPLOAD._replace(verb="batchGenerateContent", resources=("files/x",))
        assert rig.failing(batch, rig.selector.keys["a"]).last is reply.error
        assert rig.sent == ["a"]

    @pytest.mark.parametrize("is_own", [True, False])
    def test_a_project_that_is_busy_is_left_by_clients_without_a_key(self, is_own: bool) -> None:
        """A client with a key of its own waits for it; for others any project is as good."""
        rig, reply = three(max_wait_s=0), minute("90s")
        rig.will("a", reply)
        rig.home_is_own = is_own
        if is_own:
            assert rig.failing(self.UPLOAD, rig.selector.keys["a"]).last is reply.error
        else:
            assert rig.call(self.UPLOAD, rig.selector.keys["a"]) == "answer"
        assert rig.sent == (["a"] if is_own else ["a", "b"])

    @pytest.mark.parametrize("verb", ["list", "get", "delete"])
    def test_a_busy_project_keeps_what_it_has(self, verb: str) -> None:
        """Only a create goes on to another project."""
        rig, reply = three(max_wait_s=0), minute("90s")
        rig.will("a", reply)
        rig.home_is_own = False
        assert rig.failing(self.UPLOAD._replace(verb=verb), rig.selector.keys["a"]) is reply.error
        assert rig.sent == ["a"]
