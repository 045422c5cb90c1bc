"""What responses show of pending batches, and where the next one goes."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import Rig, key
from support.replies import MODEL, invalid, lost, minute, overloaded

from keyrot_middleware.core.affinity import parse_path
from keyrot_middleware.core.batches import PENDING_S, RESERVED_S, pending_batches
from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import CallInfo, Candidate, LeaseOutcome

NEW = CallInfo(MODEL, "batchGenerateContent", idempotent=False, counts_in_quota=False, requests=0)
CREATE = ("post", f"models/{MODEL}:batchGenerateContent")
ONE = ("get", "batches/b")
LIST = ("get", "batches?pageSize=2")


def batch(name: str, state: str) -> dict[str, Any]:
    """Return a batch as responses have it."""
    return {"name": name, "metadata": {"state": f"BATCH_STATE_{state}"}}


@pytest.mark.parametrize(
    ("request_line", "body", "found"),
    [
        (CREATE, {"name": "batches/b"}, {"batches/b": PENDING_S}),
        (("post", f"models/{MODEL}:asyncBatchEmbedContent"), batch("batches/b", "PENDING"),
         {"batches/b": PENDING_S}),
        (CREATE, {}, {}),
        (ONE, batch("batches/b", "RUNNING"), {"batches/b": PENDING_S}),
        (ONE, batch("batches/b", "SUCCEEDED"), {"batches/b": 0}),
        (ONE, batch("batches/b", "FAILED"), {"batches/b": 0}),
        (ONE, batch("batches/b", "EXPIRED"), {"batches/b": 0}),
        (ONE, batch("batches/b", "CANCELLED"), {"batches/b": 0}),
        (ONE, {"name": "batches/b", "done": True}, {"batches/b": 0}),
        (ONE, batch("batches/b", "UNSPECIFIED"), {}),
        (ONE, {"name": "batches/b", "metadata": "?"}, {}),
        (LIST, {"operations": [batch("batches/a", "PENDING"), None, {"name": 1},
                               batch("batches/b", "SUCCEEDED")]},
         {"batches/a": PENDING_S, "batches/b": 0}),
        (LIST, {}, {}),
        (("post", "batches/b:cancel"), {}, {"batches/b": 0}),
        (("delete", "batches/b"), {}, {"batches/b": 0}),
        (("get", "files/b"), batch("files/b", "PENDING"), {}),
    ],
)  # fmt: skip
def test_what_a_response_shows(
    request_line: tuple[str, str], body: dict[str, Any], found: dict[str, float]
) -> None:
    """A new or running batch counts for two days more, one that has ended does not."""
    route = parse_path(*request_line)
    assert pending_batches(route, route.names, body) == found


def made(name: str) -> Done:
    """Return the response to a create."""
    return Done("made", names=(name,), batches={name: PENDING_S})


def rig(*keys: Candidate, **policy: Any) -> Rig:
    """Make a pool in which batches are known by the numbers of their sends."""
    made_rig = Rig(*keys, strategy="fill", **policy)
    made_rig.default = lambda: made(f"batches/{len(made_rig.sent)}")
    return made_rig


class TestChoice:
    """A new batch goes where the fewest are pending."""

    def test_new_batches_go_round(self) -> None:
        """Each project gets as many as the others, in the order of the keys."""
        pool = rig(key("a"), key("b"), key("c"))
        for _ in range(6):
            assert pool.call(NEW) == "made"
        assert pool.sent == ["a", "b", "c", "a", "b", "c"]
        assert pool.state.count_batches("abc") == {"a": 2, "b": 2, "c": 2}

    def test_the_keys_of_one_project_share_its_batches(self) -> None:
        """A second key does not make a project more attractive."""
        pool = rig(key("a", project="p"), key("b", project="p"), key("c"))
        for _ in range(4):
            pool.call(NEW)
        assert pool.sent == ["a", "c", "a", "c"]

    def test_a_key_for_the_model_comes_first(self) -> None:
        """Priorities and models hold before the numbers of batches."""
        pool = rig(key("a", priority=1), key("b"))
        for _ in range(3):
            pool.call(NEW)
        assert pool.sent == ["b", "b", "b"]

    def test_batches_that_ended_do_not_count(self) -> None:
        """A response that shows their ends makes room."""
        pool = rig(key("a"), key("b"))
        pool.call(NEW)
        pool.call(NEW)
        pool.will("a", Done("ended", batches={"batches/1": 0.0}))
        pool.call(CallInfo("", "get", bound_to_owner=True, resources=("batches/1",)))
        pool.call(NEW)
        assert pool.sent == ["a", "b", "a", "a"]

    def test_a_key_that_failed_is_excluded(self) -> None:
        """A = 429, B = invalid, C = good: one send each, and all later ones with C."""
        pool = rig(key("a"), key("b"), key("c"))
        pool.will("a", minute())
        pool.will("b", invalid())
        for _ in range(4):
            pool.call(NEW)
        assert pool.sent == ["a", "b", "c", "c", "c", "c"]
        assert pool.state.count_batches("abc") == {"a": 0, "b": 0, "c": 4}

    def test_a_batch_of_a_file_goes_with_the_files_key(self) -> None:
        """However many are pending in its project."""
        pool = rig(key("a"), key("b"))
        pool.call(NEW)
        pool.will("a", Done("file", names=("files/f",)))
        info = NEW._replace(bound_to_owner=True)
        pool.call(info._replace(verb="files", resources=()), key("a"))
        pool.call(info._replace(resources=("files/f",)), key("b"))
        assert pool.sent == ["a", "a", "a"]
        assert pool.state.count_batches("ab") == {"a": 2, "b": 0}

    def test_a_pool_of_many_keys_is_offered_in_parts(self) -> None:
        """Also the last of two hundred keys is found, where all others cool down."""
        keys = [key(f"k{number}") for number in range(200)]
        pool = rig(*keys)
        for one in keys[:-1]:
            pool.will(one.key_id, minute())
        assert pool.call(NEW) == "made"
        assert len(pool.sent) == 200
        pool.sent.clear()
        assert pool.call(NEW) == "made"
        assert pool.sent == ["k199"]


class TestCap:
    """No project gets more than `max_pending_batches`."""

    def test_a_full_project_gets_none(self) -> None:
        """The next ones go elsewhere, also where more are pending."""
        pool = rig(key("a", max_pending_batches=1), key("b"), max_wait_s=0)
        for _ in range(4):
            pool.call(NEW)
        assert pool.sent == ["a", "b", "b", "b"]

    def test_a_call_waits_for_room_and_fails_without(self) -> None:
        """Within its budget; the error names the reason."""
        pool = rig(key("a", max_pending_batches=1), max_wait_s=30)
        pool.call(NEW)
        error = pool.failing(NEW)
        assert isinstance(error, Exhausted)
        assert error.unavailable.blocks["a"].reason == "batches_full"
        assert 20 < sum(pool.slept) <= 30
        assert pool.sent == ["a"]

    def test_a_batch_that_ends_meanwhile_makes_room(self) -> None:
        """The waiting call looks again and again."""
        pool = rig(key("a", max_pending_batches=1), max_wait_s=30)
        pool.call(NEW)
        slept = pool.sleep

        def sleep(seconds: float) -> None:
            slept(seconds)
            pool.state.update_batches("a", {"batches/1": 0.0})

        pool.sleep = sleep  # type: ignore[method-assign]
        assert pool.call(NEW) == "made"
        assert pool.sent == ["a", "a"]

    def test_a_batch_that_nobody_looks_at_stops_counting(self) -> None:
        """It has expired after two days."""
        pool = rig(key("a", max_pending_batches=1), max_wait_s=0)
        pool.call(NEW)
        pool.clock.sleep(PENDING_S + 1)
        assert pool.call(NEW) == "made"

    def test_a_call_that_was_overtaken_tries_the_next_project(self) -> None:
        """Another process took the last place between the count and the reservation."""
        pool = rig(key("a", max_pending_batches=1), key("b"))
        pool.state.count_batches = lambda projects: dict.fromkeys(projects, 0)  # type: ignore[method-assign]
        for _ in range(2):
            pool.call(NEW)
        assert pool.sent == ["a", "b"]
        pool.state.check()

    @pytest.mark.parametrize(
        ("interrupt", "outcome"),
        [(KeyboardInterrupt, LeaseOutcome.UNSENT), (GeneratorExit, LeaseOutcome.ABANDONED)],
    )
    def test_a_call_that_is_interrupted_before_it_is_sent_frees_its_lease(
        self, interrupt: type[BaseException], outcome: LeaseOutcome
    ) -> None:
        """Ctrl-C, or a cancellation, while the place for the batch is being reserved."""
        pool = rig(key("a"))

        def interrupted(*_: Any) -> Any:
            raise interrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(interrupt):
            patch.setattr(pool.state, "reserve_batch", interrupted)
            pool.call(NEW)
        pool.state.check()
        assert [ended.kind for _, ended in pool.state.settled] == [outcome]

    @pytest.mark.parametrize(
        ("reply", "left"),
        [(overloaded(), 0), (lost("connect"), 0), (lost("reset"), 1)],
        ids=["refused", "unsent", "lost"],
    )
    def test_a_failed_create_gives_its_place_back(self, reply: Any, left: int) -> None:
        """Unless it may have made a batch all the same; that place is free ten minutes later."""
        pool = rig(key("a"), max_retries=0)
        pool.will("a", reply)
        assert pool.failing(NEW) is reply.error
        assert pool.state.count_batches("a") == {"a": left}
        pool.clock.sleep(RESERVED_S + 1)
        assert pool.state.count_batches("a") == {"a": 0}

    def test_a_state_that_fails_does_not_stop_batches(self) -> None:
        """They are made uncounted."""
        pool = rig(key("a"))
        for name in ("count_batches", "reserve_batch", "update_batches"):
            setattr(pool.state, name, _broken)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("keyrot_middleware.runtime.sync.handle_internal_error", lambda _: None)
            assert pool.call(NEW) == "made"


def _broken(*_: Any) -> Any:
    raise RuntimeError("broken")
