"""A file: where it is, whose it is, and what happens when it cannot be used."""

import gc
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.pool import key
from support.servers import wait_for
from support.states import OK, UNSENT, A, acquire, lease_of, opened, settle, warnings_of

from keyrot_middleware.core.activity import ActivityRows, load_call
from keyrot_middleware.core.model import (
    Limits,
    RetryPolicy,
)
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.state import FallbackState, State, sqlite
from keyrot_middleware.state.base import report_unreadable
from keyrot_middleware.state.sqlite import SCHEMA, SqliteState, SqliteStateError, path_of_url
from keyrot_middleware.testing import FakeClock

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and locks of POSIX")
TWENTY = key("twenty", Limits(rpm=10_000, rpd=20))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder / "keyrot.sqlite3"


@pytest.fixture
def state(path: Path) -> Iterator[FallbackState]:
    with opened(path) as made:
        yield made


@pytest.fixture
def alone(path: Path) -> Iterator[SqliteState]:
    with closing(SqliteState(path, RetryPolicy(), time.time)) as made:
        yield made


def is_shared(state: State) -> bool:
    lease = lease_of(state, key("other"))
    settle(state, lease, UNSENT)
    return not lease.degraded


def grant(state: State, times: int) -> int:
    """Return how many of so many requests are granted by the file."""
    leases = [one for one in (acquire(state, TWENTY) for _ in range(times)) if hasattr(one, "verb")]
    return sum(not one.degraded for one in leases)


def database(path: Path, *sql: str) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        for line in sql:
            db.execute(line)
        db.commit()
    return path.read_bytes()


# Whose the file is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"my notes of twenty years\n" * 500, b"short\n", b"SQLite format 3\0" + b"\xff" * 9000],
)
def test_a_file_of_the_users_is_left_as_it_is(
    path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written, moved or made beside it; the warning names it; calls go on."""
    path.write_bytes(text)
    with opened(path) as state:
        assert not is_shared(state)
    assert path.read_bytes() == text
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    (warning,) = warnings_of(caplog)
    for part in (str(path), "falling back to in-process limits"):
        assert part in warning


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("CREATE TABLE mine (x)", "a file of another program"),
        ("PRAGMA application_id = 7", "a file of another program"),
        (f"PRAGMA user_version = {SCHEMA + 1}", "a file of another program"),
    ],
)
def test_a_database_of_another_program_is_left_alone(
    path: Path, alone: SqliteState, sql: str, text: str
) -> None:
    before = database(path, sql)
    with pytest.raises(SqliteStateError, match=f"{path}: .*{text}"):
        alone.check()
    assert path.read_bytes() == before


@POSIX
def test_the_file_is_the_users_own(tmp_path: Path) -> None:
    """The folder is 0700; the file and those beside it are 0600."""
    path = tmp_path / "new" / "keyrot.sqlite3"
    with opened(path) as state:
        lease_of(state, TWENTY)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        found = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
        assert set(found) >= {"keyrot.sqlite3", "keyrot.sqlite3-wal"}
        assert set(found.values()) == {0o600}


@POSIX
def test_a_file_of_another_user_is_an_error(
    path: Path, alone: SqliteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns it can read and change what is counted; in a folder of a group that is meant."""
    path.touch()
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(path, 12_345, -1)
    with pytest.raises(SqliteStateError, match=f"{path}: the file belongs to another user"):
        alone.check()
    path.parent.chmod(0o2770)
    alone.check()


@POSIX
def test_two_users_of_a_folder_share_a_file(path: Path, alone: SqliteState) -> None:
    """In a folder whose group may write to it, the group may write to the file, whatever umask."""
    path.parent.chmod(0o2770)
    before = os.umask(0o077)
    try:
        alone.check()
    finally:
        os.umask(before)
    found = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert found["keyrot.sqlite3"] == found["keyrot.sqlite3-wal"] == 0o660


# A file that cannot be used --------------------------------------------------------------------


USES_ALL = """
import sys, time
from keyrot_middleware.core.model import *
from keyrot_middleware.state.sqlite import SqliteState, SqliteStateError
from pathlib import Path
from typing import Any

state = SqliteState(Path(sys.argv[1]), RetryPolicy(), time.time, pool="test")
info, key = CallInfo("m", "generateContent"), Candidate("a", "a", "a", Limits(rpd=20))

def use():
    try:
        return state.acquire(info, ((0, key),), strategy="spread")
    except SqliteStateError:  # until each process has noticed
        time.sleep(0.02)

granted = int(isinstance(use(), Lease))
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + 60
while not isinstance(reply := use(), Unavailable):
    granted += isinstance(reply, Lease)
    assert time.monotonic() < until
    time.sleep(0.01)
print(granted)
"""


def test_a_log_that_is_taken_away_splits_no_limit(path: Path) -> None:
    """A process that has it open, and one that begins without it, soon count together again."""
    run = [sys.executable, "-c", USES_ALL, str(path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(run, **pipes) as mine:
        assert mine.stdout.readline() == "ready\n"
        path.with_name(f"{path.name}-wal").unlink()
        with subprocess.Popen(run, **pipes) as new:
            mine.stdin.write("\n")
            mine.stdin.flush()
            found = [int(one.communicate("\n", timeout=120)[0].split()[-1]) for one in (new, mine)]
    assert sum(found) in (20, 21), "the first one may have been in the log"


def test_a_settle_that_waits_is_written_at_the_end(path: Path) -> None:
    """By close(), and as a program ends that has not called it."""
    for end in ("state.close(); import os; os._exit(0)", "pass"):
        run = [sys.executable, "-c", ENDS.format(end=end), f"sqlite://{path}"]
        subprocess.run(run, check=True, timeout=60)
    with opened(path) as state:
        assert state.snapshot([A])["a"].success_count == 2


ENDS = """
import sys, time
from keyrot_middleware.core.model import *
from keyrot_middleware.state import open_state

state = open_state(sys.argv[1], RetryPolicy(), time.time, pool="test")
info, key = CallInfo("m", "generateContent"), Candidate("a", "a", "a")
lease = state.acquire(info, ((0, key),), strategy="spread")
state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
{end}
"""


@pytest.mark.parametrize("how", ["deleted", "deleted with its log", "renamed"])
def test_a_file_that_is_taken_away_is_replaced(path: Path, how: str) -> None:
    """Running and new processes go on with one new file, though an index of the old one is left."""
    with opened(path) as mine, opened(path) as other, opened(path) as new:
        assert grant(mine, 8) + grant(other, 4) == 12
        if how == "renamed":
            path.rename(path.with_name("old.sqlite3"))
        else:
            path.unlink()
        if how == "deleted with its log":
            for suffix in ("-wal", "-shm"):
                path.with_name(f"{path.name}{suffix}").unlink()
        assert grant(new, 5) == 5
        assert [is_shared(state) for state in (mine, other, new)] == [True] * 3
        assert sum(grant(state, 20) for state in (mine, other, new)) == 15


def test_a_locked_file_is_not_waited_for_for_long(
    path: Path,
    state: FallbackState,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that holds it: calls go on, a warning says so, and then limits are shared again."""
    monkeypatch.setattr(sqlite, "WAIT_S", 0.1)
    assert is_shared(state)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert lease_of(state, TWENTY).degraded
        assert state.degraded
    wait_for(lambda: is_shared(state))
    assert "database is locked" in warnings_of(caplog)[0]


FULL = """
import resource, signal, sys, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from support.states import A, lease_of, opened, settle
def call():
    lease = lease_of(state, A)
    settle(state, lease)
    return state.degraded or lease.degraded
with opened("sqlite://" + sys.argv[1]) as state:
    assert not call()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    assert [call() for _ in range(4)][-1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    until = time.monotonic() + 120
    while call():
        assert time.monotonic() < until
        time.sleep(0.1)
"""


@POSIX
def test_a_disk_that_takes_no_more_is_no_outage(path: Path) -> None:
    """Calls go on; when there is room again, the file is used again."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", FULL, str(path)]
    where = Path(__file__).parents[1]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=where, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "falling back to in-process limits" in ran.stderr


@pytest.mark.parametrize("value", ["{", '"x"', "[[[]]]", '["x", "x"]', "[" * 100_000])
def test_what_cannot_be_read_and_holds_no_limit_is_none(
    value: str, path: Path, state: FallbackState, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else has written it: it is named once, and the next call replaces it."""
    report_unreadable.cache_clear()
    settle(state, A)
    state.add_activity(ActivityRows({"minute:1": {"x": 1}}, {"calls": (["{}"], 9)}))
    columns = (("counts", "n"), ("texts", "text"))
    database(
        path,
        *(f"UPDATE {t} SET {c} = '{value}'" for t, c in columns),  # noqa: S608
        f"UPDATE records SET value = '{value}' WHERE name = 'test:health:a'",  # noqa: S608
    )
    assert state.snapshot([A])["a"].success_count == 0
    assert state.activity(["minute:1"], None) == [{}]
    with pytest.raises(ValueError, match=r"."):
        load_call(state.activity_log("calls")[0])
    settle(state, A)
    assert state.snapshot([A])["a"].success_count == 1
    assert not state.degraded
    assert warnings_of(caplog) == [
        "the state's record health of test:health:a cannot be read, and counts as none"
    ]


# Where it is, and how large --------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite://keyrot.sqlite3", "sqlite://./x", "sqlite:///"])
def test_a_path_that_is_not_absolute_is_refused(url: str) -> None:
    """A relative one would mean another file in each working directory."""
    with pytest.raises(ConfigError, match="sqlite:///var/lib"):
        path_of_url(url, "default")


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the user's state folder, one for each pool, or where the URL says."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert path_of_url("sqlite", "my pool") == tmp_path / "keyrot" / "my_pool.sqlite3"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    local = tmp_path / ".local" / "state"
    assert path_of_url("sqlite", "p") == local / "keyrot" / "p.sqlite3"
    assert path_of_url("sqlite:///var/x.db", "p") == Path("/var/x.db")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    with pytest.raises(ConfigError, match="no home folder"):
        path_of_url("sqlite", "p")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system lists no open files")
def test_a_state_that_is_dropped_leaves_no_open_file(path: Path) -> None:
    """Python 3.13 warns of a connection that the collector has to close."""

    def held() -> list[str]:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        names = [os.readlink(link) for link in links if os.path.lexists(link)]
        return [name for name in names if name.startswith(str(path))]

    state = SqliteState(path, RetryPolicy(), time.time)
    state.check()
    assert held()
    del state
    gc.collect()
    assert held() == []


def test_what_a_clock_counted_that_was_ahead_is_swept(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is still to come, and is counted then; what another clock is ahead by stays."""
    with closing(SqliteState(path, RetryPolicy(), clock.time)) as state:
        for ahead in (30.0, 86_400.0):
            clock.advance(ahead)
            names = [f"{kind}:{ahead:.0f}" for kind in ("minute", "slot", "day", "rotations")]
            state.add_activity(ActivityRows({name: {"n": 1} for name in names}, {}))
            clock.advance(-ahead)
        monkeypatch.setattr(sqlite, "SWEEP_S", -1.0)
        state.activity(["minute:30"], None)
        names = ["minute", "slot", "day", "rotations"]
        for ahead, kept in ((30, names), (86_400, ["rotations"])):
            found = state.activity([f"{name}:{ahead}" for name in names], None)
            assert [name for name, one in zip(names, found, strict=True) if one] == kept


def test_expired_records_and_the_oldest_owners_are_swept_and_no_counts(
    path: Path, alone: SqliteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owners of sixty days are bounded by themselves: the counts of the day stay."""
    monkeypatch.setattr(sqlite, "SWEEP_S", -1.0)
    monkeypatch.setattr(sqlite, "MAX_OWNERS", 50)
    assert grant(alone, 12) == 12
    settle(alone, A, OK, *(f"interactions/{number}" for number in range(200)))
    database(path, "INSERT INTO records VALUES ('default:quotas:old', '[]', 5)")
    assert grant(alone, 12) == 8
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM records")]
    assert sum(":owners:" in name for name in names) == 50
    assert "default:quotas:old" not in names


# Tasks -----------------------------------------------------------------------------------------
