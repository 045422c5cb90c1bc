"""Every shared state and the memory state are twins: the same history, the same results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import key
from support.sync_async import SHARED, open_at

from keyrot_middleware.core.model import (
    Backoff,
    Block,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.state import MemoryState, State
from keyrot_middleware.testing import FakeClock

EVE = datetime(2026, 11, 1, 23, 57, 30, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
KEYS = (
    key("a", Limits(rpm=4, tpm=100, rpd=9, max_concurrency=2), project="p", billing_account="x"),
    key("b", Limits(rpm=4), project="p", billing_account="x", weight=2.5),
    key("c", Limits(tpm=70, rpd=12), billing_account="x"),
    key("d", Limits(max_concurrency=1)),
    key("e", weight=0.3),
    key("f", Limits(rpm=0, tpm=50)),
    key("g:1", project="g", billing_account="g:1"),
)
VERBS = st.sampled_from(["generateContent", "embedContent", "cachedContents"])
MODELS = st.sampled_from(["one", "two", "three"])
# Only forward: memory drops a window that lies in the future when it looks at it, Redis when it
# writes the record. test_state_contract_clocks.py holds what a clock that steps back must not do.
STEPS = st.sampled_from([0.0, 0.25, 1.0, 2.0, 7.0, 28.6, 59.0, 61.0, 300.0, 3_600.0, 90_000.0])
NAMES = st.lists(st.sampled_from(["files/1", "files/2", "page:x", "cachedContents/ü"]), max_size=2)

INFOS = st.builds(
    CallInfo,
    model=MODELS,
    verb=VERBS,
    tokens=st.sampled_from([0, 1, 20, 50, 130]),
    requests=st.integers(1, 3),
)
CANDIDATES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(KEYS)),
    max_size=5,
    unique_by=lambda offer: offer[1].key_id,
).map(lambda offers: tuple(sorted(offers, key=lambda offer: offer[0])))
LEARNED = st.builds(
    Limits,
    rpm=st.sampled_from([None, None, 0, 3, 6]),  # smaller and larger than those of KEYS
    tpm=st.sampled_from([None, None, 60]),
    rpd=st.sampled_from([None, None, 7, 20]),
    max_concurrency=st.none(),
)
VERDICT: dict[str, st.SearchStrategy[Any]] = {
    "failure": st.sampled_from(["quota_minute", "capacity", "revoked"]),
    "scope": st.sampled_from(Scope),
    "until": st.sampled_from([None, None, -5.0, 0.0, 20.5, 61.0, 4_000.0, inf]),
    "has_known_end": st.booleans(),
    "may_wait": st.booleans(),
    "bucket": st.sampled_from([None, None, "one", "family"]),
    "learned": LEARNED,
    "backoff": st.sampled_from([None, Backoff(3.0, 20.0), Backoff(900.0, 21_600.0)]),
    "code": st.sampled_from([None, 429]),
    "rejected": st.booleans(),
    "rotate": st.booleans(),
    "retry": st.booleans(),
    "sent": st.booleans(),
    "any_tier": st.booleans(),
    "exceeds_limit": st.booleans(),
    "retry_delay_s": st.sampled_from([None, 0.5, 40.0]),
    "max_retries": st.sampled_from([None, 1]),
    "max_rotations": st.sampled_from([None, 1]),
    "message": st.sampled_from(["", "API key expired"]),
}
VERDICTS = st.builds(Verdict, **VERDICT)
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from(
        [
            LeaseOutcome.SUCCESS,
            LeaseOutcome.SUCCESS,
            *(kind for kind in LeaseOutcome if kind is not LeaseOutcome.SERVING),
        ]
    ),
    verdict=st.one_of(st.none(), VERDICTS),
    usage=st.builds(Usage, input_tokens=st.sampled_from([None, 0, 5, 60, 130])),
)
HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), INFOS, CANDIDATES, st.booleans()),
        st.tuples(st.just("acquire"), INFOS, CANDIDATES, st.booleans()),
        st.tuples(st.just("settle"), st.integers(0, 9), OUTCOMES, NAMES),
        st.tuples(st.just("settle"), st.integers(0, 9), OUTCOMES, NAMES),
        st.tuples(st.just("serving"), st.integers(0, 9), st.none(), st.none()),
        st.tuples(st.just("by hand"), st.sampled_from(KEYS), OUTCOMES, st.none()),
        st.tuples(st.just("pass"), STEPS, st.none(), st.none()),
        st.tuples(st.just("reset"), st.sampled_from(KEYS), st.none(), st.none()),
        st.tuples(st.just("owner"), NAMES, st.none(), st.none()),
    ),
    min_size=20,
    max_size=80,
)


def to_milliseconds(blocks: Mapping[str, Block]) -> dict[str, Block]:
    """Round the ends of blocks: a sum of two times differs in its last bit."""
    return {key: block._replace(until=round(block.until, 3)) for key, block in blocks.items()}


class Twins:
    """One history, applied to both; their results must always agree."""

    def __init__(self, uri: str) -> None:
        self.clock = FakeClock(EVE)
        policy = RetryPolicy()
        self.memory: State = MemoryState(policy, self.clock.time)
        self.shared = open_at(uri, policy, self.clock.time)
        self.leases: list[tuple[Lease, Lease]] = []

    def live(self, what: str, one: Any, two: Any, three: Any) -> None:
        """Take one step."""
        match what:
            case "acquire":
                self.acquire(one, two, three)
            case "settle" if self.leases:
                self.settle(*self.leases.pop(one % len(self.leases)), two, three)
            case "serving" if self.leases:
                self.settle(*self.leases[one % len(self.leases)], Outcome(LeaseOutcome.SERVING), ())
            case "by hand":
                lease = Lease(one.key_id, one.project, one.billing_account, "", "", 0, 0, at=0.0)
                self.settle(lease, lease, two, ())
            case "pass":
                self.shared.check()  # sends the settles that wait: their time is the server's
                self.clock.advance(one)
            case "reset":
                for state in (self.memory, self.shared):
                    state.reset(one)
            case "owner":
                # Redis forgets owners by the server's clock, which the test cannot move.
                known = [name for name in one if self.memory.get_owner([name])]
                assert self.memory.get_owner(known) == self.shared.get_owner(known)

    def acquire(self, info: CallInfo, candidates: Any, spread: bool) -> None:
        """Acquire from both; keep their leases."""
        mine = self.memory.acquire(info, candidates, spread=spread)
        yours = self.shared.acquire(info, candidates, spread=spread)
        if isinstance(mine, Unavailable) and isinstance(yours, Unavailable):
            assert mine.at == yours.at
            assert to_milliseconds(mine.blocks) == to_milliseconds(yours.blocks)
            return
        assert isinstance(mine, Lease)
        assert isinstance(yours, Lease)
        found = [
            lease._replace(reservation=None, refused=to_milliseconds(lease.refused))
            for lease in (mine, yours)
        ]
        assert found[0] == found[1]
        self.leases.append((mine, yours))

    def settle(self, mine: Lease, yours: Lease, outcome: Outcome, names: Any) -> None:
        """Settle with both; times in a verdict count from now."""
        verdict = outcome.verdict
        if verdict is not None and verdict.until is not None:
            moved = replace(verdict, until=self.clock.time() + verdict.until)
            outcome = outcome._replace(verdict=moved)
        until = self.memory.settle(mine, outcome, names)
        assert self.shared.settle(yours, outcome, names) == until

    def compare(self) -> None:
        """Compare all that both know."""
        mine, yours = self.memory.snapshot(KEYS), self.shared.snapshot(KEYS)
        for one in KEYS:
            for known in (mine[one.key_id], yours[one.key_id]):
                known.cooldown_reason = known.cooldown_scope = None  # of equal ends either is right
                known.used = sorted(
                    (u for u in known.used if u.requests_day or any(u.limits)),
                    key=lambda used: used.bucket,
                )
            assert mine[one.key_id] == yours[one.key_id]


def test_histories_vary_every_field_of_a_verdict() -> None:
    """A new field is part of the histories too."""
    assert set(VERDICT) == {field.name for field in fields(Verdict)}


KINDS = SHARED[:2]
"""The file, and the scripts on one server; the contract tests run them on each server."""


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("uri", KINDS)
@settings(max_examples=150, deadline=None)
@given(history=HISTORY)
def test_any_history_has_the_same_results_in_memory_and_shared(
    uri: str, history: list[tuple[Any, ...]]
) -> None:
    """Thousands of steps at edges, midnights and cooldowns: every reply and every count agree."""
    twins = Twins(uri)
    for step in history:
        twins.live(*step)
    twins.compare()
    twins.shared.close()
