"""Tasks and a file: in the loop's own thread while nobody else has it, else in another one."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pool import INFO, key
from support.sqlite_state import ONE, opened
from support.sync_async import OK

from keyrot_middleware.core.model import Lease, Unavailable
from keyrot_middleware.state import State
from keyrot_middleware.state.sqlite.state import WAIT_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file."""
    return tmp_path / "keyrot.sqlite3"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    """Open the file as install() does."""
    made = opened(path)
    yield made
    made.close()


def threads() -> set[str]:
    """List the threads that do what would block a loop."""
    return {one.name for one in threading.enumerate() if one.name.startswith("keyrot-state")}


async def call(state: State) -> bool:
    """Make one call; return whether the file leased its key."""
    lease = await state.aacquire(INFO, ((0, key("a")),), spread=False)
    assert isinstance(lease, Lease)
    await state.asettle(lease, OK)
    return not lease.degraded


async def test_a_task_alone_needs_no_thread(state: State) -> None:
    """The file answers faster than a thread would."""
    before = threads()
    assert all([await call(state) for _ in range(20)])
    assert threads() == before


async def test_a_held_file_does_not_block_the_loop(state: State, path: Path) -> None:
    """The call waits in a thread, and other tasks go on."""
    assert await call(state)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(call(state))
    longest, last = 0.0, time.perf_counter()
    for _ in range(20):
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert not waiting.done()
    db.execute("ROLLBACK")
    db.close()
    assert await waiting
    assert longest < 0.5 * WAIT_S


async def test_a_cancelled_call_gives_its_lease_back(state: State, path: Path) -> None:
    """Also where the thread gets it after the task has ended."""
    assert await call(state)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(state.aacquire(INFO, ((0, ONE),), spread=False))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    db.execute("ROLLBACK")
    db.close()
    for _ in range(100):
        reply = await state.aacquire(INFO, ((0, ONE),), spread=False)
        if isinstance(reply, Lease):
            return
        assert isinstance(reply, Unavailable)
        await asyncio.sleep(0.05)
    raise AssertionError("the slot was not given back")


def test_a_pool_outlives_its_loops(state: State) -> None:
    """Forty programs of their own, one after the other, and many tasks in each."""

    async def many() -> list[bool]:
        return await asyncio.gather(*(call(state) for _ in range(20)))

    for _ in range(40):
        assert all(asyncio.run(many()))
    assert state.snapshot([key("a")])["a"].success_count == 800
