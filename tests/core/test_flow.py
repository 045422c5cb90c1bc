"""One call: walking the pool, retrying what is nobody's fault, and what comes out."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from rig import (
    INFO,
    OK,
    STREAMED,
    Chunks,
    Rig,
    bad,
    blocked,
    capacity,
    day,
    denied,
    failure,
    far,
    invalid,
    key,
    lost,
    minute,
    overloaded,
)

from keyrot_middleware.core.commands import Done, Now, Refresh, Settle, Sleep
from keyrot_middleware.core.flow import Attempt, Exhausted, note
from keyrot_middleware.core.model import HOME, Candidate, Limits, Scope, Usage, Verdict
from keyrot_middleware.drive import sync


def three(**policy: Any) -> Rig:
    """Make keys a, b, c, used in that order."""
    return Rig(key("a"), key("b"), key("c"), strategy="fill", **policy)


def test_a_spent_an_invalid_and_a_good_key_serve_60_calls() -> None:
    """A 429, B invalid, C good: 1, 1 and 60 requests, none failed, and nobody sleeps."""
    rig = three()
    rig.will("a", minute("30s"))
    rig.will("b", invalid())
    assert [rig.call() for _ in range(60)] == ["answer"] * 60
    assert rig.sent == ["a", "b", *["c"] * 60]
    assert rig.slept == []


@pytest.mark.parametrize("fault", [minute, day, capacity, invalid, denied, blocked])
def test_a_failed_key_is_excluded_and_a_healthy_one_used_without_sleeping(fault: Any) -> None:
    """Whatever blames a key sends the call on at once, with another key."""
    rig = three()
    rig.will("a", fault())
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "b"], [])


def test_220_dead_keys_are_asked_once_each() -> None:
    """The pool forgets nothing: however many keys are dead, each costs one request in all."""
    rig = Rig(*(key(f"dead{number}") for number in range(220)), key("good"))
    for number in range(220):
        rig.will(f"dead{number}", invalid(), invalid())
    rig.draw = 0.999
    for _ in range(3):
        rig.call()
    rig.draw = 0.0
    assert [rig.call() for _ in range(20)] == ["answer"] * 20
    dead = [key_id for key_id in rig.sent if key_id != "good"]
    assert len(dead) == len(set(dead)) == 220
    rig.sent.clear()
    tape = rig.flow()
    sync.run(tape, sync.Performer(rig.pool, rig.send))  # type: ignore[arg-type]
    assert rig.sent == ["good"]


def test_each_key_is_walked_once_and_the_last_error_comes_out() -> None:
    """When all fail without a known time, the SDK's last exception is the caller's."""
    rig = three()
    replies = [invalid(), capacity(), denied()]
    for key_id, reply in zip("abc", replies, strict=True):
        rig.will(key_id, reply)
    assert rig.failing() is replies[-1].error
    assert (rig.sent, rig.slept) == (["a", "b", "c"], [])


def test_max_attempts_bounds_the_walk_but_not_the_retries() -> None:
    """Walking and retrying have budgets of their own: neither uses up the other's."""
    rig = three(max_attempts=2, max_retries=2)
    rig.will("a", overloaded(), overloaded(), invalid())
    rig.will("b", invalid())
    rig.failing()
    assert rig.sent == ["a", "a", "a", "b"]
    rig = three(max_attempts=0, max_retries=1)
    rig.will("a", invalid())
    rig.will("b", overloaded(), invalid())
    rig.will("c", overloaded())
    rig.failing()
    assert rig.sent == ["a", "b", "b", "c"]


def test_waiting_does_not_use_up_the_retries() -> None:
    """A call that has waited for a key may still be retried, and the other way round."""
    rig = Rig(key("a"), max_retries=2)
    rig.will("a", overloaded(), minute("5s"), overloaded(), OK)
    assert rig.call() == "answer"
    assert [round(pause, 2) for pause in rig.slept] == [0.25, 5.0, 0.5]


@pytest.mark.parametrize(
    "fault",
    [overloaded, lambda: failure(500), lambda: lost("reset"), lambda: lost("connect")],
)
def test_nobodys_fault_is_retried_with_a_back_off_and_blames_no_key(fault: Any) -> None:
    """5xx and lost connections: sent again twice, longer apart, the same key as good as before."""
    rig = three(max_retries=2)
    replies = [fault() for _ in range(3)]
    rig.will("a", *replies)
    rig.draw = 0.999
    assert rig.failing() is replies[-1].error
    assert rig.sent == ["a", "a", "a"]
    assert [round(pause, 1) for pause in rig.slept] == [0.5, 1.0]
    assert rig.call() == "answer"
    assert rig.sent[3:] == ["a"]


def test_the_back_off_is_bounded() -> None:
    """However many retries are allowed, no pause is longer than eight seconds."""
    rig = Rig(key("a"), max_retries=12)
    rig.will("a", *(overloaded() for _ in range(12)))
    rig.draw = 0.999999
    rig.call()
    assert max(rig.slept) <= 8.0
    assert rig.slept == sorted(rig.slept)


def test_a_deadline_of_the_server_is_retried_once() -> None:
    """504: the work may have been done, so one more try and no more."""
    rig = Rig(key("a"), max_retries=5)
    rig.will("a", failure(504), failure(504))
    rig.failing()
    assert rig.sent == ["a", "a"]
    rig = Rig(key("a"), max_retries=0)
    rig.will("a", failure(504))
    rig.failing()
    assert rig.sent == ["a"]


@pytest.mark.parametrize(
    ("info", "fault", "sends"),
    [
        (INFO._replace(repeatable=False), overloaded, 1),
        (INFO._replace(repeatable=False), lambda: lost("reset"), 1),
        (INFO._replace(repeatable=False), lambda: lost("connect"), 3),
        (INFO._replace(sdk_retries=True), overloaded, 1),
    ],
)
def test_what_may_do_harm_twice_or_the_sdk_repeats_is_not_retried(
    info: Any, fault: Any, sends: int
) -> None:
    """A create is repeated only where nothing left the machine; the SDK's retries are its own."""
    rig = three()
    rig.will("a", *(fault() for _ in range(3)))
    rig.failing(info)
    assert rig.sent == ["a"] * sends


@pytest.mark.parametrize(
    "fault", [bad, lambda: failure(404), lambda: lost("timeout"), lambda: lost("other")]
)
def test_a_bad_request_is_sent_once_and_blames_nobody(fault: Any) -> None:
    """The request's own failure, or the caller's deadline, is raised at once."""
    rig = three()
    reply = fault()
    rig.will("a", reply)
    assert rig.failing() is reply.error
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "a"], [])


def test_capacity_is_not_sprayed_over_a_large_pool() -> None:
    """A 429 without a quota is probably the model's: six keys are asked, not twenty."""
    rig = Rig(*(key(f"k{number}") for number in range(20)), strategy="fill")
    for number in range(20):
        rig.will(f"k{number}", capacity())
    rig.failing()
    assert rig.sent == [f"k{number}" for number in range(6)]


def test_a_refused_place_asks_one_key_of_another_tier() -> None:
    """Where the free tier is not offered only a paid key can help, and one says it all."""
    rig = Rig(
        *(key(f"free{number}", tier="free") for number in range(3)),
        *(key(f"paid{number}", tier="paid", priority=1) for number in range(3)),
        strategy="fill",
    )
    rig.will("free0", far(), far())
    assert rig.call() == "answer"
    assert rig.sent == ["free0", "paid0"]
    rig.will("paid0", far())
    rig.failing()
    assert rig.sent[2:] == ["free0", "paid0"]


def test_a_replaced_secret_is_used_at_once_but_only_once() -> None:
    """A retired key whose value was replaced serves the same call; a second bad value does not."""
    rig = three()

    def replaced() -> Any:
        rig.shelf.values["a"] += "x"
        return invalid()

    rig.will("a", replaced)
    assert rig.call() == "answer"
    assert rig.sent == ["a", "a"]
    rig.will("a", replaced, replaced)
    assert rig.call() == "answer"
    assert rig.sent[2:] == ["a", "a", "b"]


def test_a_key_is_looked_up_again_only_when_it_is_retired_for_good() -> None:
    """A spent minute or a project closed for a day is no reason to ask the secret store."""
    rig = three(max_wait_s=0)
    rig.will("a", minute())
    rig.will("b", denied())
    rig.will("c", failure(403, "Permission denied: Consumer 'projects/1' has been suspended."))
    tape = rig.flow()
    with pytest.raises(Exception, match="suspended"):
        sync.run(tape, sync.Performer(rig.pool, rig.send))  # type: ignore[arg-type]
    assert tape.of(Refresh) == [Refresh("c")]


def test_the_exception_tells_every_attempt() -> None:
    """Notes say which key failed how and until when it rests; a bad request says it too."""
    rig = three(max_wait_s=0)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.will("c", bad())
    assert rig.failing().__notes__ == [
        "keyrot: attempt 1 with key a: quota_minute (429), rests until 2026-01-01 12:30:50Z",
        "keyrot: attempt 2 with key b: key_invalid (400), out of service until it is replaced",
        "keyrot: attempt 3 with key c: bad_request (400)",
    ]
    assert "out of service" in note(1, Attempt("k", Verdict("key_invalid", 400), inf))


def test_nothing_to_send_with_is_told_with_a_reason_per_key() -> None:
    """No key is free and none will be soon: nothing is sent, and each key's reason is told."""
    rig = three(max_wait_s=10)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.will("c", capacity())
    rig.failing()
    rig.sent.clear()
    for _ in range(2):
        error = rig.failing()
        assert isinstance(error, Exhausted)
        blocks = error.unavailable.blocks
        assert {key_id: block.reason for key_id, block in blocks.items()} == {
            "a": "quota_minute",
            "b": "key_invalid",
            "c": "capacity",
        }
        assert error.unavailable.retry_at == rig.clock.time() + 20
    assert rig.sent == []


def test_a_pool_without_a_key_to_offer_never_comes_back() -> None:
    """A stored thing with neither owner nor home key cannot be asked for."""
    error = three().failing(INFO._replace(pinned=True, resources=("files/a",)))
    assert isinstance(error, Exhausted)
    assert error.unavailable.retry_at == inf


def test_true_tokens_teach_the_scale() -> None:
    """What a response counted is what the next estimate is scaled with."""
    rig = three()
    rig.will("a", Done("answer", Usage(input_tokens=30)))
    rig.call()
    assert rig.pool.scale.scaled(INFO.model, 10) == 30


def test_a_key_of_a_learned_bucket_rests_for_all_of_its_names() -> None:
    """Google counts a `-latest` name with its model: both rest after either's 429."""
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


class TestStreams:
    """A stream may change its key until its first chunk is here, and never after."""

    def test_a_stream_is_relayed_to_its_end(self) -> None:
        """All chunks come through, and its last usage is what is booked."""
        rig = three()
        rig.will("a", Chunks(1, 2, 3))
        assert rig.call(STREAMED) == [1, 2, 3]
        assert rig.state.snapshot([key("a")])["a"].used[0].tokens_minute == 6

    def test_a_failure_before_the_first_chunk_changes_the_key(self) -> None:
        """Nothing was shown yet, so another key may answer."""
        rig = three()
        rig.will("a", minute())
        rig.will("b", Chunks("b"))
        assert rig.call(STREAMED) == ["b"]

    @pytest.mark.parametrize("fault", [overloaded, minute, invalid])
    def test_a_stream_that_broke_is_never_restarted(self, fault: Any) -> None:
        """After a chunk the SDK's error comes out, noted, with the tokens so far booked."""
        rig, reply = three(), fault()
        rig.will("a", Chunks(1, 2, failed=reply))
        assert rig.failing(STREAMED) is reply.error
        assert rig.sent == ["a"]
        assert reply.error.__notes__[0].startswith("keyrot: attempt 1 with key a: ")
        assert rig.state.snapshot([key("a")])["a"].used[0].tokens_minute == 5


class TestStoredThings:
    """A call that touches stored things goes with their owner's key, or the home key."""

    FILE = INFO._replace(pinned=True, resources=("files/a",))
    HOME_KEY = Candidate(f"{HOME}1234", f"{HOME}1234", f"{HOME}1234")

    def owned(self) -> Rig:
        """Make a pool whose key b has made a file; c is of the same project."""
        rig = Rig(key("a"), key("b", project="p"), key("c", project="p"), strategy="fill")
        rig.will("a", invalid())
        rig.will("b", Done("answer", Usage(input_tokens=10), ("files/a", "continuation:t")))
        rig.call()
        rig.sent.clear()
        return rig

    def test_the_owners_key_serves(self) -> None:
        """Whoever the home key is, the owner's key is used."""
        rig = self.owned()
        assert rig.call(self.FILE, self.HOME_KEY) == "answer"
        assert rig.sent == ["b"]

    def test_another_key_of_the_project_serves_when_the_owner_cannot(self) -> None:
        """The project has stored it, so each of its keys may, and no other project's."""
        rig = self.owned()
        rig.will("b", invalid())
        rig.will("c", invalid())
        rig.failing(self.FILE, self.HOME_KEY)
        assert rig.sent == ["b", "c"]

    @pytest.mark.parametrize("name", ["continuation:t", "page:t"])
    def test_hops_of_one_answer_go_with_the_very_key_of_the_first(self, name: str) -> None:
        """A continuation is bound to its key, not only to the project."""
        rig = self.owned()
        rig.will("b", Done("answer", Usage(), ("page:t",)))
        rig.call(self.FILE)
        rig.will("b", invalid())
        rig.failing(self.FILE._replace(resources=(name,)), self.HOME_KEY)
        assert rig.sent == ["b", "b"]

    def test_what_nobody_knows_is_the_clients_own(self) -> None:
        """Unknown things, and calls that make new ones, go with the home key."""
        rig = self.owned()
        home = rig.roster.keys["c"]
        for info in (self.FILE._replace(resources=("files/z",)), INFO._replace(pinned=True)):
            rig.call(info, home)
        assert rig.sent == ["c", "c"]

    def test_an_owner_that_left_the_pool_is_replaced_by_its_project_or_the_home_key(self) -> None:
        """The owner's key may be gone from the file: its project's keys, else the home key."""
        rig = self.owned()
        del rig.roster.keys["b"]
        rig.call(self.FILE, self.HOME_KEY)
        rig.call(self.FILE._replace(resources=("continuation:t",)), self.HOME_KEY)
        del rig.roster.keys["c"]
        rig.call(self.FILE, self.HOME_KEY)
        assert rig.sent == ["c", self.HOME_KEY.key_id, self.HOME_KEY.key_id]

    def test_a_strangers_key_is_not_managed(self) -> None:
        """A home key that is not the pool's is never cooled or retired; its error comes out."""
        rig = self.owned()
        stranger = self.HOME_KEY.key_id
        for _ in range(2):
            rig.will(stranger, invalid())
            rig.failing(self.FILE._replace(resources=()), self.HOME_KEY)
        assert rig.sent == [stranger, stranger]

    def test_a_pinned_call_waits_for_its_key_rather_than_take_another(self) -> None:
        """Nobody else can serve, so a named time within the budget is waited for."""
        rig = self.owned()
        rig.will("b", minute("5s"))
        del rig.roster.keys["c"]
        assert rig.call(self.FILE) == "answer"
        assert (rig.sent, rig.slept) == (["b", "b"], [5.0])
        rig.will("b", minute("50s"))
        rig.failing(self.FILE)
        error = rig.failing(self.FILE)
        assert isinstance(error, Exhausted)
        assert list(error.unavailable.blocks) == ["b"]


def test_every_failure_is_settled_with_its_verdict_and_error() -> None:
    """The state and the telemetry learn what failed; a success carries its usage and names."""
    rig = three()
    reply = minute()
    rig.will("a", reply)
    rig.will("b", lost("connect"))
    tape = rig.flow()
    sync.run(tape, sync.Performer(rig.pool, rig.send))  # type: ignore[arg-type]
    first, second, third = tape.of(Settle)
    assert first.error is reply.error
    assert first.outcome.verdict.scope is Scope.PROJECT_MODEL
    assert [s.outcome.kind.value for s in (first, second, third)] == [
        "failure",
        "unsent",
        "success",
    ]
    assert [sleep.why for sleep in tape.of(Sleep)] == ["retry"]
    assert tape.of(Now)


def test_a_relieved_window_is_used_before_its_minute_ends() -> None:
    """What a response gave back of its reservation serves the next call at once."""
    rig = Rig(key("a", Limits(tpm=1_000)), max_wait_s=0)
    large = INFO._replace(tokens=900, estimate=900)

    def meanwhile() -> Any:
        assert isinstance(rig.failing(large), Exhausted)
        return Done("answer", Usage(input_tokens=50))

    rig.will("a", meanwhile)
    rig.call(large)
    assert rig.call(large) == "answer"
    assert rig.slept == []
