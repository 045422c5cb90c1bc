"""Every backend learns how the server counts a minute from its refusals, and all of them alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.servers import ENGINES
from support.sync_async import UNSENT, URIS, StateClient, open_at, used

from keyrot_middleware.core.model import (
    NO_USAGE,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Verdict,
)
from keyrot_middleware.testing import FakeClock

ONE = key("a", Limits(rpm=10))


def refused(clock: FakeClock, delay: float | None, limits: Limits = ONE.limits) -> Outcome:
    """Return the 429 of a full minute."""
    until = clock.time() + (61.0 if delay is None else delay)
    fields = {
        "has_known_end": True,
        "learned": limits,
        "is_minute_quota": True,
        "retry_delay_s": delay,
    }
    verdict = Verdict("quota_minute", 429, Scope.PROJECT_MODEL, until, **fields)  # type: ignore[arg-type]  # of mixed types
    return Outcome(LeaseOutcome.FAILURE, verdict, NO_USAGE)


async def burst(client: StateClient) -> list[Lease]:
    """Lease and settle as many as there is room for."""
    leases = []
    while isinstance(reply := await client.acquire(ONE), Lease):
        leases.append(reply)
        await client.settle(reply, used(10))
    return leases


async def test_a_sliding_window_is_learned_from_a_refusal(
    client: StateClient, clock: FakeClock
) -> None:
    """Ten at :30, and at :01 the server still counts them: then a minute after each of ours."""
    assert len(await burst(client)) == 10
    clock.advance(31)
    await client.fails(ONE, refused(clock, 29.0))
    assert client.state.snapshot([ONE])["a"].used[0].requests_minute == 11
    clock.advance(32)
    assert len(await burst(client)) == 9
    reply = await client.acquire(ONE)
    assert isinstance(reply, Unavailable)
    assert 29 <= reply.retry_at - clock.time() <= 31  # the refused one may have counted
    clock.advance(28)
    assert await client.refused(ONE) == {"a": "rpm"}
    clock.advance(40)
    assert len(await burst(client)) == 10


async def test_a_bucket_is_learned_from_a_refusal(client: StateClient, clock: FakeClock) -> None:
    """The named delay is a fraction of a minute: one request comes back every six seconds."""
    assert len(await burst(client)) == 10
    clock.advance(31)
    await client.fails(ONE, refused(clock, 4.0))
    clock.advance(4)
    assert len(await burst(client)) == 1
    reply = await client.acquire(ONE)
    assert isinstance(reply, Unavailable)
    assert reply.retry_at == pytest.approx(clock.time() + 6, abs=0.01)
    clock.advance(60)
    assert client.state.snapshot([ONE])["a"].used[0].requests_minute == 0
    assert len(await burst(client)) == 9


@pytest.mark.parametrize("delay", [29.0, 4.0])
async def test_the_clock_is_tried_again_after_a_day(
    client: StateClient, clock: FakeClock, delay: float
) -> None:
    """Without a refusal for a day the clock's minute is assumed again."""
    await burst(client)
    clock.advance(31)
    await client.fails(ONE, refused(clock, delay))
    clock.advance(86_400 - 20)
    assert len(await burst(client)) >= 9
    clock.advance(60)
    assert len(await burst(client)) == 10


async def test_refusals_caused_by_others_do_not_change_the_window_model(
    client: StateClient, clock: FakeClock
) -> None:
    """The error names the minute's end after few of our requests: the project has other users."""
    await client.fails(ONE, refused(clock, 30.0))
    clock.advance(31)
    assert len(await burst(client)) == 10
    clock.advance(60)
    assert len(await burst(client)) == 10


@pytest.mark.parametrize("delay", [None, 29.0, 4.0])
@pytest.mark.parametrize("back", [3_600.0, 90_000.0])
async def test_a_clock_that_steps_back_leaves_no_key_full(
    client: StateClient, clock: FakeClock, delay: float | None, back: float
) -> None:
    """With every model future entries are dropped; a step forward leaves nothing."""
    if delay is not None:
        await burst(client)
        clock.advance(31)
        await client.settle(
            await client.acquire_lease(ONE), refused(clock, delay, Limits(rpm=10))._replace()
        )
        clock.advance(62)
    assert len(await burst(client)) >= 1
    assert await client.refused(ONE) == {"a": "rpm"}
    clock._now -= back  # a FakeClock only goes forward, and this one must not
    assert len(await burst(client)) >= 9
    clock.advance(2 * back)
    assert len(await burst(client)) >= 9


STEP = st.one_of(
    st.tuples(st.just("acquire"), st.integers(1, 2), st.sampled_from([0, 10, 30, 100, 130])),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([0, 5, 60, 130, None])),
    st.tuples(
        st.just("refuse"),
        st.sampled_from([None, 1.0, 3.5, 12.0, 29.0, 55.0, 80.0]),
        st.sampled_from([Limits(rpm=4), Limits(tpm=100), Limits(rpm=4, tpm=100), Limits()]),
    ),
    st.tuples(
        st.just("pass"),
        st.sampled_from([0.0, 0.4, 1.0, 1.9, 7.0, 28.6, 31.0, 59.0, 61.0, 86_300.0, -400.0]),
        st.none(),
    ),
)


def _history(uri: str, steps: list[tuple[Any, ...]]) -> list[Any]:
    clock, results, open_leases = FakeClock(), [], []
    state, one = open_at(uri, RetryPolicy(), clock.time), key("a", Limits(rpm=4, tpm=100))
    for what, first, second in steps:
        if what == "pass":
            clock._now += first
        elif what == "acquire":
            info = INFO._replace(requests=first, tokens=second)
            reply = state.acquire(info, ((0, one),), spread=True)
            if isinstance(reply, Lease):
                open_leases.append(reply)
                results.append("lease")
            else:
                results.append(reply.blocks["a"])
        elif open_leases:
            lease = open_leases.pop((first if what == "settle" else 0) % len(open_leases))
            if what == "settle":
                state.settle(lease, UNSENT if second is None else used(second))
            else:
                outcome = refused(clock, first, second)
                verdict = outcome.verdict
                # No cooldown, so that the next result depends on the windows alone.
                object.__setattr__(verdict, "scope", Scope.NONE)
                state.settle(lease, outcome)
        results.append([u.requests_minute for u in state.snapshot([one])["a"].used])
        results.append([u.tokens_minute for u in state.snapshot([one])["a"].used])
    state.close()
    return results


@pytest.mark.parametrize("uri", [uri for uri in URIS if uri in ENGINES][:1])
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=50))
def test_the_scripts_decide_as_the_oracle_does(uri: str, steps: list[tuple[Any, ...]]) -> None:
    """The same history in memory and on a server: the same leases, reasons, times and counts."""
    assert _history(uri, steps) == _history("memory://", steps)


@pytest.mark.parametrize("until", [20.0, None])
async def test_a_cooldown_does_not_last_longer_when_the_clock_steps_back(
    client: StateClient, clock: FakeClock, until: float | None
) -> None:
    """A minute's cooldown ends within two minutes, not after the hour by which the clock moved."""
    verdict = Verdict(
        "failure", 429, Scope.PROJECT_MODEL, until and clock.time() + until, has_known_end=True
    )
    await client.fails(ONE, Outcome(LeaseOutcome.FAILURE, verdict, NO_USAGE))
    assert await client.refused(ONE) == {"a": "failure"}
    clock._now -= 3_600
    lease = await client.acquire_lease(ONE)
    assert lease.probe
    assert client.state.snapshot([ONE])["a"].cooldown_until is None
    await client.settle(lease)
    assert not (await client.acquire_lease(ONE)).probe


async def test_a_failure_after_a_step_back_cools_for_its_own_time(
    client: StateClient, clock: FakeClock
) -> None:
    """The end of the earlier one, now in the future, is ignored."""

    def outcome() -> Outcome:
        until = clock.time() + 20
        verdict = Verdict("failure", 429, Scope.PROJECT_MODEL, until, has_known_end=True)
        return Outcome(LeaseOutcome.FAILURE, verdict, NO_USAGE)

    await client.fails(ONE, outcome())
    clock._now -= 3_600
    assert await client.fails(ONE, outcome()) == pytest.approx(clock.time() + 20)
    assert await client.refused(ONE) == {"a": "failure"}
    clock.advance(20)
    await client.acquire_lease(ONE)
