"""What a task decides over a file: on its loop where nobody is in the way, else in a thread."""

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.pool import INFO, key
from support.states import OK, UNSENT, A, failed, lease_of, opened, warnings_of

from keyrot_middleware.core.model import Candidate, Lease, Limits, Scope, Unavailable
from keyrot_middleware.state import FallbackState, sqlite
from keyrot_middleware.state.base import BusyError

WAIT_S = 60.0
"""A loop that waits takes this long."""
THREE = key("three", Limits(rpm=10_000, rpd=3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyrot.sqlite3"


@pytest.fixture
def state(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FallbackState]:
    monkeypatch.setattr(sqlite, "WAIT_S", WAIT_S)
    with opened(path) as made:
        yield made


async def ask(state: FallbackState, one: Candidate = THREE) -> Lease | Unavailable:
    return await state.do(state.acquire, INFO, ((0, one),), strategy="fill")


async def leases_left(state: FallbackState) -> int:
    """Return how many requests of `THREE` are left of its day."""
    return sum([isinstance(await ask(state), Lease) for _ in range(4)])


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("keyrot-state")]


def size_of_log(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def spoil(path: Path) -> None:
    path.write_bytes(b"no database\n" * 1_000)


def finish_threads(state: FallbackState) -> None:
    executor = state._threads._executor
    state._threads._begin()
    executor.shutdown()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write to the file, as another process."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def holding(state: FallbackState) -> Iterator[None]:
    """Decide in another thread, for as long as this lasts."""
    begun, over = threading.Event(), threading.Event()

    def decide(_now: float) -> None:
        begun.set()
        over.wait(30)

    thread = threading.Thread(target=lambda: state._shared._run(decide))  # type: ignore[attr-defined]
    thread.start()
    begun.wait(30)
    try:
        yield
    finally:
        over.set()
        thread.join()


WAYS: dict[str, Callable[[FallbackState, Path], Any]] = {
    "another process writes": lambda _, path: writing(path),
    "another thread decides": lambda state, _: holding(state),
}
in_the_way = pytest.mark.parametrize("way", WAYS)


async def test_a_task_needs_no_thread_where_nobody_is_in_the_way(state: FallbackState) -> None:
    """It acquires, settles a failure, and looks up an owner."""
    for _ in range(20):
        lease = await ask(state, A)
        assert isinstance(lease, Lease)
        assert not lease.degraded
        state.settle(lease, OK)
    lease = lease_of(state, A)
    await state.do(state.settle, lease, OK, ["files/1"])
    assert await state.do(state.get_owner, ["files/1"]) == ("a", "a")
    assert threads() == []


@in_the_way
async def test_a_task_waits_in_a_thread_and_counts_once(
    state: FallbackState, path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile the loop goes on; what was deferred is not lost; a wait is no failure."""
    first = await ask(state)
    assert isinstance(first, Lease)
    began = time.monotonic()
    with WAYS[way](state, path):
        state.settle(first, OK)  # it rides with the next decision
        asking = asyncio.create_task(ask(state))
        await asyncio.sleep(0.05)
        assert not asking.done()
        assert time.monotonic() - began < WAIT_S / 2
    assert isinstance(lease := await asking, Lease)
    assert not lease.degraded
    assert state.snapshot([THREE])["three"].success_count == 1
    assert await leases_left(state) == 1
    assert not warnings_of(caplog)


@in_the_way
async def test_a_task_that_is_cancelled_while_it_waits_has_counted_nothing(
    state: FallbackState, path: Path, way: str
) -> None:
    with WAYS[way](state, path):
        asking = asyncio.create_task(ask(state))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    finish_threads(state)  # the lease was given back
    assert await leases_left(state) == 3


async def test_a_failure_that_has_to_wait_is_counted_once_in_this_process(
    state: FallbackState, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cooldown is for the time when the file cannot be used, and doubles with each failure."""
    lease, counted = lease_of(state, A), list[Any]()
    settle = state._local._settle
    monkeypatch.setattr(
        state._local, "_settle", lambda *given: counted.append(given) or settle(*given)
    )
    with writing(path):
        settling = asyncio.create_task(state.do(state.settle, lease, failed(Scope.KEY)))
        await asyncio.sleep(0.05)
        assert not settling.done()
    assert await settling is not None
    assert len(counted) == 1


async def test_tasks_beside_a_process_that_writes_decide_in_threads(
    state: FallbackState, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while: it may hold the file again. Then they decide on their loop."""
    with opened(path) as other:
        lease_of(other, A)
        monkeypatch.setattr(sqlite, "OTHERS_S", 3600.0)
        await ask(state, A)
        assert threads()
        finish_threads(state)
        await ask(state, A)
        assert threads()
        finish_threads(state)
        state._shared._alone_at = 0.0  # type: ignore[attr-defined]
        await ask(state, A)
        assert threads() == []


async def test_no_loop_decides_before_a_thread_that_waits(state: FallbackState) -> None:
    """It would take the lock again and again, and the thread give up after four seconds."""
    shared: Any = state._shared
    with shared._queued(), pytest.raises(BusyError, match="a thread waits"):
        state.try_at_once(lambda: state.acquire(INFO, ((0, A),), strategy="fill"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_a_forked_child_waits_for_no_thread_of_its_parent(state: FallbackState) -> None:
    shared: Any = state._shared
    with shared._queued():
        child = os.fork()
        if not child:
            os._exit(len(shared._queue))
    assert os.waitpid(child, 0)[1] == 0


async def test_a_lease_beyond_the_concurrency_is_given_back_where_that_has_to_wait(
    state: FallbackState, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread took the last place meanwhile, and then another process the file."""
    one = key("three", Limits(rpm=10_000, rpd=3, max_concurrency=1))
    add, blocker = state._in_flight.add, writing(path)

    def lose(*_: object) -> bool:
        monkeypatch.setattr(state._in_flight, "add", add)
        blocker.__enter__()
        return False

    monkeypatch.setattr(state._in_flight, "add", lose)
    asking = asyncio.create_task(ask(state, one))
    await asyncio.sleep(0.05)
    blocker.__exit__(None, None, None)
    lease = await asking
    assert isinstance(lease, Lease)
    state.settle(lease, UNSENT)
    finish_threads(state)
    assert await leases_left(state) == 3


async def test_tasks_let_the_log_not_grow(
    state: FallbackState, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop never waits for the disk, so now and then a thread shortens the log."""
    monkeypatch.setattr(sqlite, "DECISIONS_ON_LOOP", 10)
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 5)
    for _ in range(300):
        lease = await ask(state, A)
        assert isinstance(lease, Lease)
        state.settle(lease, OK)
    assert size_of_log(path) < 400_000
    assert threads()


async def test_a_task_that_reads_much_does_it_in_a_thread(state: FallbackState) -> None:
    many = tuple((0, key(f"k{number}", Limits(rpm=1))) for number in range(200))
    assert isinstance(await state.do(state.acquire, INFO, many, strategy="spread"), Lease)
    assert threads()


async def test_a_file_that_cannot_be_used_is_lost_as_in_a_thread(
    state: FallbackState, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong on the loop is found in a thread, and reported once."""
    await ask(state, A)
    spoil(path)
    state._shared._read_at = 0.0  # type: ignore[attr-defined]
    state.activity_log("x")
    lease = await ask(state, A)
    assert isinstance(lease, Lease)
    assert lease.degraded
    assert len(warnings_of(caplog)) == 1
