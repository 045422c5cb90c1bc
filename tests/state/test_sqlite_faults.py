"""A file that cannot be used: calls go on with in-process limits, and share again afterwards."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.faulty_state import warnings_of
from support.pool import INFO, key
from support.servers import wait_for
from support.sqlite_state import TWENTY, acquire, grant, opened
from support.sync_async import OK, UNSENT

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.state import FallbackState, State
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows
from keyrot_middleware.state.sqlite import SqliteState, SqliteStateError, path_of_url
from keyrot_middleware.state.sqlite.file import SCHEMA

Open = Callable[..., FallbackState]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file."""
    return tmp_path / "keyrot.sqlite3"


@pytest.fixture
def open_file(path: Path) -> Iterator[Open]:
    """Open the file as install() does, with shorter waits."""
    made: list[State] = []

    def open_it(wait_s: float = 0.2) -> FallbackState:
        shared = SqliteState(path, RetryPolicy(), time.time, wait_s=wait_s)
        local = LocalWindows(RetryPolicy(), time.time)
        state = FallbackState(shared, local, CircuitBreaker(time.monotonic, 0.2), "test")
        made.append(state)
        return state

    yield open_it
    for state in made:
        state.close()


def is_shared(state: State) -> bool:
    """Return whether a lease is one of the file."""
    lease = acquire(state, key("other"))
    assert lease is not None
    state.settle(lease, UNSENT)
    return not lease.degraded


@pytest.mark.parametrize("text", [b"no database" * 500, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_broken_file_is_moved_aside(
    path: Path, open_file: Open, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with a warning that names both, and the pool begins anew."""
    path.write_bytes(text)
    states = [open_file(), open_file()]
    assert all(is_shared(state) for state in states)
    assert path.with_name("keyrot.sqlite3.broken").read_bytes() == text
    (warning,) = warnings_of(caplog)
    assert "is broken" in warning
    assert f"{path}.broken" in warning


def test_a_file_that_breaks_while_it_is_used_is_begun_anew(path: Path, open_file: Open) -> None:
    """What this process has counted is counted in the new file, for the other process too."""
    mine, other = open_file(), open_file()
    assert grant(mine, 15) == 15
    other.close()
    mine._shared.close()
    broken = bytearray(path.read_bytes())
    broken[4096:] = b"\xff" * (len(broken) - 4096)
    path.write_bytes(broken)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    wait_for(lambda: is_shared(mine))
    assert path.with_name("keyrot.sqlite3.broken").exists()
    wait_for(lambda: not mine.degraded and is_shared(mine))
    other = open_file()
    assert grant(other, 20) == 5


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_file_that_is_taken_away_is_noticed(path: Path, open_file: Open, how: str) -> None:
    """Nobody goes on with a file that others cannot see; what was counted stays counted."""
    mine, other = open_file(), open_file()
    assert grant(mine, 8) == 8
    assert grant(other, 4) == 4
    if how == "deleted":
        path.unlink()
    else:
        path.rename(path.with_name("old.sqlite3"))
    assert is_shared(mine)
    assert is_shared(other)
    assert path.exists()
    found = [grant(one, 20) for one in (mine, other)]
    assert sum(found) == 8


def test_a_locked_file_is_not_waited_for_for_long(
    path: Path, open_file: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that holds it: calls go on, a warning says so, and then limits are shared again."""
    state = open_file()
    assert is_shared(state)
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        lease = acquire(state, TWENTY)
        assert lease is not None
        state.settle(lease, OK)
        assert acquire(state, TWENTY) is not None
        assert state.degraded
        db.execute("ROLLBACK")
    db.close()
    wait_for(lambda: is_shared(state))
    assert "holds the file for too long" in warnings_of(caplog)[0]
    assert state.snapshot([TWENTY])["twenty"].used[0].requests_day == 2


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_outage(tmp_path: Path) -> None:
    """A container may have no place to write to."""
    tmp_path.chmod(0o500)
    state = opened(tmp_path / "keyrot.sqlite3")
    assert not is_shared(state)
    tmp_path.chmod(0o700)
    wait_for(lambda: is_shared(state))
    state.close()


def test_a_place_that_is_no_folder_is_no_outage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning says what is wrong."""
    (tmp_path / "file").touch()
    state = opened(tmp_path / "file" / "keyrot.sqlite3")
    assert not is_shared(state)
    assert state.degraded
    assert "falling back to in-process limits" in warnings_of(caplog)[0]
    state.close()


FULL = """
import resource, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from support.sqlite_state import TWENTY, acquire, opened
from support.sync_async import OK
state = opened(Path(sys.argv[1]))
state.settle(acquire(state, TWENTY), OK)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
for _ in range(4):
    lease = acquire(state, TWENTY)
    state.settle(lease, OK)
assert state.degraded and lease.degraded
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
until = time.monotonic() + 30
while state.degraded or lease.degraded:
    assert time.monotonic() < until
    time.sleep(0.1)
    lease = acquire(state, TWENTY)
    state.settle(lease, OK)
print(state.snapshot([TWENTY])["twenty"].used[0].requests_day)
state.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of POSIX")
def test_a_disk_that_takes_no_more_is_no_outage(path: Path) -> None:
    """Calls go on; when there is room again, the file has counted them all."""
    ran = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 6
    assert "falling back to in-process limits" in ran.stderr


def make_database(path: Path, *sql: str) -> None:
    """Write a file."""
    db = sqlite3.connect(path)
    for line in sql:
        db.execute(line)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        (("CREATE TABLE mine (x)",), "a file of another program"),
        (("PRAGMA application_id = 7",), "a file of another program"),
    ],
)
def test_a_file_of_another_program_is_left_alone(
    path: Path, sql: tuple[str, ...], text: str
) -> None:
    """Neither written to nor moved."""
    make_database(path, *sql)
    before = path.read_bytes()
    state = SqliteState(path, RetryPolicy(), time.time)
    with pytest.raises(SqliteStateError, match=text):
        state.check()
    assert path.read_bytes() == before
    state.close()


def test_a_file_of_a_newer_version_is_a_sentence(path: Path, open_file: Open) -> None:
    """Which version wrote it, and what to do; the file stays as it is."""
    assert is_shared(open_file())
    make_database(path, f"PRAGMA user_version = {SCHEMA + 1}")
    state = SqliteState(path, RetryPolicy(), time.time)
    with pytest.raises(SqliteStateError, match=f"newer keyrot_middleware.*format {SCHEMA + 1}"):
        state.check()
    assert not path.with_name("keyrot.sqlite3.broken").exists()
    state.close()


def test_a_record_that_cannot_be_read_is_dropped(
    path: Path, open_file: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """With its name in a warning; calls go on, and it is written anew."""
    state = open_file()
    busy = key("busy", Limits(rpm=5, max_concurrency=2), usd_per_day=1.0)
    lease = acquire(state, busy)
    assert lease is not None
    state.settle(lease, OK, ("files/x",))
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM records")]
    for text in ("{", "[1]", '{"a": 1}', '"x"', "[[],[],[],[],[],[],[]]", "7"):
        with sqlite3.connect(path) as db:
            db.execute("UPDATE records SET value = ? WHERE name <> ':id'", (text,))
        db.close()
        lease = acquire(state, busy)
        assert lease is not None
        assert not lease.degraded
        state.settle(lease, OK, ("files/x",))
        assert state.get_owner(["files/x"]) is not None
        assert state.snapshot([busy])["busy"].success_count == 1
    dropped = " ".join(warnings_of(caplog))
    assert all(name.partition(":")[2] in dropped for name in names if "quota" in name)


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
    monkeypatch.setattr(sys, "platform", "darwin")
    support = tmp_path / "Library" / "Application Support"
    assert path_of_url("sqlite", "p") == support / "keyrot" / "p.sqlite3"
    assert path_of_url("sqlite:///var/x.db", "p") == Path("/var/x.db")
    assert path_of_url("sqlite:////var/x.db", "p") == Path("/var/x.db")


def test_a_user_without_a_home_must_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in some containers."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    with pytest.raises(ConfigError, match="no home folder"):
        path_of_url("sqlite", "p")


def test_the_file_does_not_grow_with_calls(path: Path) -> None:
    """10,000 calls leave it small; its log is shortened while calls go on, and again at the end."""
    state = SqliteState(path, RetryPolicy(), time.time)

    def size() -> int:
        return sum(one.stat().st_size for one in path.parent.glob("keyrot.sqlite3*"))

    def size_after(calls: int) -> int:
        for _ in range(calls):
            lease = state.acquire(INFO, ((0, key("a")),), spread=False)
            assert isinstance(lease, Lease)
            state.settle(lease, OK)
        return size()

    size_after(10_000)
    wait_for(lambda: size_after(100) < 3_000_000)  # the thread that does it needs its turn
    state.close()
    wait_for(lambda: size() < 100_000)


def test_expired_records_are_swept(path: Path) -> None:
    """They are dropped by the process that finds that it is time."""
    now = [1_800_000_000.0]
    state = SqliteState(path, RetryPolicy(), lambda: now[0])
    for number in range(500):
        info = INFO._replace(model=f"tuned-{number}")
        assert isinstance(state.acquire(info, ((0, key("a")),), spread=False), Lease)
    now[0] += 40 * 86_400

    def count() -> int:
        assert isinstance(state.acquire(INFO, ((0, key("a")),), spread=False), Lease)
        db = sqlite3.connect(path)
        found: int = db.execute("SELECT count(*) FROM records").fetchone()[0]
        db.close()
        return found

    wait_for(lambda: count() < 10)
    state.close()


def test_a_thousand_keys_with_ten_models_take_less_than_five_megabytes(path: Path) -> None:
    """With a cooldown, a lease in flight and the activity of an hour for many of them."""
    state = SqliteState(path, RetryPolicy(), time.time)
    keys = [key(f"key_{number}", Limits(rpm=9, max_concurrency=5)) for number in range(1_000)]
    for model in range(10):
        info = INFO._replace(model=f"gemini-3.8-flash-{model}")
        for one in keys:
            assert isinstance(state.acquire(info, ((0, one),), spread=False), Lease) == (model < 5)
    free = [key(f"key_{number}", Limits(rpm=9)) for number in range(1_000)]
    for model in range(5, 10):
        info = INFO._replace(model=f"gemini-3.8-flash-{model}")
        for one in free:
            assert isinstance(state.acquire(info, ((0, one),), spread=False), Lease)
    state.close()
    assert path.stat().st_size < 5_000_000


def test_one_wrong_decision_does_not_fail_those_of_other_threads(path: Path) -> None:
    """They share a transaction; each gets its own result."""
    state = SqliteState(path, RetryPolicy(), time.time)
    state.check()
    found: list[object] = []

    def claim(name: str, seconds: object) -> None:
        try:
            found.append(state.claim(name, seconds))  # type: ignore[arg-type]
        except TypeError:
            found.append("wrong")

    with state._lock:
        threads = [
            threading.Thread(target=claim, args=(f"n{number}", "x" if number == 2 else 60))
            for number in range(5)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(state._queue) == 5)
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, found)) == ["0.0"] * 4 + ["wrong"]
    state.close()
