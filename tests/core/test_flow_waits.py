"""Waiting: only while no key is available, only for a known time, only within the budget."""

from itertools import pairwise
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import OK, capacity, day, exceeds_limit, invalid, minute, unsupported_region

from keyrot_middleware.core.commands import Sleep
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Block, Limits, Unavailable
from keyrot_middleware.state import MemoryState


@pytest.mark.parametrize(
    ("keys", "replies", "sent", "slept"),
    [
        ([key("a")], {"a": minute("20s")}, "aa", [20.0]),
        # the first of the failed keys to be available again
        (
            [key("a"), key("b"), key("c")],
            {"a": minute("20s"), "b": minute("7s"), "c": invalid()},
            "abcb",
            [7.0],
        ),
        # whatever its priority is, another key that can serve is not waited for
        ([key("a"), key("b", priority=9)], {"a": minute("1s")}, "ab", []),
        # a key excluded for the rest of the call stays excluded
        (
            [key("f", tier="free"), key("p", tier="paid")],
            {"f": unsupported_region(), "p": minute("5s")},
            "fpp",
            [5.0],
        ),
    ],
)
def test_a_call_waits_for_the_soonest_key_that_it_may_use(
    keys: Any, replies: Any, sent: str, slept: list[float]
) -> None:
    """No other key is available, and the server named a time; telemetry knows what for."""
    rig = Rig(*keys, strategy="fill")
    for key_id, reply in replies.items():
        rig.will(key_id, reply)
    tape = rig.recorded()
    assert "".join(rig.sent) == sent
    assert [(one.seconds, one.reason) for one in tape.of(Sleep)] == [(s, "key") for s in slept]


def test_a_key_excluded_for_good_is_not_waited_for() -> None:
    """Its full minute ends soon, but this call may not use it: the error is raised at once."""
    rig = Rig(key("a", tier="free"), key("b", Limits(rpm=1), tier="free"), strategy="fill")
    rig.will("a", minute("5s"))
    rig.call()  # by b, whose only request of the minute this was
    rig.call()  # found it full, and waited for a
    rig.slept.clear()
    rig.will("a", unsupported_region())
    rig.failing()
    assert (rig.sent, rig.slept) == (["a", "b", "a", "a"], [])


@pytest.mark.parametrize("fault", [lambda: minute("31s"), day, capacity, invalid, exceeds_limit])
def test_a_long_time_a_day_or_a_guess_is_never_waited_for(fault: Any) -> None:
    """Only a time that the server named, within `max_wait_s`; not 30 s of ours."""
    rig, reply = Rig(key("a"), max_wait_s=30.0), fault()
    rig.will("a", reply)
    error = rig.failing(INFO._replace(tokens=5_000))
    assert getattr(error, "last", error) is reply.error
    assert (rig.sent, rig.slept) == (["a"], [])


def test_all_waits_of_a_call_fit_into_the_budget() -> None:
    """A server that keeps naming times is waited for `max_wait_s` in all, jitter included."""
    rig = Rig(key("a"), max_wait_s=30.0)
    rig.will("a", *(minute("7s") for _ in range(9)))
    rig.random = 0.999
    rig.failing()
    assert len(rig.sent) == 5
    assert all(7.0 <= pause <= 7.5 for pause in rig.slept)
    assert sum(rig.slept) <= 30.0
    rig.clock.advance(60)
    rig.script.clear()
    rig.will("a", minute("30s"))
    rig.slept.clear()
    assert rig.call() == "answer"
    assert rig.slept == [30.0], "the whole budget may be waited, but not more"


def test_a_server_that_names_milliseconds_is_not_hammered() -> None:
    """However short the named times are, a call uses a key once a second and five times."""
    rig = Rig(key("a"), key("b"), max_wait_s=60.0, strategy="fill")
    sent: dict[str, list[float]] = {"a": [], "b": []}
    for key_id, times in sent.items():
        again = [lambda times=times: times.append(rig.time()) or minute("10ms")]
        rig.will(key_id, *again * 1_000)
    rig.failing()
    for times in sent.values():
        assert len(times) == 5
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))


def test_a_minute_of_our_own_counting_is_waited_for_and_a_day_not() -> None:
    """RPM 1, used 30 s before the minute's end: the next call waits for the edge and its guard."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=40.0)
    rig.call()
    rig.call()
    assert (rig.sent, rig.slept) == (["a", "a"], [31.0])
    for limits in (Limits(rpm=1), Limits(rpd=1)):
        rig = Rig(key("a", limits), max_wait_s=30.0)
        rig.clock.advance((8 + 12) * 3600 - 30 * 60 - 35 if limits.rpd else 0)  # or 5 s before it
        rig.call()
        assert isinstance(rig.failing(), Exhausted)
        assert (rig.sent, rig.slept) == (["a"], [])


def test_waiting_for_a_busy_key_looks_again_soon() -> None:
    """A key at its `max_concurrency` may be released at any time: it is polled."""
    rig = Rig(key("a", Limits(max_concurrency=1)), max_wait_s=2.0)

    def meanwhile() -> Any:
        assert isinstance(rig.failing(), Exhausted)
        return OK

    rig.will("a", meanwhile)
    rig.call()
    assert 10 <= len(rig.slept) <= 21
    assert rig.call() == "answer"


def test_waiting_calls_do_not_all_wake_at_once() -> None:
    """The random number of a call spreads its wait by up to half a second."""
    slept = []
    for draw in (0.0, 0.5, 0.9):
        rig = Rig(key("a"))
        rig.will("a", minute("20s"))
        rig.random = draw
        rig.call()
        slept += rig.slept
    assert slept == [20.0, 20.25, 20.45]


def test_no_call_fails_because_a_key_was_blocked_before_another_process_reset_it() -> None:
    """Blocked keys are skipped; a call that finds no other asks about them again."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", day())
    rig.will("b", day())
    rig.failing()
    rig.failing()
    rig.clock.advance(1)
    rig.state.reset(key("b"))
    assert rig.call() == "answer"
    assert rig.sent == ["a", "b", "b"]


def test_a_call_that_waits_for_what_is_held_back_wakes_without_a_delay() -> None:
    """Who is first would use it a moment later."""
    rig = Rig(key("a"))
    acquire, held = rig.state.acquire, Block("rpm", rig.time() + 5, True, note="held back for chat")
    refused = iter([Unavailable(rig.time(), {"a": held})])
    rig.state.acquire = lambda *args, **more: next(refused, None) or acquire(*args, **more)  # type: ignore[method-assign]
    rig.random = 0.9
    assert rig.call() == "answer"
    assert rig.slept == [5.0]


class Late(MemoryState):
    """A state whose times are past when they arrive, like a server whose clock is behind."""

    def _acquire(self, info: Any, candidates: Any, *, strategy: Any) -> Unavailable:
        block = Block("rpm", self._clock() - 0.7, waitable=True)
        return Unavailable(self._clock(), {key.key_id: block for _, key in candidates})


def test_a_time_in_the_past_is_waited_for_a_little() -> None:
    """Each retry uses a part of the budget, so that they end."""
    rig = Rig(key("a"), max_wait_s=2.0)
    rig.pool.state = Late(rig.policy, rig.clock.time)
    began = rig.time()
    assert isinstance(rig.failing(), Exhausted)
    assert 1.9 <= rig.time() - began <= 2.0


def test_a_sleep_that_takes_longer_counts_as_long_as_it_took() -> None:
    """A busy key is polled; on a machine that wakes late, the budget is still in real seconds."""
    rig = Rig(key("a", Limits(max_concurrency=1)), max_wait_s=10.0)
    short = rig.clock.sleep
    rig.clock.sleep = lambda seconds: short(seconds + 2.0)  # type: ignore[method-assign]
    lease = rig.state.acquire(INFO, ((0, rig.selector.keys["a"]),), strategy="fill")
    began = rig.time()
    assert isinstance(rig.failing(), Exhausted)
    assert 8.0 <= rig.time() - began <= 12.2
    assert (len(rig.slept) <= 6, rig.sent, lease is None) == (True, [], False)
