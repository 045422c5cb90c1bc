"""A state file that is broken while processes use it: all who look say so, and go on saying it."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.receivers import Events
from support.states import acquire

from keyrot_middleware import _install
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.monitoring import alerts, report
from keyrot_middleware.monitoring.view import UNKNOWN
from keyrot_middleware.runtime import pool as runtime
from keyrot_middleware.runtime.pool import Pool
from keyrot_middleware.settings import load
from keyrot_middleware.state import FallbackState, MemoryState, sqlite
from keyrot_middleware.state.fallback import Breaker
from keyrot_middleware.state.sqlite import SqliteState, SqliteStateError
from keyrot_middleware.testing import FakeClock


def overwrite(path: Path) -> None:
    path.write_bytes(b"garbage " * 2_000)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def path(here: Path) -> Path:
    return here / "state.sqlite3"


@pytest.fixture
def processes(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[Pool, Events]]]:
    """Two processes of one pool, whose threads the test runs."""

    def open_state(*_: Any, **__: Any) -> FallbackState:
        shared = SqliteState(path, RetryPolicy(), clock.time, pool="p")
        local = MemoryState(RetryPolicy(), clock.time)
        return FallbackState(shared, local, "p", clock.time, Breaker(clock.monotonic))

    monkeypatch.setattr(_install, "open_state", open_state)
    monkeypatch.setattr(sqlite, "READ_ANEW_S", -1.0)
    monkeypatch.setattr(report, "FRESH_S", -1.0)
    monkeypatch.setattr(runtime, "LOOK_S", 0.0)
    monkeypatch.setattr(runtime.Refresher, "start", lambda one: setattr(one, "_on", True))
    monkeypatch.setattr(alerts.Alerts, "look_in", lambda *_: None)
    made = []
    for _ in range(2):
        config = load(keys=["FAKE-one", "FAKE-two"], state_url="sqlite", pool="p")
        events = Events()
        pool = _install.open_pool(config, clock, on_event=events)
        assert pool is not None
        made.append((pool, events))
    yield made
    for pool, _ in made:
        pool.close()


def write_into_file(path: Path) -> None:
    """Move what was written into the file itself; its log begins anew at the next write."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")


@pytest.mark.filterwarnings("ignore:pool p")
def test_processes_say_so_without_a_call(
    processes: list[tuple[Pool, Events]], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that has all it needs in memory finds out too that the file was overwritten."""
    for pool, _ in processes:
        acquire(pool.state, *pool.selector.keys.values())
    write_into_file(path)
    first = processes[0][0]
    acquire(first.state, *first.selector.keys.values())
    overwrite(path)
    for pool, events in processes:
        watching, refresher = pool.background
        refresher.turn()
        assert pool.state.degraded
        found = report.source_of(pool).status()
        assert found["degraded"]
        assert found["summary"]["headline"]["sentences"] == [UNKNOWN]
        watching.look()
        assert events.names == [("state_degraded", None)]
    assert [re.sub(".*: ", "", one.message) for one in caplog.records] == [
        "file is not a database); falling back to in-process limits"
    ] * 2


@pytest.fixture
def state(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteState]:
    monkeypatch.setattr(sqlite, "READ_ANEW_S", -1.0)
    with closing(SqliteState(path, RetryPolicy(), clock.time)) as made:
        yield made


@pytest.mark.parametrize("damage", [overwrite, cut_in_half])
def test_what_is_in_memory_stands_for_no_file(
    state: SqliteState, path: Path, damage: Callable[[Path], None]
) -> None:
    """One process alone, whose connection needs nothing of the file."""
    state.check()
    write_into_file(path)
    state.check()
    assert state.activity_log("facts") == []
    damage(path)
    with pytest.raises(SqliteStateError, match=r"is not a database|is malformed"):
        state.activity_log("facts")


def test_a_half_is_no_file_that_is_back(state: SqliteState, path: Path) -> None:
    """A file of which a part can be read is not said to be well again, until it is whole."""
    state.check()
    write_into_file(path)
    state.close()
    whole = path.read_bytes()
    cut_in_half(path)
    for _ in range(3):
        with pytest.raises(SqliteStateError, match="is malformed"):
            state.activity_log("facts")
        with pytest.raises(SqliteStateError, match="is malformed"):
            state.check()
    path.write_bytes(whole)
    for _ in pairwise("abc"):
        state.check()
        assert state.activity_log("facts") == []
