"""Replies of a healthy server that are lost: limits hold, and each request counts once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import count
from random import Random

import pytest
from support.concurrent_callers import Tasks, Threads
from support.faulty_state import warnings_of
from support.pool import INFO, key
from support.redis_state import POLICY, acquire_lease
from support.relay import Relay, relay_to
from support.servers import ENGINES, Server, server, wait_for
from support.sync_async import UNSENT, AsyncClient, StateClient, SyncClient, failed, used

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Scope, Usage
from keyrot_middleware.core.spending import NANO
from keyrot_middleware.state import fallback
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import FallbackState, LocalWindows
from keyrot_middleware.state.redis import RedisState, RedisStateError

pytestmark = pytest.mark.usefixtures("within_a_minute")

ONE = key("a", Limits(rpm=1_000, tpm=1_000_000, rpd=10_000))
PAID = key("p", Limits(rpm=1_000), usd_per_day=1.0)
_pools = count()


@pytest.fixture(params=ENGINES)
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """Run a relay in front of a shared server."""
    with relay_to(server(request.param.partition("://")[0]).port) as made:
        yield made


@pytest.fixture
def shared(relay: Relay) -> Iterator[RedisState]:
    """Open a pool over the relay, with patience: the machine may be busy."""
    name = f"lost-{next(_pools)}-{time.time_ns()}"
    state = RedisState(f"{relay.url}?socket_timeout=5", POLICY, pool=name)
    yield state
    relay.loses = lambda: False
    state.close()


@pytest.fixture
def state(shared: RedisState) -> FallbackState:
    """Put the fallback over it."""
    local = LocalWindows(POLICY, time.time)
    return FallbackState(shared, local, CircuitBreaker(time.monotonic), "test")


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, state: FallbackState) -> StateClient:
    """Use the blocking methods, or the awaited ones."""
    made: StateClient = request.param(state)
    return made


def counted(state: FallbackState, key_id: str = "a") -> tuple[int, int, int]:
    """Return requests and tokens of the minute, and requests of the day."""
    one = {"a": ONE, "p": PAID}[key_id]
    (known,) = state.snapshot([one])[key_id].used
    return known.requests_minute, known.tokens_minute, known.requests_day


async def test_a_lost_reply_of_acquire_is_requested_again(
    client: StateClient, state: FallbackState, relay: Relay
) -> None:
    """The same lease is granted over a new connection; the request counts once."""
    for _ in range(5):
        relay.lose_next()
        lease = await client.acquire_lease(ONE)
        assert not lease.degraded
        await client.settle(lease, used(7))
    assert relay.lost == 5
    assert not state.degraded
    assert counted(state) == (5, 35, 5)


async def test_a_lost_reply_of_settle_counts_once(
    client: StateClient, state: FallbackState, relay: Relay
) -> None:
    """Tokens are corrected once, a request is released once, and a failure is one strike."""
    leases = [await client.acquire_lease(ONE) for _ in range(4)]
    outcomes = [UNSENT, used(30), failed(Scope.KEY), failed(Scope.NONE)]
    for lease, outcome in zip(leases, outcomes, strict=True):
        relay.lose_next()
        await client.settle(lease, outcome)
    relay.lose_next()
    state.snapshot([ONE])  # sends what is deferred
    assert counted(state) == (3, 30 + 2 * INFO.tokens, 3)
    known = state.snapshot([ONE])["a"]
    assert (known.success_count, known.error_count) == (1, 2)
    assert known.cooldown_until == pytest.approx(time.time() + 30, abs=10)


async def test_a_lost_reply_of_a_settle_with_a_cost_counts_once(
    client: StateClient, state: FallbackState, relay: Relay
) -> None:
    """A budget of a dollar is not charged twice."""
    for _ in range(3):
        lease = await client.acquire_lease(PAID, info=INFO._replace(longest_cost=NANO // 10))
        relay.lose_next()
        await client.settle(lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1, cost_usd=0.125)))
    assert state.snapshot([PAID])["p"].spent_usd == pytest.approx(0.375)


async def test_a_request_that_fails_again_and_again_is_no_outage(
    client: StateClient, state: FallbackState, relay: Relay
) -> None:
    """In-process limits serve that call alone; afterwards all requests are counted, once each."""
    await client.settle(await client.acquire_lease(ONE), used(10))
    relay.loses = lambda: True
    own = await client.acquire_lease(ONE)
    relay.loses = lambda: False
    assert own.degraded
    assert not state.degraded
    await client.settle(own, used(10))
    lease = await client.acquire_lease(ONE)
    assert not lease.degraded
    await client.settle(lease, used(10))
    wait_for(lambda: counted(state) == (3, 30, 3))


async def test_a_settle_that_fails_again_and_again_is_sent_later(
    client: StateClient, state: FallbackState, relay: Relay
) -> None:
    """The server receives it when it can, and counts it once though it has run it already."""
    lease = await client.acquire_lease(ONE)
    relay.loses = lambda: True
    await client.settle(lease, UNSENT)
    relay.loses = lambda: False
    await client.settle(await client.acquire_lease(ONE), used(10))
    wait_for(lambda: counted(state) == (1, 10, 1))


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_one_in_ten_replies_is_lost(
    kind: type[Threads | Tasks], state: FallbackState, relay: Relay
) -> None:
    """64 callers use a limit to its end, no further, and each request counts once."""
    one = key("a", Limits(rpd=1_500))
    acquire_lease(state, one)
    relay.lose(0.1, Random(7))
    with kind(state, one, pause_s=0.01) as callers:
        callers.until(lambda: callers.leases["a"] >= 1_499)
        time.sleep(0.5)
    relay.loses = lambda: False
    assert callers.errors == []
    assert relay.lost > 100
    assert callers.leases["a"] == 1_499
    wait_for(lambda: _day(state) == 1_500)


def _day(state: FallbackState) -> int:
    return state.snapshot([key("a")])["a"].used[0].requests_day


def test_requests_that_a_stalled_server_runs_late_do_not_count(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs what was sent while it stood still after its callers have given up."""
    shared = RedisState(valkey.strict_url, POLICY, pool="stalled")
    state = FallbackState(
        shared, LocalWindows(POLICY, time.time), CircuitBreaker(time.monotonic, 0.1), "test"
    )
    one = key("a", Limits(rpd=20_000))
    with Threads(state, one, number=16, pause_s=0.02) as callers:
        callers.until(lambda: callers.leases["a"] > 50)
        for _ in range(3):
            valkey.signal(signal.SIGSTOP)
            callers.until(lambda: state.degraded)
            valkey.signal(signal.SIGCONT)
            callers.until(lambda: not state.degraded)
            time.sleep(0.3)
    assert callers.errors == []
    leases = callers.leases["a"]
    acquire_lease(state, one)
    wait_for(lambda: _day(state) == leases + 1 and not state._is_behind)
    state.close()
    assert any("cannot be used" in text for text in warnings_of(caplog))


def test_a_lost_lease_is_given_back_after_a_long_outage(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stood still for a minute runs what was sent before; that does not count."""
    monkeypatch.setattr(fallback, "SAME_SETTLE_S", 0.0)  # a minute is over at once
    shared = RedisState(valkey.strict_url, POLICY, pool="stalled-for-long")
    state = FallbackState(
        shared, LocalWindows(POLICY, time.time), CircuitBreaker(time.monotonic, 0.1), "test"
    )
    one = key("a", Limits(rpd=20_000))
    leases = [acquire_lease(state, one)]
    valkey.signal(signal.SIGSTOP)
    leases += [acquire_lease(state, one) for _ in range(3)]
    assert leases[-1].degraded
    valkey.signal(signal.SIGCONT)
    while leases[-1].degraded:
        leases.append(acquire_lease(state, one))
    wait_for(lambda: not state._is_behind and _day(state) == len(leases))
    state.close()


def test_a_lease_that_was_given_back_is_granted_no_more(shared: RedisState, relay: Relay) -> None:
    """A request that arrives after its caller has given up changes nothing."""
    lease_id = next(shared._ids)
    offer = ((0, ONE),)
    shared._give_back(lease_id, INFO, offer)
    with pytest.raises(RedisStateError, match="given back"):
        shared._run_acquire(INFO, offer, lease_id, spread=False)
    lease = shared.acquire(INFO, offer, spread=False)
    assert isinstance(lease, Lease)
    shared._give_back(lease.reservation.lease_id, INFO, offer)  # type: ignore[attr-defined]
    assert shared.snapshot([ONE])["a"].used[0].requests_day == 0
