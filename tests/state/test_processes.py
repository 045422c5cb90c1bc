"""Processes that share a pool by a server or a file: exact limits, however they start and end."""

import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from support.pool import key
from support.servers import Server
from support.states import OK, A, B, acquire, failed, lease_of, opened, refusal, settle, used

from keyrot_middleware.core.model import DEFAULT_ZONE, Lease, Limits, RetryPolicy, Scope
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.state.sqlite import SqliteState, path_of_url

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
TWENTY = key("twenty", Limits(rpm=10_000, rpd=20))
"""Not by the minute, which may end during a test."""
FREE = key("free", Limits(rpm=10**9))
NOW = 1_700_000_030.0
"""In the middle of a minute: at its end twice the limit may rightly be leased."""


def shared_at(
    url: str, pool: str = "test", now: float | None = None, zone: str = DEFAULT_ZONE
) -> State:
    """Open a state without fallback; with *now* its clock stands still."""
    stopped, policy = None if now is None else lambda: now, RetryPolicy(zone=zone)
    if url.startswith("sqlite"):
        path = path_of_url(url, pool)
        return SqliteState(path, policy, stopped or time.time, pool=pool)
    return RedisState(url, policy, pool=pool, test_clock=stopped)


def grant(state: State, times: int, one: Any = TWENTY) -> int:
    """Return how many of so many requests are granted by the shared state."""
    replies = [acquire(state, one) for _ in range(times)]
    leases = [one for one in replies if isinstance(one, Lease)]
    for lease in leases:
        settle(state, lease)
    return sum(not one.degraded for one in leases)


def run(count: int, work: Callable[..., None], *args: Any, spawned: int = 0) -> list[Any]:
    """Run *work* in so many processes that begin together; return what they report."""
    fork, spawn = (multiprocessing.get_context(method) for method in ("fork", "spawn"))
    start, results = spawn.Barrier(count), spawn.Queue()
    ways = [spawn] * spawned + [fork] * (count - spawned)
    every = (*args, start, results)
    workers = [way.Process(target=work, args=every, daemon=True) for way in ways]  # type: ignore[attr-defined]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=240) for _ in workers]
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    return found


def test_processes_whose_days_end_at_other_times_count_together(url: str) -> None:
    """Those with keys of other providers; the first one says when the day of all ends."""
    states = [shared_at(url, now=NOW, zone=zone) for zone in (DEFAULT_ZONE, "UTC")]
    assert sum(grant(state, 15) for state in states) == 20
    ends = {block.until for state in states for block in refusal(state, TWENTY).blocks.values()}
    assert len(ends) == 1
    for state in states:
        state.close()


def hurry(url: str, start: Any, results: Any) -> None:
    """Send ten requests to each of ten pools as soon as all are here."""
    totals = []
    for number in range(10):
        with closing(shared_at(url, f"pool-{number}")) as state:
            start.wait(240)
            totals.append(grant(state, 10))
    results.put(totals)


def test_four_processes_are_granted_exactly_the_limit_every_time(url: str) -> None:
    """Forty requests, limit 20: twenty are granted, whichever way they start, ten times of ten."""
    found = run(4, hurry, url, spawned=2)
    assert [sum(of) for of in zip(*found, strict=True)] == [20] * 10


def lease_five(url: str, start: Any, results: Any) -> None:
    with closing(shared_at(url)) as state:
        start.wait(240)
        results.put([lease_of(state, A, B).key_id for _ in range(5)])


def test_what_one_process_has_found_holds_in_others_and_after_a_restart(url: str) -> None:
    """A answers 429 to one process: from then on all of them lease B, and its files are A's."""
    with closing(shared_at(url)) as state:
        quota = failed(Scope.PROJECT_MODEL, time.time() + 3_600, has_known_end=True)
        settle(state, A, quota, "files/x")
    assert run(2, lease_five, url) == [["b"] * 5] * 2
    with closing(shared_at(url)) as state:
        assert state.get_owner(["files/x"]) == ("a", "a")


def call_until_killed(url: str, one: Any, started: Event) -> None:
    state = shared_at(url)
    lease_of(state, one)
    started.set()
    while one == FREE:
        settle(state, one)
    time.sleep(60)


def killed(url: str, one: Any, after_s: float, how: int = signal.SIGKILL) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=call_until_killed, args=(url, one, started), daemon=True)
    worker.start()
    assert started.wait(240)
    time.sleep(after_s)
    os.kill(worker.pid or 0, how)
    worker.join(240)


def test_processes_that_are_killed_at_any_moment_leave_a_sound_file(tmp_path: Path) -> None:
    path, draw = tmp_path / "keyrot.sqlite3", random.Random(19)
    for _ in range(6):
        killed(f"sqlite://{path}", FREE, draw.uniform(0.01, 0.2))
    with opened(path) as state:
        assert not lease_of(state, FREE).degraded
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Forks of one that uses a file -----------------------------------------------------------------


def forked(work: Callable[[], int]) -> int:
    """Do *work* in a child that is not waited for; return its process id."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("called", [False, True], ids=["before", "after"])
def test_a_fork_before_and_after_the_first_call(tmp_path: Path, called: bool) -> None:
    """Parent and children share the limit, also while other threads of the parent call."""
    stop = threading.Event()
    with opened(tmp_path / "keyrot.sqlite3") as state:
        total = grant(state, 2) if called else 0
        busy = threading.Thread(
            target=lambda: [acquire(state, key("x")) for _ in iter(stop.is_set, True)]
        )
        if called:
            busy.start()
        children = [forked(lambda: grant(state, 10)) for _ in range(4)]
        total += sum(code_of(child) for child in children)
        stop.set()
        if called:
            busy.join()
        assert total + grant(state, 10) == 20


def settle_one(url: str, start: Any, results: Any) -> None:
    start.wait(240)
    state = open_state(url, RetryPolicy(), time.time, pool="test")
    settle(state, FREE, used(10))
    _states.append(state)
    results.put(None)


_states = list[State]()
"""What a child leaves open, as programs do."""


def test_a_settle_that_waits_is_written_at_the_end_of_a_child(url: str) -> None:
    """Those of multiprocessing end without atexit."""
    run(2, settle_one, url, spawned=1)
    with opened(url) as state:
        assert state.snapshot([FREE])[FREE.key_id].success_count == 2


def test_a_settle_that_waits_is_not_written_by_a_child_too(url: str) -> None:
    with opened(url) as state:
        settle(state, FREE, OK)
        assert code_of(forked(lambda: grant(state, 1, FREE))) == 1
        grant(state, 1, FREE)
        state.check()
        assert state.snapshot([FREE])[FREE.key_id].success_count == 2


def test_a_child_connects_by_a_client_of_its_own(valkey: Server) -> None:
    """Another thread may have held a lock of its parent's at the fork; the parent keeps that."""
    with closing(RedisState(valkey.url, RetryPolicy())) as state:
        before = state._server.client
        child = forked(lambda: state._server.client is not before and grant(state, 1))
        assert code_of(child) == 1
        assert state._server.client is before


def test_a_fork_during_a_transaction_that_hangs_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child does not use what another thread had open: it fails at once, and falls back."""
    monkeypatch.setattr("keyrot_middleware.state.records.WAIT_S", 0.05)
    with opened(tmp_path / "keyrot.sqlite3") as state:
        lease_of(state, TWENTY)
        with ThreadPoolExecutor(1) as other, ExitStack() as stack:
            lock = state._shared._lock  # type: ignore[attr-defined]
            other.submit(lock.__enter__).result()
            stack.callback(other.submit, lock.__exit__, None, None, None)
            assert code_of(forked(lambda: not lease_of(state, TWENTY).degraded)) == 0
        assert not lease_of(state, TWENTY).degraded
