"""Every shared state and the memory state are twins: the same history, the same results."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from math import inf
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.states import URIS, open_at

from keyrot_middleware.core.judgement import judge
from keyrot_middleware.core.model import (
    Backoff,
    Block,
    Budget,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Reported,
    Scope,
    Strategy,
    Terms,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.testing import FakeClock

EVE = datetime(2026, 11, 1, 23, 57, 30, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
KEYS = (
    key(
        "a",
        Limits(rpm=4, tpm=100, rpd=9, max_concurrency=2),
        project="p",
        billing_account="x",
        usd=Budget(60, 200, 500),
    ),
    key("b", Limits(rpm=4), project="p", billing_account="x", weight=2.5),
    key("c", Limits(tpm=70, rpd=12), use=0.7, billing_account="x", usd=Budget(60)),
    key("d", Limits(max_concurrency=1)),
    key("e", weight=0.3, use=0.9),
    key("f", Limits(rpm=0, tpm=50)),
    key("g:1", project="g", billing_account="g:1"),
    key("h", Limits(rpm=30, tpm=1_000, rpd=300, max_concurrency=9)),
)
# Only forward: memory drops a window that lies in the future when it looks at it, Redis when it
# writes the record.
STEPS = [0.0, 0.25, 1.0, 2.0, 7.0, 28.5, 59.0, 61.0, 300.0, 3_600.0, 90_000.0]
LIMITS: Any = ("rpm", "tpm", "rpd")
NAMES = ["files/1", "files/2", "page:x", "cachedContents/ü"]
VERBS = ["generateContent", "embedContent", "cachedContents"]
ENDS = [kind for kind in LeaseOutcome if kind is not LeaseOutcome.SERVING]
MOVES = [
    "acquire",
    "acquire",
    "acquire",
    "settle",
    "settle",
    "settle",
    "serving",
    "pass",
    "hand",
    "reset",
    "owner",
    "read",
]


TERMS = [
    None,
    Terms("chat", first=True),
    Terms("both", first=True, share=0.5),
    Terms("night", share=0.6, usd=Budget(90, 250), behind="chat, both"),
    Terms(behind="chat, both"),
]


def some(draw: Random, of: Any, most: int) -> list[Any]:
    return draw.sample(list(of), draw.randint(0, most))


def verdict(draw: Random, now: float) -> Verdict:
    until = draw.choice([None, None, -5.0, 0.0, 20.5, 61.0, 4_000.0, inf])
    return Verdict(
        draw.choice(["quota_minute", "capacity", "key_leaked", "project_cap"]),
        draw.choice([None, 429]),
        draw.choice(list(Scope)),
        None if until is None else now + until,
        has_known_end=draw.random() < 0.5,
        may_wait=draw.random() < 0.5,
        rejected=draw.random() < 0.5,
        bucket=draw.choice([None, None, "one", "family"]),
        learned=Limits(  # smaller and larger than those of KEYS
            draw.choice([None, None, 0, 3, 6]),
            draw.choice([None, None, 60]),
            draw.choice([None, None, 7, 20]),
        ),
        backoff=draw.choice([None, Backoff(3.0, 20.0), Backoff(900.0, 21_600.0)]),
        message=draw.choice(["", "API key expired"]),
    )


def outcome(draw: Random, now: float) -> Outcome:
    kind = draw.choice([LeaseOutcome.SUCCESS, LeaseOutcome.SUCCESS, *ENDS])
    why = verdict(draw, now) if draw.random() < 0.5 else None
    cost = draw.choice([None, 0.0, 10e-9, 30e-9])
    tokens = draw.choice([None, 0, 5, 60, 130])
    limits = ((name, draw.choice([None, 3, 6]), draw.choice([None, 0, 2])) for name in LIMITS)
    reported = some(draw, (Reported(*one) for one in limits), 3) if draw.random() < 0.3 else ()
    return Outcome(kind, why, Usage(input_tokens=tokens, cost_usd=cost), reported)


class Near(float):
    """A time that is the same to a millisecond: Lua writes fewer digits."""

    def __eq__(self, other: object) -> bool:
        return float.__eq__(self, other) or abs(self - float(str(other))) < 0.001

    __hash__ = float.__hash__


def to_milliseconds(blocks: Mapping[str, Block]) -> dict[str, Block]:
    return {key: block._replace(until=Near(block.until)) for key, block in blocks.items()}


class Twins:
    """One history, applied to every backend; their results must always agree."""

    def __init__(self, seed: int) -> None:
        self.draw, self.clock = Random(seed), FakeClock(EVE)
        self.states = [open_at(uri, self.clock.time) for uri in URIS]
        # The others drop seldom what is over, such as a cooldown a day after its end.
        vars(self.states[URIS.index("jar://")])["_now"] = lambda: 0.0
        self.leases: list[list[Lease]] = []

    def step(self) -> None:  # noqa: C901 - a case for each move
        draw = self.draw
        match draw.choice(MOVES):
            case "acquire":
                self.acquire()
            case "settle" if self.leases:
                leases = self.leases.pop(draw.randrange(len(self.leases)))
                self.settle(leases, outcome(draw, self.clock.time()), some(draw, NAMES, 2))
            case "serving" if self.leases:
                self.settle(draw.choice(self.leases), Outcome(LeaseOutcome.SERVING), [])
            case "hand":
                one = draw.choice(KEYS)
                lease = Lease(one.key_id, one.project, one.billing_account, "", "", 0, 0, at=0.0)
                self.settle([lease] * len(URIS), outcome(draw, self.clock.time()), [])
            case "pass":
                for state in self.states:
                    state.check()  # sends the settles that wait: their time is the server's
                self.clock.advance(draw.choice(STEPS))
                if -1 <= self.clock.time() - EVE - 150 <= 61:
                    # Redis ends its counts with the day, also what drains in the next minute.
                    self.clock.advance(63.0)
            case "reset":
                one = draw.choice(KEYS)
                for state in self.states:
                    state.reset(one)
            case "read":
                limits = Limits(*(draw.choice([None, 2, 5, 90]) for _ in LIMITS))
                found = {name: limits for name in some(draw, ["one", "two", "family"], 3)}
                project = draw.choice(KEYS).project
                for state in self.states:
                    state.take_limits(project, found)
            case "owner":
                # Redis forgets owners by the server's clock, which the test cannot move.
                names = some(draw, NAMES, 2)
                known = [name for name in names if self.states[0].get_owner([name])]
                self.same([state.get_owner(known) for state in self.states])

    def same(self, found: list[Any]) -> Any:
        for other in found[1:]:
            assert other == found[0]
        return found[0]

    def info(self) -> CallInfo:
        draw = self.draw
        return INFO._replace(
            model=draw.choice(["one", "two", "three"]),
            verb=draw.choice(VERBS),
            tokens=draw.choice([0, 1, 20, 50, 130]),
            requests=draw.randint(0, 3),
            input_cost=draw.choice([0, 5]),
            longest_cost=draw.choice([20, 40]),
            terms=draw.choice(TERMS),
            replaced_by=draw.choice(["", "", "two", "four"]),
        )

    def acquire(self) -> None:
        draw, info = self.draw, self.info()
        offer = tuple(
            sorted(
                ((draw.randint(0, 2), one) for one in some(draw, KEYS, 5)), key=lambda one: one[0]
            )
        )
        strategy: Strategy = "spread" if draw.random() < 0.5 else "fill"
        replies = [state.acquire(info, offer, strategy=strategy) for state in self.states]
        if isinstance(replies[0], Unavailable):
            self.same([(one.at, to_milliseconds(one.blocks)) for one in replies])
            return
        plain = [
            one._replace(reservation=None, refused=to_milliseconds(one.refused)) for one in replies
        ]
        self.same(plain)
        self.leases.append(replies)

    def settle(self, leases: list[Lease], outcome: Outcome, names: list[str]) -> None:
        self.same(
            [s.settle(one, outcome, names) for s, one in zip(self.states, leases, strict=True)]
        )

    def compare(self) -> None:
        found = [state.snapshot(KEYS) for state in self.states]
        for known in (health for snapshot in found for health in snapshot.values()):
            known.cooldown_reason = known.cooldown_scope = None  # of equal ends either is right
            there = (u for u in known.used if u.requests_day or any(u.limits))
            known.used = sorted(there, key=lambda used: used.bucket)
            for used in known.used:  # Redis has none of yesterday
                if used.first is not None and not used.first.day_requests:
                    used.first = None
                if used.first is not None:  # Lua writes fewer digits
                    used.first = replace(used.first, rest=[Near(one) for one in used.first.past])
        self.same(found)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_any_history_has_the_same_results_in_every_backend(seed: int) -> None:
    """Thousands of steps at edges, midnights and cooldowns: every reply and every count agree."""
    twins = Twins(seed)
    for _ in range(twins.draw.randint(20, 80)):
        twins.step()
    twins.compare()


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_what_is_judged_is_what_a_call_made_now_gets(seed: int) -> None:
    """Without waiting, in any state of any backend; a rejected key that is due may be tried."""
    twins = Twins(seed)
    for _ in range(twins.draw.randint(20, 80)):
        twins.step()
    state, selector = twins.draw.choice(twins.states), Selector(KEYS, "fill")
    info = twins.info()._replace(requests=1)
    rejected = {i: one.rejection for i, one in state.snapshot(KEYS).items() if one.rejection}
    now, blocks = twins.clock.time(), state.get_blocks(info, KEYS)
    judged = judge(info, KEYS, blocks, now=now, rejected=rejected)
    batches = selector.candidate_batches(info, {}, now, 0.0, {})
    replies = (state.acquire(info, batch, strategy="fill") for batch in batches)
    key_id = next((one.key_id for one in replies if isinstance(one, Lease)), None)
    assert (key_id is not None) is (judged.answer in ("served", "due"))
    assert judged.answer != "due" or key_id in rejected
