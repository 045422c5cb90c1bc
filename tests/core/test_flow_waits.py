"""Waiting: only while no key is available, only for a known time, only within the budget."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import OK, capacity, day, exceeds_limit, invalid, minute, unsupported_region

from keyrot_middleware.core.commands import Sleep
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Limits


def test_a_pool_of_one_key_waits_out_its_minute() -> None:
    """No other key is available, and the server named a time: the call waits and uses it again."""
    rig = Rig(key("a"))
    rig.will("a", minute("20s"))
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "a"], [20.0])


def test_the_soonest_of_the_failed_keys_is_waited_for() -> None:
    """When all have failed with a time, the first to be available again is used."""
    rig = Rig(key("a"), key("b"), key("c"), strategy="fill")
    rig.will("a", minute("20s"))
    rig.will("b", minute("7s"))
    rig.will("c", invalid())
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "b", "c", "b"], [7.0])


def test_a_failed_key_is_not_waited_for_while_another_can_serve() -> None:
    """The priority of a failed key does not matter: a later one that is available is used now."""
    rig = Rig(key("a"), key("late", priority=9))
    rig.will("a", minute("1s"))
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["a", "late"], [])


def test_a_wait_readmits_only_the_keys_it_waited_for() -> None:
    """A key excluded for the rest of the call stays excluded, although other calls may use it."""
    rig = Rig(key("free", tier="free"), key("paid", tier="paid"), strategy="fill")
    rig.will("free", unsupported_region())
    rig.will("paid", minute("5s"))
    assert rig.call() == "answer"
    assert (rig.sent, rig.slept) == (["free", "paid", "paid"], [5.0])


def test_a_key_excluded_for_good_is_not_waited_for_either() -> None:
    """Its full minute ends soon, but this call may not use it: the error is raised at once."""
    rig = Rig(key("a", tier="free"), key("b", Limits(rpm=1), tier="free"), strategy="fill")
    rig.will("a", minute("5s"))
    rig.call()  # by b, whose only request of the minute this was
    rig.call()  # found it full, and waited for a
    rig.slept.clear()
    rig.will("a", unsupported_region())
    rig.failing()
    assert (rig.sent, rig.slept) == (["a", "b", "a", "a"], [])


@pytest.mark.parametrize("fault", [lambda: minute("31s"), day, capacity, invalid])
def test_a_long_time_a_day_or_a_guess_is_never_waited_for(fault: Any) -> None:
    """Only a time that the server named, within `max_wait_s`, is waited for; not 30 s of ours."""
    rig, reply = Rig(key("a"), max_wait_s=30.0), fault()
    rig.will("a", reply)
    assert rig.failing().last is reply.error
    assert (rig.sent, rig.slept) == (["a"], [])
    assert isinstance(rig.failing(), Exhausted)
    assert (rig.sent, rig.slept) == (["a"], [])


def test_a_request_larger_than_the_limit_is_not_waited_for() -> None:
    """The next minute would be too small as well."""
    rig = Rig(key("a"))
    rig.will("a", exceeds_limit(1_000))
    rig.failing(INFO._replace(tokens=5_000))
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


def test_the_whole_budget_may_be_waited_but_not_more() -> None:
    """Jitter never takes a call beyond its longest wait."""
    rig = Rig(key("a"), max_wait_s=30.0)
    rig.will("a", minute("30s"))
    rig.random = 0.999
    assert rig.call() == "answer"
    assert rig.slept == [30.0]


def test_a_server_that_names_milliseconds_is_not_hammered() -> None:
    """However short the named times are, a call uses a key once a second and five times."""
    rig = Rig(key("a"), key("b"), max_wait_s=60.0, strategy="fill")
    rig.random = 0.0
    for key_id in ("a", "b"):
        rig.will(key_id, *(minute("10ms") for _ in range(1_000)))
    sent: dict[str, list[float]] = {"a": [], "b": []}
    send = rig.send
    rig.send = lambda lease: (sent[lease.key_id].append(rig.time()), send(lease))[1]  # type: ignore[method-assign]
    rig.failing()
    for times in sent.values():
        assert len(times) == 5
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))


def test_a_minute_of_our_own_counting_is_waited_for() -> None:
    """RPM 1, used 30 s before the minute's end: the next call waits for the edge and its guard."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=40.0)
    rig.call()
    rig.call()
    assert (rig.sent, rig.slept) == (["a", "a"], [31.0])
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=30.0)
    rig.call()
    assert isinstance(rig.failing(), Exhausted)
    assert rig.sent == ["a"]


def test_a_day_of_our_own_counting_is_not_waited_for() -> None:
    """RPD 1: the call fails at once, even when midnight is seconds away."""
    rig = Rig(key("a", Limits(rpd=1)))
    rig.clock.advance(8 * 3600 - 30 * 60 - 30 - 5 - 12 * 3600 + 24 * 3600)
    rig.call()
    assert isinstance(rig.failing(), Exhausted)
    assert rig.slept == []


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


def test_a_wait_has_its_purpose() -> None:
    """Telemetry distinguishes a wait for a key from a pause before a retry."""
    rig = Rig(key("a"))
    rig.will("a", minute("3s"))
    tape = rig.recorded()
    assert [(sleep.seconds, sleep.reason) for sleep in tape.of(Sleep)] == [(3.0, "key")]


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
