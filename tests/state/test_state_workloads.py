"""What a workload may use, in every backend: some are first, some have a share or a budget."""

import heapq
from random import Random
from typing import Any

import pytest
from support.docs_blocks import ROOT
from support.pool import INFO, key
from support.states import OK, URIS, acquire, lease_of, open_at, refusal, refused, settle, used

from keyrot_middleware.core.model import (
    Budget,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Unavailable,
    Usage,
    WorkloadBudget,
)
from keyrot_middleware.settings import Workload, terms_of
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

TERMS = terms_of(
    {
        "chat": Workload(first=True),
        "voice": Workload(first=True),
        "night": Workload(share=0.5, usd={"day": 1e-6}),
    }
)
CHAT, VOICE, NIGHT = (INFO._replace(terms=TERMS[name]) for name in ("chat", "voice", "night"))
OTHER = INFO._replace(terms=TERMS[None])
START = 1_767_283_261.0
"""A second after a minute has begun, where the pool's begins."""
LIMIT, MINUTES = 60, 10
KEY = key("a", Limits(rpm=LIMIT))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture(params=URIS)
def state(request: pytest.FixtureRequest, clock: FakeClock) -> State:
    return open_at(request.param, clock.time)


class Service:
    """A chat at random times and a batch that never stops, against one limit a minute."""

    def __init__(
        self, state: State, clock: FakeClock, rate: float, seed: int, minutes: int | None = None
    ) -> None:
        self.state, self.clock, self.draw = state, clock, Random(seed)
        self.events: list[tuple[float, int, CallInfo, float]] = []
        self.waits: list[float] = []
        self.sent = 0
        self.counted: dict[int, int] = {}
        at, self.end = START, START + 60 * (minutes or MINUTES)
        while at < self.end:
            at += self.draw.expovariate(rate / 60)
            self.push(at, CHAT, at)
        for number in range(4):
            self.push(START + number / 1_000, OTHER, 0.0)

    def push(self, at: float, info: CallInfo, born: float) -> None:
        heapq.heappush(self.events, (at, len(self.events) + int(born), info, born))

    def run(self) -> None:
        while self.events:
            at, _, info, born = heapq.heappop(self.events)
            if at >= self.end:
                return
            self.clock.advance(max(at - self.clock.time(), 0.0))
            reply = self.state.acquire(info, ((0, KEY),), strategy="spread")
            if isinstance(reply, Unavailable):
                self.push(max(reply.blocks["a"].until, at + 0.05) + 0.001, info, born)
                continue
            self.state.settle(reply, OK)
            self.sent += 1
            for minute in {int((at - 1) // 60), int((at + 1) // 60)}:
                self.counted[minute] = self.counted.get(minute, 0) + 1
            if info is CHAT:
                self.waits.append(at - born)
            else:
                self.push(at + 0.01, info, born)


@pytest.mark.parametrize("uri", URIS)
def test_a_chat_does_not_wait_for_a_batch_that_takes_all_the_rest(uri: str) -> None:
    """Three chats of 6, 20 and 30 of 60 a minute, ten minutes each, from a cold start."""
    waits: list[float] = []
    for rate in (6, 20, 30):
        clock = FakeClock(START)
        service = Service(open_at(uri, clock.time), clock, rate, seed=rate)
        service.run()
        first = int((START - 1) // 60)
        counted = [service.counted[first + minute] for minute in range(MINUTES)]
        assert max(service.counted.values()) <= LIMIT
        assert sum(counted) >= 0.99 * LIMIT * MINUTES
        waits += service.waits
    waits.sort()
    assert sum(wait > 0 for wait in waits) <= 0.01 * len(waits)
    assert waits[int(0.99 * len(waits))] == 0


def test_the_page_has_the_figures_of_this_simulation() -> None:
    """docs/workloads.md says what the same three chats show in ten minutes and in an hour."""
    sent: list[float] = []
    waiting: dict[int, float] = {}
    longest = 0.0
    for minutes in (10, 60):
        for rate in (6, 20, 30):
            clock = FakeClock(START)
            one = Service(open_at("memory://", clock.time), clock, rate, rate, minutes)
            one.run()
            sent.append(100 * one.sent / (LIMIT * minutes))
            share = 100 * sum(wait > 0 for wait in one.waits) / len(one.waits)
            waiting[minutes] = max(waiting.get(minutes, 0.0), share)
            longest = max(longest, *one.waits)
    page = " ".join((ROOT / "docs" / "workloads.md").read_text("utf-8").split())
    assert f"{min(sent):.0f} to {max(sent):.0f} % of the limit are sent" in page
    assert (
        f"At most {waiting[10]:.1f} % of the chat's calls wait in the first ten minutes, "
        f"and {waiting[60]:.1f} % in an hour, the longest {longest:.0f} s."
    ) in page


def all_of(state: State, info: CallInfo, one: Any = KEY) -> int:
    """Acquire as many leases as there are; return how many."""
    count = 0
    while isinstance(lease := state.acquire(info, ((0, one),), strategy="fill"), Lease):
        state.settle(lease, OK)
        count += 1
    return count


def rate_of(
    state: State, clock: FakeClock, calls: int, minutes: int, info: CallInfo = CHAT
) -> None:
    """Let the first workloads make so many calls in each of the next minutes."""
    for _ in range(minutes):
        for _ in range(calls):
            settle(state, KEY, OK, info=info)
        clock.advance(60)


def test_others_leave_free_what_the_first_ones_need(state: State, clock: FakeClock) -> None:
    """r + 3√r at the start of a minute, less with each second, and nothing at its end."""
    rate_of(state, clock, 9, 12)
    assert all_of(state, OTHER) == LIMIT - 18
    reply = acquire(state, KEY, info=OTHER)
    assert isinstance(reply, Unavailable)
    block = reply.blocks["a"]
    assert (block.reason, block.waitable) == ("rpm", True)
    assert block.note == "held back for chat, voice: 18 of 60 a minute"
    assert clock.time() < block.until < clock.time() + 3
    clock.advance(block.until - clock.time() - 0.01)
    assert refused(state, KEY, info=OTHER) == {"a": "rpm"}
    clock.advance(0.02)
    assert all_of(state, OTHER) == 1
    assert isinstance(lease_of(state, KEY, info=VOICE), Lease)
    clock.advance(45 - clock.time() % 60)
    held = LIMIT - 44 - all_of(state, OTHER)
    assert held == round(9 * 16 / 60 + 3 * (9 * 16 / 60) ** 0.5)
    clock.advance(15.999)
    assert all_of(state, OTHER) == held


def test_two_first_workloads_are_expected_together(state: State, clock: FakeClock) -> None:
    for _ in range(12):
        for info in (CHAT, VOICE):
            settle(state, KEY, OK, info=info)
            settle(state, KEY, OK, info=info)
        clock.advance(60)
    assert all_of(state, OTHER) == LIMIT - 10


def test_a_first_workload_that_stops_holds_nothing_back(state: State, clock: FakeClock) -> None:
    """Less with each minute, nothing an hour later; one that was never seen, after five minutes."""
    rate_of(state, clock, 9, 12)
    clock.advance(60 * 7)
    assert all_of(state, OTHER) == LIMIT - 9
    clock.advance(60 * 53)
    assert all_of(state, OTHER) == LIMIT
    never = key("b", Limits(rpm=LIMIT))
    assert all_of(state, OTHER, never) == 14, "as if it used half a minute"
    clock.advance(60 * 5)
    assert all_of(state, OTHER, never) == LIMIT
    clock.advance(86_400)
    assert all_of(state, OTHER, never) == 14, "a day begins anew"
    clock.advance(60 * 5)
    assert all_of(state, OTHER, never) == LIMIT


def test_others_may_always_use_a_twentieth(state: State, clock: FakeClock) -> None:
    rate_of(state, clock, 59, 12)
    assert all_of(state, OTHER) == 3
    assert all_of(state, CHAT) == 57
    small = key("c", Limits(rpm=1, tpm=5, rpd=1))
    assert all_of(state, OTHER, small) == 1


def test_tokens_and_days_are_held_back_too(state: State, clock: FakeClock) -> None:
    """Tokens of as many calls, of their own size; a day by the rate of the last minutes."""
    one = key("t", Limits(tpm=10_000))
    day = key("d", Limits(rpd=100_000))
    for _ in range(12):
        for _ in range(4):
            settle(state, one, used(250), info=CHAT._replace(tokens=250))
            settle(state, day, OK, info=CHAT)
        clock.advance(60)
    assert all_of(state, OTHER._replace(tokens=100), one) == 75
    left = day.limits.rpd or 0
    for _ in range(2):
        lease_of(state, day, info=OTHER._replace(requests=left - 48 - 8_000))
        left = 8_000
    reply = state.get_blocks(OTHER._replace(requests=7_900), [day])
    assert (reply["d"].reason, reply["d"].waitable) == ("rpd", False)
    assert reply["d"].note.startswith("held back for chat, voice: ")
    assert state.get_blocks(CHAT._replace(requests=7_900), [day]) == {}


def test_a_share_is_the_most_that_a_workload_may_use(state: State, clock: FakeClock) -> None:
    """Of each limit, learned ones too, beside what others use; at least one."""
    assert (
        all_of(state, NIGHT._replace(terms=NIGHT.terms and NIGHT.terms._replace(behind=""))) == 30
    )
    reply = state.get_blocks(NIGHT, [KEY])["a"]
    assert reply.note == "share of night: 30 of 60 a minute"
    assert all_of(state, CHAT) == 30
    clock.advance(60)
    share = NIGHT._replace(terms=NIGHT.terms and NIGHT.terms._replace(behind="", share=0.01))
    assert all_of(state, share) == 1
    lease = lease_of(state, key("b", Limits(rpm=2)), info=share)
    settle(state, lease, Outcome(LeaseOutcome.UNSENT))
    assert all_of(state, share, key("b", Limits(rpm=2))) == 1


def test_a_budget_of_a_workload_is_its_own(state: State) -> None:
    keys = key("a", usd=Budget(day=10_000)), key("b")
    for one in keys:
        lease = lease_of(state, one, info=NIGHT)
        assert lease.purses[-1] == "workload:night"
        settle(state, lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1, cost_usd=5e-7)))
    assert refused(state, *keys, info=NIGHT) == {"a": "usd", "b": "usd"}
    for block in (
        state.get_blocks(NIGHT, keys)["a"],
        refusal(state, *keys, info=NIGHT).blocks["a"],
    ):
        assert block.note == "the budget of the day of night is spent"
    assert state.snapshot(keys)["a"].spent.day == 500
    own = WorkloadBudget("night", "", "", usd=Budget(day=1_000))
    assert state.snapshot([own])["night"].spent == Budget(day=1_000)
    assert isinstance(lease_of(state, keys[0], info=OTHER), Lease)
    assert lease_of(state, key("c", tier="free"), info=NIGHT).purses == ()  # it costs nothing


def test_requests_at_once_are_shared_too(state: State) -> None:
    """A share is one of them too; nothing of them is kept for the first ones."""
    one = key("a", Limits(max_concurrency=10))
    mine = [lease_of(state, one, info=NIGHT) for _ in range(5)]
    block = state.get_blocks(NIGHT, [one])["a"]
    assert block.note == "share of night: 5 of 10 at once"
    mine += [lease_of(state, one, info=OTHER) for _ in range(5)]
    block = state.get_blocks(CHAT, [one])["a"]
    assert (block.reason, block.note) == ("concurrency", "")
    settle(state, mine[0], OK)
    assert state.get_blocks(CHAT, [one]) == {}


def test_calls_that_count_in_no_quota_have_no_terms(state: State) -> None:
    rate_of(state, FakeClock(), 1, 1)
    free = OTHER._replace(requests=0, tokens=0, counts_in_quota=False)
    assert isinstance(lease_of(state, KEY, info=free), Lease)
