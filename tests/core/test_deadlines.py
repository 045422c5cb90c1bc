"""When an attempt has a deadline for its first token, what follows from it, and how often."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import OK, bad, invalid, lost, minute, overloaded

from keyrot_middleware.core.chains import fallback_info
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Limits, Scope
from keyrot_middleware.core.waiting import Ticket
from keyrot_middleware.runtime.first_token import FirstTokens
from keyrot_middleware.settings import Settings, deadlines_of

DEADLINE = 8.0


class Timed(Rig):
    """A rig that notes how long each attempt may show nothing."""

    def __init__(self, *keys: Any, **policy: Any) -> None:
        self.tokens = FirstTokens({None: DEADLINE}, self.time)
        super().__init__(*keys, pool={"first_tokens": self.tokens}, **policy)
        self.limits: list[float | None] = []
        self.made: Any = None

    def one(self, **more: Any) -> Any:
        self.made = self.make()
        self.made.first_token_s = DEADLINE
        for name, value in more.items():
            setattr(self.made, name, value)
        return self.run(self.made)

    def send(self, lease: Any) -> Any:
        self.limits.append(self.made.cut_off_s if self.made else None)
        return super().send(lease)


def two(limits: Limits = Limits(), **policy: Any) -> Timed:  # noqa: B008 - immutable
    return Timed(key("a"), key("b", limits), strategy="fill", **policy)


def test_a_slow_key_is_left_alone_and_not_penalized() -> None:
    rig = two()
    rig.will("a", lost("slow"))
    assert rig.one() == "answer"
    assert rig.sent == ["a", "b"]
    assert rig.limits == [DEADLINE, inf]
    assert [attempt.verdict.scope for attempt in rig.made.attempts] == [Scope.NONE]
    assert rig.state.get_blocks(INFO, rig.selector.keys.values()) == {}
    rig.check()


@pytest.mark.parametrize("why", ["full", "last", "others wait"])
def test_there_is_no_deadline_where_nothing_else_could_serve(why) -> None:
    rig = two(Limits(rpm=0 if why == "full" else None), max_attempts=int(why == "last"))
    if why == "others wait":
        rig.pool.waiting_lines.join(Ticket(STREAMED), {}, rig.time(), 0)
        rig.pool.waiting_lines.turn_in = lambda *_: 0.0  # type: ignore[method-assign]
    rig.one()
    assert rig.limits == [inf]


def test_slow_keys_are_used_again_before_the_call_waits_or_fails() -> None:
    """The second time without a deadline, and not if they have failed then."""
    rig = two()
    rig.will("a", lost("slow"), invalid())
    rig.will("b", invalid())
    with pytest.raises(Exhausted):
        rig.one()
    assert rig.sent == ["a", "b", "a"]
    assert rig.limits == [DEADLINE, inf, inf]
    assert rig.slept == []


@pytest.mark.parametrize(
    ("failure", "policy"),
    [
        (minute, {"max_attempts": 2}),
        (overloaded, {"max_retries": 0}),
        (partial(lost, "reset"), {"max_retries": 0}),
    ],
)
def test_slow_keys_are_used_again_where_attempts_or_retries_end(failure, policy) -> None:
    """They would have served the call. A key that failed is not tried in their place."""
    rig = two(**policy)
    rig.will("b", failure())
    rig.will("a", lost("slow"))
    assert rig.one() == "answer"
    assert rig.sent == ["a", "b", "a"]
    assert rig.limits == [DEADLINE, inf, inf]


def test_a_bad_request_is_not_sent_to_slow_keys_again() -> None:
    rig = two()
    rig.will("a", lost("slow"))
    rig.will("b", bad())
    with pytest.raises(Exception, match="400"):
        rig.one()
    assert rig.sent == ["a", "b"]


def test_a_slow_key_whose_minute_is_over_meanwhile_is_exhausted() -> None:
    """Not the deadline is to blame, so that is not what is raised."""
    rig = Timed(key("a", Limits(rpm=1)), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", lost("slow"))
    rig.will("b", minute())
    with pytest.raises(Exhausted) as caught:
        rig.one()
    blocks = caught.value.unavailable.blocks
    assert {name: block.reason for name, block in blocks.items()} == {
        "a": "rpm",
        "b": "quota_minute",
    }


def test_a_slow_call_whose_keys_are_all_full_meanwhile_is_exhausted() -> None:
    rig = Timed(key("a", Limits(rpm=1)), key("b", Limits(rpm=1)), strategy="fill", max_wait_s=0)

    def slow() -> Any:
        made, rig.made = rig.made, None
        rig.call()  # the key b
        rig.made = made
        return lost("slow")

    rig.will("a", slow)
    with pytest.raises(Exhausted):
        rig.one()


def test_the_next_model_is_ready() -> None:
    """A call goes on at once, without waiting for a key of its model."""
    rig = Timed(key("a", Limits(rpm=1)), strategy="fill")
    rig.will("a", lost("slow"))
    info = fallback_info(rig.make(), "next")
    with pytest.raises(ConnectionError, match="slow") as caught:
        rig.one(next_info=info)
    assert caught.value.__notes__ == ["keyrot: attempt 1 with key a: slow_first_token"]
    assert rig.limits == [DEADLINE]
    assert rig.slept == []


def test_the_next_model_is_not_ready_either() -> None:
    rig = Timed(key("a", Limits(rpm=1)), strategy="fill")
    info = fallback_info(rig.make(), "next")
    rig.call(info)
    rig.one(next_info=info)
    assert rig.limits[-1] == inf


def test_the_input_of_a_cut_off_request_is_paid() -> None:
    """Where money is counted; else its tokens are not known."""
    rig = two()
    rig.will("a", lost("slow"))
    settled: list[Any] = []
    acquire, settle = rig.state.acquire, rig.state.settle

    def lease(*args: Any, **kwargs: Any) -> Any:
        return acquire(*args, **kwargs)._replace(purses=("project:x",))

    def note(one: Any, outcome: Any, names: Any = ()) -> Any:
        settled.append(outcome.usage.input_tokens)
        return settle(one, outcome, names)

    rig.state.acquire, rig.state.settle = lease, note  # type: ignore[method-assign]
    rig.one()
    assert settled == [INFO.tokens, OK.usage.input_tokens]


def test_workloads_have_deadlines_of_their_own() -> None:
    """Without any, calls have none to look for."""
    workloads: Any = {"chat": {"first_token_s": 5}, "batch": {"first_token_s": 0}, "other": {}}
    given: Any = {"first_token_s": 7, "workloads": workloads}
    found = {None: 7.0, "chat": 5.0, "batch": 0.0, "other": 7.0}
    assert deadlines_of(Settings(**given)) == found
    assert deadlines_of(Settings()) == {}


# How often, and how long --------------------------------------------------------------------------


class Now:
    def __init__(self) -> None:
        self.at = 600.0

    def __call__(self) -> float:
        return self.at


def test_one_in_twenty_calls_of_a_minute_may_be_cut_off() -> None:
    """And one at least; those of the minute before count as well, so that a minute can begin."""
    now = Now()
    tokens = FirstTokens({None: DEADLINE}, now)
    assert [tokens.take("m") for _ in range(3)] == [True, False, False]
    for _ in range(60):
        assert tokens.begin(INFO._replace(model="m")) == DEADLINE
    assert [tokens.take("m") for _ in range(3)] == [True, True, False]
    assert tokens.take("other")
    tokens.take("m", -1)
    assert [tokens.take("m") for _ in range(2)] == [True, False]
    now.at += 60
    assert [tokens.take("m") for _ in range(4)] == [True, True, True, False]
    now.at += 60
    assert [tokens.take("m") for _ in range(2)] == [True, False]
    now.at += 60
    tokens.take("m", -1)  # it was taken in another minute
    assert [tokens.take("m") for _ in range(2)] == [True, False]


def test_a_call_whose_connection_may_have_others_has_no_deadline() -> None:
    """A response by HTTP/2 says so for good, and one by HTTP/1.1 that it has none."""
    tokens = FirstTokens({None: DEADLINE}, Now())
    assert [tokens.begin(INFO, may) for may in (False, True)] == [DEADLINE, inf]
    tokens.shared[INFO.host] = False
    assert [tokens.begin(INFO, may) for may in (False, True)] == [DEADLINE, DEADLINE]
    tokens.shared[INFO.host] = True
    assert [tokens.begin(INFO, may) for may in (False, True)] == [inf, inf]
