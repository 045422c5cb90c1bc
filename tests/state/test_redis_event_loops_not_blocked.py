"""However tasks and connections interleave, the event loop keeps running."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from support.pool import INFO, key
from support.redis_state import accept_loss
from support.servers import Server
from support.sync_async import OK

from keyrot_middleware.core.model import Lease, RetryPolicy
from keyrot_middleware.state.redis import RedisState, RedisStateError

ONE = key("a")
PATIENCE_S = 120.0
"""Far longer than the work of any test here; a frozen loop stays frozen."""


class FrozenError(BaseException):
    """The event loop has not come to its end."""


@contextmanager
def watchdog() -> Iterator[None]:
    """Stop the block, wherever it is, if it takes far too long."""

    def bark(_number: int, _frame: FrameType | None) -> None:
        raise FrozenError

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def burst(state: RedisState, calls: int = 20) -> int:
    """Begin one call in each iteration of the loop; one of them opens the new connection."""

    async def call() -> bool:
        lease = await state.aacquire(INFO, ((0, ONE),), spread=False)
        assert isinstance(lease, Lease)
        await state.asettle(lease, OK)
        return True

    tasks = []
    for _ in range(calls):
        tasks.append(asyncio.create_task(call()))
        await asyncio.sleep(0)
    return sum(await asyncio.gather(*tasks))


def test_calls_that_meet_a_new_connection_in_any_iteration_of_the_loop(server: Server) -> None:
    """300 loops one after another, each with calls that begin while its connection is opened."""
    state = RedisState(server.url, RetryPolicy(), pool="runs")
    with watchdog():
        assert sum(asyncio.run(burst(state)) for _ in range(300)) == 6_000
    state.close()


async def test_calls_after_the_server_has_closed_an_idle_connection(server: Server) -> None:
    """One loop whose connection is closed by the server, again and again, between its calls."""
    state = RedisState(server.url, RetryPolicy(), pool="idle")
    with watchdog():
        for _ in range(50):
            assert await burst(state) == 20
            await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.01)
    state.close()


async def test_calls_over_a_connection_that_was_lost_leave_no_warning(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that ends while tasks wait for it: each call fails, and asyncio logs nothing."""
    state = RedisState(valkey.url, RetryPolicy(), pool="lost")
    caplog.set_level(logging.DEBUG, "asyncio")
    for _ in range(5):
        await burst(state)
        caplog.clear()
        calls = [state.aacquire(INFO, ((0, ONE),), spread=False) for _ in range(50)]
        valkey.stop()  # blocks the loop, which notices only after the tasks have written
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(reply, RedisStateError) for reply in replies)
        warned = [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.WARNING]
        assert [r.getMessage() for r in warned] == []
        await asyncio.to_thread(valkey.start)
        state.check()  # it has lost its data
        accept_loss(state)
    state.close()
