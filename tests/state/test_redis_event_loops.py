"""Connections of many tasks, loops, threads and processes: few, never mixed up, all closed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import pytest
from support.pool import INFO, key
from support.servers import Server
from support.sync_async import OK, failed
from support.timing import ONE, connections, quick

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Scope, Unavailable
from keyrot_middleware.state import FallbackState, State
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows
from keyrot_middleware.state.redis import RedisState, RedisStateError
from keyrot_middleware.state.threads import MAX_THREADS

OFFER = ((0, ONE),)


async def test_tasks_that_wait_for_a_connection_fail_together(server: Server) -> None:
    """64 tasks and a stopped server: each fails within the time limit, none waits in a queue."""
    state = RedisState(server.strict_url, RetryPolicy(), pool="together")
    await asyncio.gather(*(state.aacquire(INFO, OFFER, spread=False) for _ in range(64)))
    server.signal(signal.SIGSTOP)
    try:
        with quick():
            replies = await asyncio.gather(
                *(state.aacquire(INFO, OFFER, spread=False) for _ in range(64)),
                return_exceptions=True,
            )
    finally:
        server.signal(signal.SIGCONT)
    assert all(isinstance(reply, RedisStateError) for reply in replies)
    assert isinstance(await state.aacquire(INFO, OFFER, spread=False), Lease)
    state.close()


async def test_a_busy_loop_is_not_the_servers_fault(server: Server) -> None:
    """Where the loop itself was blocked for longer than the limit, a reply that arrived counts."""
    state = RedisState(server.strict_url, RetryPolicy(), pool="busy")
    await state.aacquire(INFO, OFFER, spread=False)
    acquiring = asyncio.create_task(state.aacquire(INFO, OFFER, spread=False))
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251 - a blocked loop is what is tested
    assert isinstance(await acquiring, Lease)
    state.close()


async def test_a_thousand_tasks_share_few_connections(server: Server) -> None:
    """A thousand tasks do not open a thousand connections."""
    state = RedisState(server.url, RetryPolicy(), pool="crowd")
    before = connections(server)
    leases = await asyncio.gather(
        *(state.aacquire(INFO, OFFER, spread=False) for _ in range(1_000))
    )
    assert sum(isinstance(lease, Lease) for lease in leases) == 1_000
    assert connections(server) - before <= MAX_THREADS + 2
    state.close()


async def test_a_plain_success_is_settled_without_a_thread(server: Server) -> None:
    """The task goes on at once, with the fallback too; a failure needs a round trip."""
    shared = RedisState(server.url, RetryPolicy(), pool="inline")
    local = LocalWindows(RetryPolicy(), time.time)
    state = FallbackState(shared, local, CircuitBreaker(time.monotonic), "test")
    with pytest.raises(StopIteration):  # it has ended
        state.asettle(await _acquire(state, ONE), OK).send(None)
    failing = state.asettle(await _acquire(state, ONE), failed(Scope.NONE))
    waiting = asyncio.ensure_future(failing)
    await asyncio.sleep(0)
    assert not waiting.done()
    await waiting
    known = state.snapshot([ONE])["a"]
    assert (known.success_count, known.error_count) == (1, 1)
    state.close()


async def test_a_cancelled_acquire_gives_back_what_it_was_granted(server: Server) -> None:
    """A task cancelled while the reply is on its way leaves no slot taken and no count."""
    state = RedisState(server.url, RetryPolicy(), pool="cancelled")
    one = key("a", Limits(rpm=100, max_concurrency=1))
    await state.asettle(await _acquire(state, one), OK)
    for steps in range(1, 8):
        acquiring = asyncio.create_task(state.aacquire(INFO, ((0, one),), spread=False))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not acquiring.cancel():
            await state.asettle(await acquiring, OK)  # type: ignore[arg-type]
        await asyncio.gather(acquiring, return_exceptions=True)
        until = time.monotonic() + 60
        while isinstance(
            lease := await state.aacquire(INFO, ((0, one),), spread=False), Unavailable
        ):
            assert time.monotonic() < until, "the place was never given back"
            await asyncio.sleep(0.01)
        await state.asettle(lease, OK)
    state.close()


async def _acquire(state: State, one: Any) -> Lease:
    lease = await state.aacquire(INFO, ((0, one),), spread=False)
    assert isinstance(lease, Lease)
    return lease


def test_loops_in_two_threads_at_once(server: Server) -> None:
    """Two running loops and a thread without one share a state, each over its own connections."""
    state = RedisState(server.url, RetryPolicy(), pool="threads")

    async def work() -> None:
        for _ in range(50):
            await state.asettle(await _acquire(state, ONE), OK)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        lease = state.acquire(INFO, OFFER, spread=False)
        assert isinstance(lease, Lease)
        state.settle(lease, OK)
    for thread in threads:
        thread.join(20)
    assert state.snapshot([ONE])["a"].success_count == 150
    state.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    """Parent and child run at once after a fork; no reply to the one reaches the other."""
    state = RedisState(server.url, RetryPolicy(), pool="fork")
    lease = state.acquire(INFO, OFFER, spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, OK)
    child = os.fork()
    fine = _many(state)
    if child == 0:
        state.close()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fine
    assert state.snapshot([ONE])["a"].success_count == 401
    state.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_a_thread_holds_a_lock_ends(server: Server) -> None:
    """The thread that sends settles may hold the lock of its event; the child waits for none."""
    state = RedisState(server.url, RetryPolicy(), pool="fork-locked")
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with state._server._closing._cond:  # type: ignore[attr-defined]  # as `wait()` does
            held.set()
            forked.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        fine = _many(state)
        state.close()
        os._exit(0 if fine else 1)
    forked.set()
    holder.join(20)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    state.close()


def _many(state: RedisState) -> bool:
    seen = set()
    for _ in range(200):
        lease = state.acquire(INFO, OFFER, spread=False)
        if not isinstance(lease, Lease):
            return False
        seen.add(lease.reservation.lease_id)  # type: ignore[attr-defined]
        state.settle(lease, OK)
    return len(seen) == 200


async def test_close_closes_all_and_late_calls_still_settle(server: Server) -> None:
    """After uninstall nothing stays connected, and a call in flight is still recorded."""
    state = RedisState(server.url, RetryPolicy(), pool="closed")
    before = int(server.execute("INFO", "clients")["connected_clients"])
    first, second = await _acquire(state, ONE), state.acquire(INFO, OFFER, spread=False)
    state.close()
    await state.asettle(first, OK)
    assert isinstance(second, Lease)
    state.settle(second, OK)
    until = time.monotonic() + 60
    while int(server.execute("INFO", "clients")["connected_clients"]) > before:
        assert time.monotonic() < until, "something is still connected"
        await asyncio.sleep(0.02)
    assert state.snapshot([ONE])["a"].success_count == 2
