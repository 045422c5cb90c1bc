"""A file that processes share: exact limits, whichever way they start and end."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.pool import key
from support.sqlite_state import TWENTY, acquire, grant, hurry, opened, run
from support.sync_async import OK, failed

from keyrot_middleware.core.model import Limits, Scope

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file in a folder that does not exist yet."""
    return tmp_path / "state" / "keyrot.sqlite3"


@FORKS
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_four_processes_are_granted_exactly_the_limit(path: Path, method: str) -> None:
    """Forty requests, limit 20: twenty are granted, whoever sends them."""
    assert sum(run(4, hurry, path, 10, method=method)) == 20


def test_eight_processes_may_open_a_new_file_at_once(path: Path) -> None:
    """One creates it, none fails, and every request counts."""
    assert sum(run(8, hurry, path, 5)) == 20
    assert sorted(one.name for one in path.parent.iterdir())[:1] == ["keyrot.sqlite3"]


def test_the_file_is_the_users_own(path: Path) -> None:
    """The folder is 0700; the file and those beside it are 0600, and no key is in them."""
    state = opened(path)
    assert acquire(state, TWENTY)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    found = list(path.parent.iterdir())
    assert {one.name for one in found} >= {"keyrot.sqlite3", "keyrot.sqlite3-wal"}
    assert {one.stat().st_mode & 0o777 for one in found} == {0o600}
    state.close()


@FORKS
@pytest.mark.parametrize("called", [False, True], ids=["before", "after"])
def test_a_fork_before_and_after_the_first_call(path: Path, called: bool) -> None:
    """Parent and children share the limit, also while other threads of the parent call."""
    state, stop = opened(path), threading.Event()
    granted = grant(state, 2) if called else 0
    busy = threading.Thread(
        target=lambda: [acquire(state, key("x")) for _ in iter(stop.is_set, True)]
    )
    if called:
        busy.start()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(grant(state, 10))
        children.append(child)
    granted += sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    stop.set()
    if called:
        busy.join(20)
    assert granted + grant(state, 10) == 20
    state.close()


@FORKS
def test_a_fork_during_a_transaction_that_hangs_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child does not use what another thread had open: it fails at once, and falls back."""
    monkeypatch.setattr("keyrot_middleware.state.sqlite.WAIT_S", 0.05)
    state = opened(path)
    assert acquire(state, TWENTY)
    with state._shared._lock:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            lease = acquire(state, TWENTY)
            os._exit(0 if lease is not None and lease.degraded else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert acquire(state, TWENTY)
    state.close()


def test_an_exhausted_day_is_remembered_over_a_restart(path: Path) -> None:
    """The second run of a script sends no request to a key whose day is used up."""
    first = opened(path)
    lease = acquire(first, key("a"))
    assert lease is not None
    until = time.time() + 3_600
    first.settle(lease, failed(Scope.PROJECT_MODEL, until), ("files/x",))
    first.close()
    second = opened(path)
    assert acquire(second, key("a")) is None
    assert second.get_owner(["files/x"]) == ("a", "a")
    second.close()


def write_until_killed(path: Path, started: Any) -> None:
    """Call without a pause, until the end."""
    state = opened(path)
    started.set()
    while True:
        lease = acquire(state, key("free", Limits(rpm=10**9)))
        if lease is not None:
            state.settle(lease, OK)


def test_processes_that_are_killed_at_any_moment_leave_a_sound_file(path: Path) -> None:
    """The next one goes on with it,."""
    context = multiprocessing.get_context("spawn")
    draw = random.Random(19)
    for _ in range(6):
        started = context.Event()
        worker = context.Process(target=write_until_killed, args=(path, started), daemon=True)
        worker.start()
        assert started.wait(60)
        time.sleep(draw.uniform(0.01, 0.2))
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join(30)
    state = opened(path)
    lease = acquire(state, key("free", Limits(rpm=10**9)))
    assert lease is not None
    assert not lease.degraded
    state.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
