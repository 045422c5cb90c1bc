"""How long a lease holds its slot in `max_concurrency`: as long as its call is in flight."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from support.pool import INFO, in_flight, key
from support.servers import Server, server, wait_for
from support.sync_async import OK, StateClient

from keyrot_middleware.core.ledger import CHECK_ABANDONED_EVERY
from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Unavailable
from keyrot_middleware.state import MemoryState
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.testing import FakeClock

ONE = key("one", Limits(max_concurrency=1)).with_value("fingerprint")
SHORT_S = 1.8  # a thread of a busy machine may run a second late
"""The lifetime of a lease that is not renewed, where a test waits for its end."""

_pools = count()


class Call:
    """A caller that sends a request."""

    def __init__(self) -> None:
        self.under_way = True

    def is_alive(self) -> bool:
        """Return whether the request is in flight."""
        return self.under_way


@pytest.fixture
def pair() -> Iterator[tuple[RedisState, RedisState]]:
    """Open a pool twice, like two workers whose leases live for a short time."""
    pool = f"life-{next(_pools)}"
    url = server("valkey").url
    made = [RedisState(url, RetryPolicy(), pool=pool, lease_s=SHORT_S) for _ in range(2)]
    yield made[0], made[1]
    for state in made:
        state.close()
    wait_for(lambda: not renewing())


def renewing() -> list[threading.Thread]:
    """List the threads that renew leases."""
    return [one for one in threading.enumerate() if one.name == "keyrot-leases"]


def take(state: Any, holder: Any = None) -> Any:
    """Acquire once."""
    return state.acquire(INFO, ((0, ONE),), spread=False, holder=holder)


def gets(state: Any) -> Callable[[], bool]:
    """Return a function: is there a slot now? If so, it is released again."""

    def look() -> bool:
        reply = take(state)
        if isinstance(reply, Lease):
            state.settle(reply, OK)
        return isinstance(reply, Lease)

    return look


@pytest.mark.parametrize("lost", ["dropped", "over"])
async def test_an_abandoned_call_releases_its_slot(
    lost: str, client: StateClient, clock: FakeClock
) -> None:
    """When it is collected or over: in memory at once, in Redis when its lease expires."""
    call: Call | None = Call()
    reply = await _acquire(client, call)
    assert isinstance(reply, Lease)
    assert await client.refused(ONE) == {"one": "concurrency"}
    if lost == "over":
        assert call is not None
        call.under_way = False
    call = None
    clock.advance(60)
    if not isinstance(client.state, RedisState):  # its leases do not run out here
        assert isinstance(await _acquire(client, None), Lease)


async def _acquire(client: StateClient, holder: Any) -> Any:
    offer = ((0, ONE),)
    if "Async" in type(client).__name__:
        return await client.state.aacquire(INFO, offer, spread=False, holder=holder)
    return client.state.acquire(INFO, offer, spread=False, holder=holder)


def test_lost_calls_of_a_key_without_a_limit_leave_no_memory_behind() -> None:
    """No call waits for their slots, so they are swept now and then."""
    state = MemoryState(RetryPolicy(), time.time)
    for _ in range(10 * CHECK_ABANDONED_EVERY):
        state.acquire(INFO, ((0, key("free")),), spread=False, holder=Call())
    assert in_flight(state)["free"] <= CHECK_ABANDONED_EVERY


def test_a_call_that_takes_longer_than_a_lease_keeps_its_slot(
    pair: tuple[RedisState, RedisState],
) -> None:
    """While its worker lives, no other gets the slot; when it is settled, at once."""
    mine, other = pair
    call = Call()
    lease = take(mine, call)
    until = time.monotonic() + 2 * SHORT_S
    while time.monotonic() < until:
        assert isinstance(take(other), Unavailable)
        time.sleep(0.05)
    mine.settle(lease, OK)
    assert gets(other)()


def test_a_worker_whose_loop_is_blocked_keeps_its_slots(
    pair: tuple[RedisState, RedisState],
) -> None:
    """User code that blocks the event loop does not end its leases."""
    mine, other = pair

    async def work() -> None:
        call = Call()
        lease = await mine.aacquire(INFO, ((0, ONE),), spread=False, holder=call)
        assert isinstance(lease, Lease)
        time.sleep(2 * SHORT_S)  # noqa: ASYNC251 - a blocked loop is what is tested
        assert isinstance(take(other), Unavailable)
        await mine.asettle(lease, OK)
        mine.close()

    asyncio.run(work())
    assert gets(other)()


@pytest.mark.parametrize("lost", ["dropped", "over"])
def test_an_abandoned_call_is_not_renewed(lost: str, pair: tuple[RedisState, RedisState]) -> None:
    """Its worker lives, and still its slot is free soon: no lease outlives its call."""
    mine, other = pair
    call: Call | None = Call()
    take(mine, call)
    assert isinstance(take(other), Unavailable)
    if lost == "over":
        assert call is not None
        call.under_way = False
    call = None
    wait_for(gets(other))


def test_leases_are_renewed_by_one_thread_that_ends_with_them(
    pair: tuple[RedisState, RedisState],
) -> None:
    """No thread while nothing is leased, one for any number of calls, none after close()."""
    mine, _ = pair
    plain = mine.acquire(INFO, ((0, key("plain")),), spread=False)
    assert isinstance(plain, Lease)
    assert renewing() == []
    many = key("many", Limits(max_concurrency=100))
    call = Call()
    offer = ((0, many),)
    leases = [mine.acquire(INFO, offer, spread=False, holder=call) for _ in range(50)]
    assert len(renewing()) == 1
    mine.close()
    for lease in leases:
        assert isinstance(lease, Lease)
        assert len(renewing()) == 1
        mine.settle(lease, OK)
    wait_for(lambda: not renewing())


def test_a_lease_that_is_never_settled_keeps_no_thread(pair: tuple[RedisState, RedisState]) -> None:
    """A key that was selected by hand and never reported on is not renewed after close()."""
    mine, _ = pair
    take(mine)
    assert len(renewing()) == 1
    mine.close()
    wait_for(lambda: not renewing())


def test_a_thread_with_nothing_to_renew_ends_and_begins_again(
    pair: tuple[RedisState, RedisState],
) -> None:
    """A pause between calls costs no thread, and the next call has one."""
    mine, other = pair
    for _ in range(2):
        lease = take(mine, call := Call())
        assert len(renewing()) == 1
        mine.settle(lease, OK)
        wait_for(lambda: not renewing())
    lease = take(mine, call)
    time.sleep(2 * SHORT_S)
    assert isinstance(take(other), Unavailable)
    mine.settle(lease, OK)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_started_again(pair: tuple[RedisState, RedisState]) -> None:
    """The next lease starts another one, which renews all leases."""
    mine, other = pair
    lease, renew = take(mine, call := Call()), mine._renewals._renew

    def die(_leases: Sequence[str]) -> None:
        raise SystemExit

    mine._renewals._renew = die
    wait_for(lambda: not renewing())
    mine._renewals._renew = renew
    second = mine.acquire(INFO, ((0, key("two", Limits(max_concurrency=1))),), spread=False)
    assert isinstance(second, Lease)
    assert len(renewing()) == 1
    mine.settle(lease, OK)
    lease = take(mine, call)
    time.sleep(2 * SHORT_S)
    assert isinstance(take(other), Unavailable)
    for one in (lease, second):
        mine.settle(one, OK)


def test_a_server_that_is_down_for_a_moment_costs_no_slot(valkey: Server) -> None:
    """A failed renewal is tried again in time."""
    states = [RedisState(valkey.url, RetryPolicy(), pool="away", lease_s=3.0) for _ in range(2)]
    lease = take(states[0], call := Call())
    valkey.execute("CLIENT", "PAUSE", "100", "ALL")
    valkey.execute("CLIENT", "KILL", "TYPE", "normal")
    until = time.monotonic() + 4.5
    while time.monotonic() < until:
        assert isinstance(take(states[1]), Unavailable)
        time.sleep(0.1)
    assert call.is_alive()
    states[0].settle(lease, OK)
    assert gets(states[1])()
    for state in states:
        state.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_renews_its_own_calls_only(pair: tuple[RedisState, RedisState]) -> None:
    """What is in flight is the parent's; a call of the child's own keeps its slot."""
    mine, other = pair
    lease = take(mine, call := Call())
    child = os.fork()
    if child == 0:
        fine = not mine._renewals._leases
        kept = mine.acquire(INFO, ((0, key("two", Limits(max_concurrency=1))),), spread=False)
        time.sleep(2 * SHORT_S)
        again = mine.acquire(INFO, ((0, key("two", Limits(max_concurrency=1))),), spread=False)
        os._exit(0 if fine and isinstance(kept, Lease) and isinstance(again, Unavailable) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert call.is_alive()
    assert isinstance(take(other), Unavailable)
    mine.settle(lease, OK)
