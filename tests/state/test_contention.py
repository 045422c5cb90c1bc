"""Exact grants on every backend, however many threads or tasks acquire at once."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
from support.pool import INFO, key
from support.sync_async import OK, UNSENT, OpenBackend, failed, used

from keyrot_middleware.core.model import Candidate, Lease, Limits, Scope
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

THREADS, TASKS = 50, 200


@pytest.fixture
def switch_threads_often() -> Iterator[None]:
    """Switch threads almost everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[], Any]) -> list[Any]:
    """Do *work* in fifty threads that begin together; return what each returned."""
    start, results = threading.Barrier(THREADS), []

    def one() -> None:
        start.wait(10)
        results.append(work())

    threads = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == THREADS
    return results


def acquire_key(state: State, *keys: Candidate, **info: Any) -> str | None:
    """Acquire a lease; return its key."""
    candidates = tuple((0, one) for one in keys)
    reply = state.acquire(INFO._replace(**info), candidates, spread=True)
    return reply.key_id if isinstance(reply, Lease) else None


@pytest.mark.usefixtures("switch_threads_often")
def test_50_threads_are_granted_exactly_the_limit(open_backend: OpenBackend) -> None:
    """Three keys, two of one project, 45 requests in all: 45 of 150 are granted, none twice."""
    state = open_backend()
    keys = [key("a", Limits(rpm=20), project="p"), key("b", Limits(rpm=20), project="p")]
    keys += [key("c", Limits(rpm=25))]
    granted = Counter(chain(*at_once(lambda: [acquire_key(state, *keys) for _ in range(3)])))
    assert granted["a"] + granted["b"] == 20
    assert granted["c"] == 25
    assert granted[None] == 150 - 45


@pytest.mark.usefixtures("switch_threads_often")
def test_50_threads_settle_without_losing_a_count(open_backend: OpenBackend) -> None:
    """Reservations, corrections and concurrency are exact after thousands of leases."""
    state, one = open_backend(), key("a", Limits(max_concurrency=3))

    def work() -> int:
        done = 0
        for number in range(20):
            reply = state.acquire(INFO._replace(tokens=50), ((0, one),), spread=True)
            if isinstance(reply, Lease):
                state.settle(reply, UNSENT if number % 2 else used(7))
                done += number % 2 == 0
        return done

    done = sum(at_once(work))
    known = state.snapshot([one])["a"]
    assert known.success_count == done
    assert (known.used[0].requests_minute, known.used[0].tokens_minute) == (done, 7 * done)
    leases = [state.acquire(INFO, ((0, one),), spread=True) for _ in range(4)]
    assert [isinstance(reply, Lease) for reply in leases] == [True, True, True, False]


@pytest.mark.usefixtures("switch_threads_often")
def test_of_50_threads_one_is_the_probe(open_backend: OpenBackend, clock: FakeClock) -> None:
    """After a cooldown exactly one of all callers is the probe."""
    state, one = open_backend(), key("a")
    lease = state.acquire(INFO, ((0, one),), spread=True)
    assert isinstance(lease, Lease)
    state.settle(lease, failed(Scope.KEY_MODEL))
    clock.advance(30)
    assert Counter(at_once(lambda: acquire_key(state, one))) == {"a": 1, None: THREADS - 1}


@pytest.mark.usefixtures("switch_threads_often")
def test_a_burst_of_50_failures_is_one_step(open_backend: OpenBackend, clock: FakeClock) -> None:
    """Fifty requests that fail together cool their key down for 30 s, not for 900."""
    state, one = open_backend(), key("a")

    def work() -> float | None:
        lease = state.acquire(INFO, ((0, one),), spread=True)
        barrier.wait(10)
        assert isinstance(lease, Lease)
        return state.settle(lease, failed(Scope.KEY_MODEL))

    barrier = threading.Barrier(THREADS)
    assert set(at_once(work)) == {clock.time() + 30}


async def test_200_tasks_are_granted_exactly_the_limit(open_backend: OpenBackend) -> None:
    """RPM 20 and 200 tasks: exactly twenty are granted."""
    state, one = open_backend(), key("a", Limits(rpm=20))

    async def task() -> bool:
        await asyncio.sleep(0)
        reply = await state.do("acquire", INFO, ((0, one),), spread=True)
        if not isinstance(reply, Lease):
            return False
        await asyncio.sleep(0)
        await state.do("settle", reply, OK)
        return True

    granted = await asyncio.gather(*(task() for _ in range(TASKS)))
    assert sum(granted) == 20
