"""A call either waits for a time above zero or ends, whatever times the state returns."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import OK, GoogleError, minute

from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Block, CallInfo, Limits, RetryPolicy, Unavailable, Usage
from keyrot_middleware.state import MemoryState, State
from keyrot_middleware.testing import FakeClock

LARGE = INFO._replace(tokens=900, estimate=900)


class Patient(Rig):
    """A rig that fails the test where a call would wait forever."""

    def sleep(self, seconds: float) -> None:
        assert len(self.slept) < 100, f"the call does not end: {self.slept[-5:]}"
        assert seconds > 0, "the call does not wait"
        super().sleep(seconds)


def over(state: State, clock: FakeClock, rig: Rig) -> Rig:
    rig.state = rig.pool.state = state  # type: ignore[assignment]
    rig.clock = clock
    return rig


def at_once(rig: Rig, info: CallInfo) -> type[Exception]:
    call = rig.make(info)
    call.wait_limit_s = 0.0
    with pytest.raises((Exhausted, GoogleError)) as found:
        rig.run(call)
    return found.type


def test_a_key_that_is_available_before_its_minute_ends_is_used(
    state: State, clock: FakeClock
) -> None:
    """Its window was full, then tokens were released, then Google named a shorter time."""
    rig = over(state, clock, Patient(key("a", Limits(tpm=1_000)), max_wait_s=60.0))

    def meanwhile() -> Any:
        assert at_once(rig, LARGE) is Exhausted
        return Done("answer", Usage(input_tokens=50))

    rig.will("a", meanwhile)
    assert rig.call(LARGE) == "answer"
    rig.will("a", minute("5s"), OK)
    assert at_once(rig, INFO) is Exhausted
    assert rig.call() == "answer"
    assert rig.sent == ["a"] * 3
    assert 5.0 <= sum(rig.slept) <= 5.2


class Late(MemoryState):
    """A state whose times are past when they arrive, like a server whose clock is behind."""

    def _acquire(self, info: Any, candidates: Any, *, spread: bool) -> Unavailable:
        block = Block("rpm", self._clock() - 0.7, waitable=True)
        return Unavailable(self._clock(), {key.key_id: block for _, key in candidates})


def test_a_time_in_the_past_is_waited_for_a_little(clock: FakeClock) -> None:
    """Each retry uses a part of the budget, so that they end."""
    rig = over(Late(RetryPolicy(), clock.time), clock, Patient(key("a"), max_wait_s=2.0))
    began = clock.time()
    assert isinstance(rig.failing(), Exhausted)
    assert 1.9 <= clock.time() - began <= 2.0


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_sleep_that_takes_longer_counts_as_long_as_it_took(way: str) -> None:
    """A busy key is polled; on a machine that wakes late, the budget is still in real seconds."""
    rig = Patient(key("a", Limits(max_concurrency=1)), max_wait_s=10.0)
    short = rig.clock.sleep
    rig.clock.sleep = lambda seconds: short(seconds + 2.0)  # type: ignore[method-assign]

    async def meanwhile() -> Any:
        began = rig.time()
        error: Any = None
        try:
            _ = rig.call() if way == "sync" else await rig.acall()
        except Exhausted as raised:
            error = raised
        assert isinstance(error, Exhausted)
        assert 8.0 <= rig.time() - began <= 12.2
        return OK

    lease = rig.state.acquire(INFO, ((0, rig.selector.keys["a"]),), spread=False)
    await meanwhile()
    assert len(rig.slept) <= 6
    assert lease is not None
    assert rig.sent == []


def test_an_endless_time_is_not_waited_for(clock: FakeClock) -> None:
    """A key that is never available again is reported at once."""
    rig = Patient(key("a", disabled="active=false"), max_wait_s=inf)
    assert isinstance(rig.failing(), Exhausted)
