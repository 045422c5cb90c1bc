"""The owner of a stored resource that nobody knows is found by asking each project once."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import failure, invalid, lost

from keyrot_middleware.core.commands import Done, Failed, StreamEnd
from keyrot_middleware.core.flow import MAX_PROJECTS_ASKED, SEARCH_AGAIN_S, OwnerSearches
from keyrot_middleware.core.model import (
    HOME,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    Scope,
    Verdict,
)

NAME = "batches/b"
GET = CallInfo("", "get", bound_to_owner=True, resources=(NAME,), counts_in_quota=False, requests=0)
CANCEL = GET._replace(verb="cancel", idempotent=False)


def missing() -> Failed:
    """Return the answer of a project that has not got it."""
    return failure(404, "Requested entity was not found.")


def denied() -> Failed:
    """Return the answer for the file of another project."""
    return failure(403, "You do not have permission to access the File x.")


REJECTED = Outcome(
    LeaseOutcome.FAILURE, Verdict("key_invalid", scope=Scope.KEY, until=1e12, rejected=True)
)


def rejected(rig: Rig) -> Lease:
    """Return a lease of b that another call settles."""
    lease = rig.state.acquire(INFO, ((0, key("b")),), spread=False)
    assert isinstance(lease, Lease)
    return lease


class Searching(Rig):
    """A pool that searches, and what was asked for by name."""

    def __init__(self, *keys: Candidate, owner: str = "", **policy: Any) -> None:
        super().__init__(*keys, strategy="fill", **{"max_wait_s": 0, **policy})
        self.searches = OwnerSearches()
        self.can_get = True
        self.got: list[tuple[str, str]] = []
        for one in keys:
            if one.project != owner:
                self.script[one.key_id].extend([missing() for _ in range(99)])

    def make(self, info: CallInfo = GET, home: Candidate | None = None) -> Any:
        """Make a call that may search."""
        call = super().make(info, home)
        call.searches, call.can_get = self.searches, self.can_get
        return call

    def send(self, lease: Any, get: str = "") -> Any:
        """Note a GET that stands for the call."""
        self.got += [(lease.key_id, get)] if get else []
        return super().send(lease)


def of_b(**policy: Any) -> Searching:
    """Make keys a, b, c, of which b's project has it."""
    return Searching(key("a"), key("b"), key("c"), owner="b", **policy)


class TestReading:
    """A GET is its own question."""

    @pytest.mark.parametrize("fault", [missing, denied])
    @pytest.mark.parametrize("verb", ["get", "download", "list"])
    def test_each_other_project_is_asked_once(self, verb: str, fault: Any) -> None:
        """Home first, then the others in order; whoever has it is remembered."""
        rig = of_b()
        rig.script["a"].appendleft(fault())
        info = GET._replace(verb=verb)
        assert rig.call(info, key("a")) == "answer"
        assert rig.sent == ["a", "b"]
        assert rig.state.get_owner([NAME]) == ("b", "b")
        rig.call(info, key("a"))
        assert rig.sent == ["a", "b", "b"]
        assert rig.got == []
        rig.state.check()

    def test_a_call_of_one_project_asks_no_other(self) -> None:
        """Its error is the project's own."""
        rig = of_b()
        with pytest.raises(Exception, match="not found"):
            rig.call(GET._replace(project="a"), key("a"))
        assert rig.sent == ["a"]

    def test_an_async_call_searches_too(self) -> None:
        """The same by the other driver."""
        import asyncio

        rig = of_b()
        assert asyncio.run(rig.acall(GET, key("a"))) == "answer"
        assert rig.sent == ["a", "b"]

    def test_a_project_is_asked_with_a_key_that_works(self) -> None:
        """A rejected key says nothing of the project: its next one is asked."""
        rig = Searching(key("a"), key("b", project="p"), key("c", project="p"), owner="p")
        rig.will("b", invalid())
        assert rig.call(GET, key("a")) == "answer"
        assert rig.sent == ["a", "b", "c"]
        assert rig.state.get_owner([NAME]) == ("c", "p")

    def test_a_client_with_a_key_of_its_own_searches_the_whole_pool(self) -> None:
        """Its project is none of the pool's."""
        rig = of_b()
        stranger = Candidate(f"{HOME}1", f"{HOME}1", f"{HOME}1")
        rig.will(stranger.key_id, missing())
        assert rig.call(GET, stranger) == "answer"
        assert rig.sent == [stranger.key_id, "a", "b"]

    def test_what_nobody_has_is_the_first_error(self) -> None:
        """With a note of how many were asked; a loop of polls asks home alone for a minute."""
        rig = Searching(key("a"), key("b"), key("c"))
        first = missing()
        rig.script["a"].appendleft(first)
        error = rig.failing(GET, key("a"))
        assert error is first.error
        assert error.__notes__ == [
            "keyrot: attempt 1 with key a: affinity (404)",
            f"keyrot: the owner of {NAME} is not known; 2 of 2 other projects of the pool were "
            "asked, and none has it",
        ]
        rig.failing(GET, key("a"))
        assert rig.sent == ["a", "b", "c", "a"]
        rig.clock.sleep(SEARCH_AGAIN_S)
        rig.failing(GET, key("a"))
        assert rig.sent == ["a", "b", "c", "a", "a", "b", "c"]

    def test_a_project_that_cannot_be_asked_is_not_counted(self) -> None:
        """Its key is rejected, now or before, and the note does not count it."""
        rig = Searching(key("a"), key("b"), key("c"), key("v", platform="vertex_express"))
        rig.script["b"].appendleft(invalid())
        for name in ("batches/other", NAME):
            error = rig.failing(GET._replace(resources=(name,)), key("a"))
            assert "1 of 2 other projects" in error.__notes__[-1]
        assert rig.sent == ["a", "b", "c", "a", "c"]

    def test_only_so_many_projects_are_asked(self) -> None:
        """A large pool is not walked through for one name."""
        rig = Searching(*(key(f"k{n}") for n in range(MAX_PROJECTS_ASKED + 20)))
        rig.failing(GET, key("k0"))
        assert len(rig.sent) == MAX_PROJECTS_ASKED + 1

    @pytest.mark.parametrize("transport", ["timeout", "other"])
    def test_what_fails_in_the_program_ends_the_search(self, transport: str) -> None:
        """A full disk, or the call's own deadline: no other project would do better."""
        rig = Searching(key("a"), key("b"), key("c"))
        broken = lost(transport)
        rig.script["b"].appendleft(broken)
        assert rig.failing(GET, key("a")) is broken.error
        assert rig.sent == ["a", "b"]
        assert not rig.searches.was_in_vain(NAME, rig.time())

    def test_a_download_that_broke_is_not_started_elsewhere(self) -> None:
        """Its first bytes are in the program's stream."""
        rig = of_b()
        broken = lost("reset")
        rig.will("b", StreamEnd(failed=broken))
        assert rig.failing(GET._replace(verb="download"), key("a")) is broken.error
        assert rig.sent == ["a", "b"]


class TestChanging:
    """A cancel, a delete or a change is sent to the owner alone, which a GET has found."""

    @pytest.mark.parametrize("verb", ["cancel", "delete", "patch"])
    def test_the_owner_is_found_first(self, verb: str) -> None:
        """A GET of each other project, then the call with the owner's key."""
        rig = of_b()
        assert rig.call(CANCEL._replace(verb=verb), key("a")) == "answer"
        assert rig.sent == ["a", "b", "b"]
        assert rig.got == [("b", NAME)]

    def test_an_async_call_too(self) -> None:
        """The same by the other driver."""
        import asyncio

        rig = of_b()

        async def asend(lease: Any, get: str = "") -> Any:
            return rig.send(lease, get)

        rig.asend = asend  # type: ignore[method-assign]
        assert asyncio.run(rig.acall(CANCEL, key("a"))) == "answer"
        assert rig.got == [("b", NAME)]

    def test_a_failure_of_the_call_itself_comes_out(self) -> None:
        """The owner was found, and refuses."""
        rig, reply = of_b(), failure(400, "It has ended.")
        rig.will("b", Done("found"), reply)
        assert rig.failing(CANCEL, key("a")) is reply.error
        assert rig.sent == ["a", "b", "b"]

    def test_an_owner_that_is_away_meanwhile_leaves_homes_error(self) -> None:
        """Its only key is rejected between the GET and the call."""
        rig = of_b()
        first = missing()
        rig.script["a"].appendleft(first)
        rig.will("b", lambda: rig.state.settle(rejected(rig), REJECTED) and Done("found"))
        assert rig.failing(CANCEL, key("a")) is first.error
        assert rig.sent == ["a", "b"]

    def test_nothing_is_sent_where_no_get_can_be(self) -> None:
        """A surface without one raises home's error."""
        rig = of_b()
        rig.can_get = False
        rig.failing(CANCEL, key("a"))
        assert rig.sent == ["a"]


class TestNoSearch:
    """Calls for which home's answer is the answer."""

    @pytest.mark.parametrize(
        "info",
        [
            GET._replace(verb="generateContent"),
            GET._replace(verb="uploadToFileSearchStore", idempotent=False),
            GET._replace(verb="list", resources=("page:t",)),
            GET._replace(verb="list", resources=()),
        ],
        ids=["inference", "upload", "page", "list"],
    )
    def test_other_calls_stay_at_home(self, info: CallInfo) -> None:
        """A prompt with a file must not go to every project."""
        rig = of_b()
        rig.failing(info, key("a"))
        assert rig.sent == ["a"]

    @pytest.mark.parametrize("reply", [failure(400, "Bad."), failure(409, "Busy.")])
    def test_other_failures_say_nothing_of_the_owner(self, reply: Failed) -> None:
        """Only a 403 or a 404 may mean another project."""
        rig = of_b()
        rig.script["a"].appendleft(reply)
        assert rig.failing(GET, key("a")) is reply.error
        assert rig.sent == ["a"]

    def test_a_known_owner_is_believed(self) -> None:
        """Its 404 means that the resource is gone."""
        rig = of_b()
        rig.will("b", Done("made", names=(NAME,)))
        rig.call(GET._replace(resources=()), key("b"))
        rig.will("b", missing())
        rig.failing(GET, key("a"))
        assert rig.sent == ["b", "b"]

    def test_the_owner_may_have_left_the_pool(self) -> None:
        """Then its project is not known either, and the others are asked."""
        rig = Searching(key("a"), key("b"), key("c"), owner="c")
        rig.script["b"].appendleft(Done("made", names=(NAME,)))
        rig.call(GET._replace(resources=()), key("b"))
        del rig.selector.keys["b"]
        assert rig.call(GET, key("a")) == "answer"
        assert rig.sent == ["b", "a", "c"]

    def test_a_pool_without_searches_asks_nobody(self) -> None:
        """As for calls that are made without an installed pool."""
        rig = of_b()
        rig.searches = None  # type: ignore[assignment]
        rig.failing(GET, key("a"))
        assert rig.sent == ["a"]


def test_names_that_were_sought_are_bounded() -> None:
    """However many are sought, and however a clock is set back."""
    searches = OwnerSearches()
    for number in range(1_500):
        searches.record_in_vain(f"files/{number}", 1_000.0)
    assert searches.was_in_vain("files/1499", 1_000.0)
    assert not searches.was_in_vain("files/0", 1_000.0)
    assert not searches.was_in_vain("files/1499", 1_000.0 + SEARCH_AGAIN_S)
    assert not searches.was_in_vain("files/1499", 0.0)
