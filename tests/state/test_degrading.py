"""A shared state that fails: the call goes on, with what this process knows."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from doors import ABANDONED, OK, UNSENT, Asked, Awaited, Door, failed, used
from faulty import degrading
from rig import INFO, key

from keyrot_middleware.core.model import Kind, Lease, Limits, Outcome, Scope, Unavailable
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.state.breaker import PAUSE_S
from keyrot_middleware.testing import FakeClock

A, B = key("a", project="p"), key("b", project="p")
C = key("c")
FIVE = key("f", Limits(rpm=5))


class Both:
    """A door to the state that a program uses, and the shared state behind it."""

    def __init__(self, kind: type[Door], clock: FakeClock, **more: Any) -> None:
        self.kind, self.clock = kind, clock
        self.state, self.shared = degrading(clock.time, **more)
        self.door = kind(self.state)
        self.other = kind(self.shared.inner)
        """How another process sees the shared state, whose line is never cut."""

    def mend(self) -> None:
        """Serve again, and let the pause pass."""
        self.shared.mend()
        self.clock.advance(PAUSE_S)


@pytest.fixture(params=[Asked, Awaited], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type[Door]:
    """Choose the blocking methods, or the awaited ones."""
    found: type[Door] = request.param
    return found


@pytest.fixture
def both(kind: type[Door], clock: FakeClock) -> Both:
    """Open a state over one that can be cut off."""
    return Both(kind, clock)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was warned of."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["acquire", "settle", "owner"])
async def test_nothing_is_raised_whatever_fails(both: Both, method: str) -> None:
    """Each question that a call asks is answered when the shared state is down."""
    both.shared.cut(method)
    lease = await both.door.lend(A)
    await both.door.settle(lease, OK, ["files/1"])
    assert await both.door.owner("files/1") == ("a", "p")


async def test_after_a_failure_it_is_left_alone_and_then_looked_at(both: Both) -> None:
    """Nobody pays for a dead server: it is asked once, then once every pause, then again."""
    both.shared.cut()
    for _ in range(10):
        await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["acquire"]
    both.clock.advance(PAUSE_S)
    for _ in range(10):
        await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["acquire", "check"]
    both.mend()
    both.shared.asked.clear()
    await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["check", "snapshot", "book", "acquire", "settle"]
    assert not both.state.degraded


async def test_one_warning_when_it_begins_and_one_when_it_ends(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    """People learn what failed, what that means, and how long it was so; each once."""
    both.shared.cut()
    for _ in range(5):
        await both.door.settle(await both.door.lend(A))
        both.clock.advance(PAUSE_S)
    both.mend()
    for _ in range(5):
        await both.door.settle(await both.door.lend(A))
    assert warnings(caplog) == [
        "pool test: the shared state cannot be used (LineDownError); this process counts for "
        "itself until it can",
        "pool test: the shared state is back after 12.0 s; limits are shared again",
    ]


async def test_degraded_is_told(both: Both) -> None:
    """The state says whether it counts alone, and each lease by whom it was booked."""
    assert not both.state.degraded
    assert not (await both.door.lend(A)).degraded
    both.shared.cut()
    assert (await both.door.lend(A)).degraded
    assert both.state.degraded
    both.mend()
    assert not (await both.door.lend(A)).degraded
    assert not both.state.degraded


async def test_a_cancelled_look_is_no_failure(clock: FakeClock) -> None:
    """A task that is cancelled while it waits says nothing of the server."""
    state, shared = degrading(clock.time)
    shared.cut(hangs_s=30)
    task = asyncio.create_task(Awaited(state).lend(A))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not state.degraded


# Limits ----------------------------------------------------------------------------------------


async def test_what_this_process_used_before_counts(both: Both) -> None:
    """The windows of the minute go on: three before, two after, and no more."""
    assert await both.door.granted(FIVE, 3) == 3
    both.shared.cut()
    assert await both.door.granted(FIVE) == 2
    assert await both.door.refused(FIVE) == {"f": "rpm"}


async def test_true_tokens_and_unsent_requests_count_in_both(both: Both) -> None:
    """What a settle corrects is corrected here too."""
    one = key("t", Limits(rpm=3, tpm=1_000))
    await both.door.settle(await both.door.lend(one, info=INFO._replace(tokens=900)), used(100))
    await both.door.settle(await both.door.lend(one), UNSENT)
    both.shared.cut()
    await both.door.lend(one, info=INFO._replace(tokens=899))
    assert await both.door.refused(one, info=INFO._replace(tokens=2)) == {"t": "tpm"}


async def test_leases_under_way_hold_their_place(both: Both) -> None:
    """A key that takes two at once takes two, whoever lent the first."""
    one = key("k", Limits(max_concurrency=2))
    first = await both.door.lend(one)
    both.shared.cut()
    await both.door.lend(one)
    assert await both.door.refused(one) == {"k": "concurrency"}
    await both.door.settle(first)
    await both.door.lend(one)


@pytest.mark.parametrize(("share", "room"), [(1.0, 10), (0.25, 2), (0.01, 1)])
async def test_a_share_of_each_limit(
    kind: type[Door], clock: FakeClock, share: float, room: int
) -> None:
    """Of four processes each takes a quarter: rounded down, but one at the least."""
    both = Both(kind, clock, share=share)
    both.shared.cut()
    assert await both.door.granted(key("s", Limits(rpm=10))) == room


async def test_a_share_of_learned_limits_too(kind: type[Door], clock: FakeClock) -> None:
    """A limit that Google told is the whole project's; while all is well it is whole."""
    both = Both(kind, clock, share=0.5)
    await both.door.fails(C, failed(Scope.NONE, learned=Limits(rpm=8)))
    assert await both.door.granted(C, 4) == 4
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "rpm"}
    clock.advance(60)
    assert await both.door.granted(C) == 4


async def test_a_limit_of_nothing_stays_nothing(kind: type[Door], clock: FakeClock) -> None:
    """A share rounds up to one, but not where the whole is zero."""
    both = Both(kind, clock, share=0.5)
    both.shared.cut()
    assert await both.door.refused(key("z", Limits(rpd=0))) == {"z": "rpd"}


# What is known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [60.0, inf])
async def test_cooldowns_of_this_process_are_kept(both: Both, until: float) -> None:
    """A key that failed here rests on, and comes back when its time is over."""
    until = both.clock.time() + until
    assert await both.door.fails(C, failed(Scope.KEY, until)) == until
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}
    both.clock.advance(60)
    reply = await both.door.acquire(C)
    assert isinstance(reply, Lease) == (until < inf)


@pytest.mark.parametrize(
    ("failure", "scope", "rests"),
    [
        ("key_invalid", Scope.KEY, "a"),
        ("quota_minute", Scope.PROJECT_MODEL, "ab"),
        ("project_suspended", Scope.PROJECT, "ab"),
        ("capacity", Scope.KEY_MODEL, "a"),
        ("something_new", Scope.KEY_MODEL, "a"),
    ],
)
async def test_cooldowns_of_other_processes_are_kept(
    both: Both, failure: str, scope: Scope, rests: str
) -> None:
    """A refusal tells why, and so of whom: the key, or its project with the other keys of it."""
    outcome = failed(scope, both.clock.time() + 60)
    assert outcome.verdict is not None
    object.__setattr__(outcome.verdict, "failure", failure)
    await both.other.fails(A, outcome)
    assert await both.door.refused(A) == {"a": failure}
    both.shared.cut()
    found = [one.key_id for one in (A, B) if isinstance(await both.door.acquire(one), Unavailable)]
    assert "".join(found) == rests


async def test_a_day_that_others_spent_is_spent(both: Both) -> None:
    """The day's end is hours away: a refusal for it is kept, one for a minute is not."""
    day, minute = key("d", Limits(rpd=3)), key("m", Limits(rpm=3))
    for one in (day, minute):
        assert await both.other.granted(one) == 3
    assert await both.door.refused(day, minute) == {"d": "rpd", "m": "rpm"}
    both.shared.cut()
    assert await both.door.refused(day) == {"d": "rpd"}
    assert await both.door.granted(minute) == 3


async def test_what_was_brought_back_elsewhere_is_back_here(both: Both) -> None:
    """A key that the shared state lends again has no cooldown here either."""
    await both.door.fails(C, failed(Scope.KEY, inf))
    both.other.state.reset(C)
    await both.door.settle(await both.door.lend(C))
    both.shared.cut()
    await both.door.lend(C)


async def test_a_grant_from_before_a_failure_does_not_undo_it(both: Both) -> None:
    """A lease asked for before another one's 429 is no news about the cooldown."""
    first = await both.door.lend(C)
    local = both.state._local
    struck = local.struck
    granted = both.shared.inner.acquire(INFO, ((0, C),), spread=False)
    assert isinstance(granted, Lease)
    await both.door.settle(first, failed(Scope.KEY, inf))
    local.lent(granted, INFO.model, struck)
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}


async def test_learned_limits_and_buckets_are_kept(both: Both) -> None:
    """What a 429 taught is in force here too, under the name that Google counts with."""
    latest = INFO._replace(model="gemini-flash-latest")
    told = failed(Scope.NONE, bucket=INFO.model, learned=Limits(rpm=3))
    await both.door.fails(C, told, info=latest)
    both.shared.cut()
    assert await both.door.granted(C, info=latest) == 3
    assert await both.door.refused(C) == {"c": "rpm"}


async def test_a_bucket_that_others_learned_is_kept(both: Both) -> None:
    """A lease tells by which name its model is counted."""
    latest = INFO._replace(model="gemini-flash-latest")
    await both.other.fails(C, failed(Scope.NONE, bucket=INFO.model), info=latest)
    await both.door.lend(C, info=latest)
    both.shared.cut()
    assert (await both.door.lend(C, info=latest)).bucket == INFO.model


async def test_health_is_told_from_here(both: Both) -> None:
    """While the shared state is away, a snapshot tells what this process knows."""
    await both.door.settle(await both.door.lend(C))
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    health = both.state.snapshot([C])["c"]
    assert (health.success_count, health.error_count, health.last_error) == (1, 1, "failure")
    assert health.cooldown_until == inf
    assert health.used[0].requests_minute == 2


# With whom a lease is settled ------------------------------------------------------------------


async def test_each_lease_is_settled_with_who_lent_it(both: Both) -> None:
    """Also when the shared state went or came back in between."""
    shared = await both.door.lend(A)
    both.shared.cut()
    own = await both.door.lend(A)
    both.mend()
    both.shared.asked.clear()
    await both.door.settle(own, used(3))
    assert both.shared.asked == []
    await both.door.settle(shared, used(3))
    assert both.shared.asked == ["settle"]
    assert both.shared.inner._under_way == {}
    assert both.state._local._under_way == {}


@pytest.mark.parametrize("applies", [False, True], ids=["lost", "answer lost"])
async def test_a_verdict_is_not_lost(both: Both, applies: bool) -> None:
    """A failure that could not be told rests the key here at once, and everywhere afterwards."""
    lease = await both.door.lend(C)
    both.shared.applies = applies
    both.shared.cut("settle")
    until = both.clock.time() + 600
    told = failed(Scope.KEY, until, learned=Limits(rpm=7))
    assert await both.door.settle(lease, told) == until
    assert await both.door.refused(C) == {"c": "failure"}
    both.mend()
    await both.door.lend(A)
    assert await both.other.refused(C) == {"c": "failure"}
    known = both.shared.inner.snapshot([C])["c"]
    assert (known.cooldown_until, known.used[0].limits.rpm) == (until, 7)


async def test_a_verdict_of_a_lease_lent_here_is_told_too(both: Both) -> None:
    """One process's 401 spares all others, as soon as they share again; a guess stays as it was."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    guess = await both.door.fails(A, failed(Scope.KEY_MODEL))
    assert guess == both.clock.time() + 30
    both.mend()
    await both.door.lend(B)
    assert await both.other.refused(C, A) == {"c": "failure", "a": "failure"}
    assert both.shared.inner.snapshot([A])["a"].cooldown_until == guess


async def test_what_is_over_when_it_is_back_is_not_told(both: Both) -> None:
    """A minute's rest that ended during the outage rests nobody after it."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, both.clock.time() + 20))
    both.clock.advance(60)
    both.mend()
    await both.door.lend(A)
    assert not (await both.other.lend(C)).probe


async def test_owners_are_told_too(both: Both) -> None:
    """A file made during the outage is found by all processes after it."""
    both.shared.cut()
    await both.door.settle(await both.door.lend(A), OK, ["files/1"])
    assert await both.door.owner("files/1") == ("a", "p")
    both.mend()
    await both.door.lend(A)
    assert await both.other.owner("files/1") == ("a", "p")


@pytest.mark.parametrize("what", ["revive", "reset"])
async def test_a_key_brought_back_meanwhile_is_back_everywhere(both: Both, what: str) -> None:
    """A replaced or reset key serves here at once, and elsewhere when the state is back."""
    await both.door.fails(C, failed(Scope.KEY, inf))
    both.shared.cut()
    getattr(both.state, what)("c" if what == "revive" else C)
    await both.door.settle(await both.door.lend(C))
    both.mend()
    await both.door.lend(A)
    await both.other.lend(C)


async def test_a_failure_reported_by_hand_is_shared(both: Both) -> None:
    """A lease that nobody granted goes to the shared state as it is."""
    lease = Lease("c", "c", "c", "", "generateContent", 0, 0, at=0.0)
    await both.door.settle(lease, failed(Scope.KEY, inf))
    assert await both.other.refused(C) == {"c": "failure"}
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}
    lease = lease._replace(key_id="a", project="p", billing_account="p")
    await both.door.settle(lease, failed(Scope.KEY, inf))
    assert await both.door.refused(A) == {"a": "failure"}


# When it is back -------------------------------------------------------------------------------


async def test_what_was_sent_meanwhile_is_booked(both: Both) -> None:
    """Before anything else is asked, so that no limit is overrun by the recovery."""
    assert await both.door.granted(FIVE, 2) == 2
    both.shared.cut()
    for outcome in (OK, UNSENT, ABANDONED):
        await both.door.settle(await both.door.lend(FIVE), outcome)
    both.mend()
    assert await both.door.granted(FIVE) == 1
    assert await both.other.refused(FIVE) == {"f": "rpm"}


async def test_a_state_that_lost_its_memory_is_told_all(both: Both) -> None:
    """A server that came back empty learns what this process used in the minute and the day."""
    day = key("d", Limits(rpd=50))
    for one in (FIVE, day):
        assert await both.door.granted(one, 4) == 4
    both.shared.cut()
    await both.door.lend(A)
    both.shared.inner = type(both.shared.inner)(both.shared.inner._policy, both.clock.time)
    both.other = both.kind(both.shared.inner)
    both.mend()
    await both.door.lend(C)
    assert await both.other.granted(FIVE) == 1
    assert await both.other.granted(day) == 46


async def test_a_long_outage_fills_no_minute_afterwards(both: Both) -> None:
    """Requests of minutes that are over count in the day alone."""
    one = key("o", Limits(rpm=5, rpd=20))
    both.shared.cut()
    for _ in range(3):
        assert await both.door.granted(one) == 5
        both.clock.advance(61)
    both.mend()
    assert await both.door.granted(one, 6) == 5
    assert both.shared.inner.snapshot([one])["o"].used[0].requests_day == 20
    assert await both.other.refused(one) == {"o": "rpd"}


async def test_what_cannot_be_told_does_not_keep_it_away(both: Both) -> None:
    """A debt that fails by itself is let go after three tries, and the state is used again."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    both.shared.cut("settle")
    for _ in range(3):
        both.clock.advance(PAUSE_S)
        assert (await both.door.lend(A)).degraded
    both.clock.advance(PAUSE_S)
    assert not (await both.door.lend(A)).degraded


async def test_a_long_list_is_told_by_several_calls(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call tells no longer than its budget; the next goes on from there."""
    both.shared.cut()
    for number in range(5):
        await both.door.fails(key(f"k{number}"), failed(Scope.KEY, inf))
    ticks = iter(range(1_000))
    monkeypatch.setattr(both.state._debts, "_clock", lambda: next(ticks) * 0.06)
    both.mend()
    told = []
    for _ in range(8):
        await both.door.settle(await both.door.lend(A))
        known = both.shared.inner.snapshot([key(f"k{n}") for n in range(5)])
        told.append(sum(health.cooldown_until == inf for health in known.values()))
    assert told[-1] == 5
    assert all(after - before <= 1 for before, after in pairwise(told))


async def test_what_is_told_in_parts_is_booked_once(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long list is being told more is lent here: every count is right in the end."""
    keys = [key(f"k{n}", Limits(rpd=9)) for n in range(4)]
    for one in keys:
        assert await both.door.granted(one, 3) == 3
    both.shared.cut()
    for one in keys:
        await both.door.lend(one)
    both.shared.inner = type(both.shared.inner)(both.shared.inner._policy, both.clock.time)
    ticks = iter(range(1_000))
    monkeypatch.setattr(both.state._debts, "_clock", lambda: next(ticks) * 0.06)
    both.mend()
    for _ in range(12):
        await both.door.settle(await both.door.lend(A))
        both.state._debts.behind = True  # as a call does that had asked here before it was back
    known = both.shared.inner.snapshot(keys)
    assert [known[one.key_id].used[0].requests_day for one in keys] == [4] * 4


async def test_an_outage_of_a_day_keeps_counting(both: Both) -> None:
    """Days begin and end by the clock here too."""
    both.shared.cut()
    one = key("y", Limits(rpd=3))
    assert await both.door.granted(one) == 3
    both.clock.advance(DAY_S)
    assert await both.door.granted(one) == 3


def test_closing_closes_the_shared_one(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections belong to the shared state."""
    state, shared = degrading(clock.time)
    closed: list[str] = []
    monkeypatch.setattr(shared, "close", lambda: closed.append("shared"))
    state.close()
    assert closed == ["shared"]


def test_the_outcome_of_a_success_is_left_as_it_is(clock: FakeClock) -> None:
    """What the shared state returns for a settle is returned."""
    state, _ = degrading(clock.time)
    lease = state.acquire(INFO, ((0, C),), spread=False)
    assert isinstance(lease, Lease)
    assert state.settle(lease, Outcome(Kind.SUCCESS)) is None


async def test_a_grant_of_a_state_that_is_behind_is_doubted(both: Both) -> None:
    """What would overrun this process's own windows is given back, and decided here."""
    assert await both.door.granted(FIVE, 4) == 4
    both.shared.cut("book")  # it cannot be told, and so lends too much
    both.shared.inner = type(both.shared.inner)(both.shared.inner._policy, both.clock.time)
    both.state._debts.add("book", C, INFO.model, requests=0, tokens=0, day_requests=0)
    both.state._debts._turn.acquire()  # somebody is telling it just now
    assert await both.door.granted(FIVE) == 1
    assert both.shared.inner._under_way == {"f": 2}
    both.state._debts._turn.release()
    both.shared.mend()
    await both.door.lend(C)
    assert both.shared.inner._under_way["f"] == 1


def test_a_forked_child_leaves_to_its_parent_what_is_to_be_told() -> None:
    """What was sent before the fork is told once; locks that were held there are free here."""
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from faulty import degrading
from rig import INFO, key
state, shared = degrading(lambda: 1e9)
shared.cut()
state.acquire(INFO, ((0, key("a")),), spread=False)
state._debts._turn.acquire(), state._breaker._lock.acquire(), state._local._lock.acquire()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
shared.mend()
ok = not state._debts and state.degraded
ok = ok and state.acquire(INFO, ((0, key("b")),), spread=False).degraded
sys.exit(0 if ok else 1)
"""
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", program, tests]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
