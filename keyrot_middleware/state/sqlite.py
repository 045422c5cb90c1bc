"""The state of a pool in a file that the processes of one host share.

A decision reads what it needs, without a lock, and writes all that it changes by one statement,
which does so only where that is still as it was read; else the decision is made again. So no
process holds the file while it computes, or waits for its interpreter.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from weakref import finalize

from ..core.activity import ActivityRows, lifetime_s
from ..core.ledger import (
    Ledger,
    Records,
    Reservation,
    part_name,
    purses_of,
    quota_name,
    quota_names,
)
from ..core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from ..core.selection import RankedCandidates
from ..core.windows import cooldown_names
from ..errors import ConfigError, KeyrotError
from ..forks import around_fork
from ..locks import Lock, LockError
from ..settings import IN_FILE, SAMPLE_FILE
from .base import LedgerState, dump, expires_at, load

if sys.platform != "win32":
    import fcntl

_T = TypeVar("_T")

APPLICATION_ID = 0x6B657972
"""Marks a file as ours: `keyr`."""
SCHEMA = 2
_CREATE = """
CREATE TABLE IF NOT EXISTS records
  (name TEXT PRIMARY KEY, value TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts
  (name TEXT, field TEXT, n INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (name, field))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts
  (id INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, expires REAL NOT NULL);
"""
WAIT_S = 2.0
"""How long a decision waits for other processes, seconds: they may have little of the CPU."""
TRIES = 5
"""After so many others were faster, a decision takes the file for itself."""
SWEEP_S = 300.0
MAX_OWNERS = 100_000
ROWS_AT_ONCE = 500
MAX_NAMES = 10_000


class SqliteStateError(KeyrotError):
    """The file cannot be used now; the text says why, and what to do."""


def path_of_url(url: str, pool: str, variable: str = "KEYROT_STATE_URL") -> Path:
    """Return the file that `sqlite` or `sqlite:///path` names.

    Args:
        url: Without a path, the file of *pool* in the user's state folder.
        pool: Its name.
        variable: The setting that has *url*, for messages.

    Raises:
        ConfigError: The path is relative, or the user has no home folder.
    """
    there = url.removeprefix(IN_FILE).removeprefix("://")
    if there:
        path = Path(re.sub(r"^/(?=[A-Za-z]:)|^/+(?=/)", "", there))
        if not path.is_absolute() or not path.name:
            raise ConfigError(
                f"{variable}: found {url!r}; the path of a file begins at the root, after three "
                f"slashes: {SAMPLE_FILE}"
            )
        return path
    try:
        folder = _state_folder()
    except RuntimeError:
        raise ConfigError(
            f"{variable}: this user has no home folder; name a file: {SAMPLE_FILE}"
        ) from None
    return folder / "keyrot" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', pool)}.sqlite3"


def _state_folder() -> Path:
    """Return where programs keep their state, by the convention of the platform.

    Raises:
        RuntimeError: There is no home folder.
    """
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    named = os.environ.get("XDG_STATE_HOME", "")
    return Path(named) if named.startswith("/") else Path.home() / ".local" / "state"


class SqliteState(LedgerState):
    """The pool's state in a file."""

    is_local: ClassVar[bool] = False

    def __init__(
        self, path: Path, policy: RetryPolicy, clock: Callable[[], float], *, pool: str = "default"
    ) -> None:
        """Open nothing yet.

        Args:
            path: Of the file.
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds, the same in all processes.
            pool: Its name, with which the names of its records begin.
        """
        super().__init__(clock)
        self.path, self._pool = path, pool
        self._lock = Lock(2 * WAIT_S)
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._swept_at = -SWEEP_S
        self._failed_at = 0.0
        self._is_unsafe = False
        """The process was forked while a thread used the file."""
        self._rows = _Rows(f"{pool}:", self._execute)
        self._ledger = Ledger(self._rows.records(), policy)
        around_fork(self, SqliteState._before_fork, SqliteState._after_fork_in_parent)

    # Calls ----------------------------------------------------------------------------------------

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, spread: bool
    ) -> Lease | Unavailable:
        needed = self._needed(info, [key for _, key in candidates])
        return self._run(
            lambda now: self._ledger.acquire(info, candidates, now, spread=spread), needed
        )

    def _needed(self, info: CallInfo, keys: Sequence[Candidate]) -> list[tuple[str, str]]:
        """Return the records about a call; its bucket is often named like its model."""
        model, needed = info.quota_model, [("buckets", info.quota_model)]
        for key in keys:
            needed.append(("learned", quota_name(key.project, model)))
            needed += [("quotas", name) for name in quota_names(key.project, model, info.terms)]
            needed += [("purses", name) for name, _ in purses_of(key, info)]
            needed += [("cooldowns", name) for name in cooldown_names(key)]
        return needed

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        name, reservation = quota_name(lease.project, lease.bucket), lease.reservation
        parts = reservation.parts if isinstance(reservation, Reservation) else ()
        needed = [("health", lease.key_id), ("quotas", name), ("learned", name)]
        needed += [("quotas", part_name(name, part)) for part in parts]
        needed += [("purses", name) for name in lease.purses]
        needed += [("cooldowns", name) for name in cooldown_names(lease)]
        return self._run(lambda now: self._ledger.settle(lease, outcome, names, now), needed)

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        needed = self._needed(info, keys)
        return self._run(lambda now: self._ledger.get_blocks(info, keys, now), needed)

    def check(self) -> None:
        """Check whether the file can be written to.

        Raises:
            SqliteStateError: It cannot be used.
        """
        # A log that fills the disk begins anew.
        self._run(lambda _: self._execute("PRAGMA wal_checkpoint(PASSIVE)"))
        self._run(lambda _: self._execute(f"PRAGMA user_version = {SCHEMA}"))

    def close(self) -> None:
        """Close the file; calls in flight can still be settled."""
        super().close()
        with suppress(LockError), self._lock:
            self._close()

    # Activity -------------------------------------------------------------------------------------

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool; see `State.add_activity`."""
        self._run(lambda now: self._add_activity(rows, now))

    def _add_activity(self, rows: ActivityRows, now: float) -> None:
        counts = [
            (f"{self._pool}:{name}", field, n, now + lifetime_s(name))
            for name, fields in rows.counts.items()
            for field, n in fields.items()
        ]
        for start in range(0, len(counts), ROWS_AT_ONCE):
            some = counts[start : start + ROWS_AT_ONCE]
            self._execute(  # the marks are only question marks
                f"INSERT INTO counts VALUES {_marks(len(some), 4)} ON CONFLICT (name, field)"  # noqa: S608
                " DO UPDATE SET n = n + excluded.n, expires = excluded.expires",
                [value for row in some for value in row],
            )
        for name, (texts, most) in rows.texts.items():
            full = f"{self._pool}:{name}"
            self._execute(
                f"INSERT INTO texts (name, text, expires) VALUES {_marks(len(texts), 3)}",  # noqa: S608
                [value for text in texts for value in (full, text, now + lifetime_s(name))],
            )
            self._execute(
                "DELETE FROM texts WHERE name = ?1 AND id <="
                " (SELECT id FROM texts WHERE name = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                (full, most),
            )

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; see `State.activity`."""
        full = [f"{self._pool}:{name}" for name in names]
        found: dict[str, dict[str, int]] = {name: {} for name in full}
        wanted = frozenset(fields or ())
        sql = f"SELECT name, field, n FROM counts WHERE name IN {_marks(1, len(full))}"  # noqa: S608
        for name, field, n in self._run(lambda _: self._execute(sql, full)):
            if (fields is None or field in wanted) and isinstance(n, int):
                found[name][field] = n
        return [found[name] for name in full]

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; see `State.activity_log`."""
        sql = "SELECT text FROM texts WHERE name = ? ORDER BY id DESC"
        return [
            text for (text,) in self._run(lambda _: self._execute(sql, (f"{self._pool}:{name}",)))
        ]

    # Decisions ------------------------------------------------------------------------------------

    def _run(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]] = ()) -> _T:
        """Make a decision, again and again until nobody was faster; return its result.

        Raises:
            SqliteStateError: The file cannot be used.
        """
        if self._is_unsafe:
            raise SqliteStateError(f"{self.path}: the process was forked while it was used")
        began = time.monotonic()
        with self._lock:
            if began < self._failed_at:  # it has waited for the one that failed
                raise SqliteStateError(f"{self.path}: it could not be used a moment ago")
            try:
                return self._decide(decide, needed)
            except BaseException as error:
                self._close()
                if isinstance(error, sqlite3.Error | OSError | ValueError):
                    self._failed_at = time.monotonic()
                    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise SqliteStateError(f"{self.path}: {why}") from error
                raise

    def _decide(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]]) -> _T:
        self._open()
        for tries in range(TRIES + 1):
            if tries == TRIES:
                self._execute("BEGIN IMMEDIATE")
            self._rows.clear()
            self._rows.read(needed)
            result = decide(self._clock())
            if self._rows.store(self._clock()):
                if tries == TRIES:
                    self._execute("COMMIT")
                break
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            self._sweep(self._clock())
        return result

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        assert self._db is not None  # noqa: S101 - it was opened
        cursor = self._db.execute(sql, values)
        return cursor.fetchall() if cursor.description else [cursor.rowcount]

    def _sweep(self, now: float) -> None:
        """Drop what has expired, and the oldest owners: their number is not bounded by the keys."""
        for table in ("records", "counts", "texts"):
            self._execute(f"DELETE FROM {table} WHERE expires <= ?", (now,))  # noqa: S608 - constant
        self._execute(
            "DELETE FROM records WHERE name IN (SELECT name FROM records"
            " WHERE name >= ?1 || ':owners:' AND name < ?1 || ':owners;'"
            " ORDER BY expires DESC LIMIT -1 OFFSET ?2)",
            (self._pool, MAX_OWNERS),
        )

    # The file -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the file, unless the one that is open is still in its place."""
        try:
            found = os.stat(self.path)
            inode = found.st_dev, found.st_ino
        except OSError:
            inode = None
        if self._db is not None and self._inode == inode:
            return
        self._close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path.resolve()
        with _alone_in(path.parent):
            if not path.exists():
                _create(path)
            found = path.stat()
            _check_user(path, found)
            self._connect(path)
            self._inode = found.st_dev, found.st_ino

    def _connect(self, path: Path) -> None:
        db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._closing = finalize(self, db.close)  # also where the state is dropped
        self._closing.atexit = False

    @staticmethod
    def _prepare(db: sqlite3.Connection) -> None:
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if application != APPLICATION_ID and (
            application or version or db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        ):
            raise sqlite3.DatabaseError("this is a file of another program; name another one")
        if version > SCHEMA:
            raise sqlite3.DatabaseError("it was written by a newer keyrot_middleware")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            text = "this file system has no write-ahead log for SQLite; use a local disk"
            raise sqlite3.DatabaseError(text)
        db.execute("PRAGMA synchronous = NORMAL")
        if version < SCHEMA:
            db.executescript(_CREATE)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                self._closing()

    # Forks ----------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Close the file: SQLite does not work in a child that was forked while it is open."""
        try:
            self._lock.__enter__()
            self._close()
        except LockError:
            self._is_unsafe = True

    def _after_fork_in_parent(self) -> None:
        if not self._is_unsafe:
            self._lock.__exit__(None, None, None)
        self._is_unsafe = False


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process open a file of *folder* at a time; the folder itself is locked."""
    if sys.platform == "win32":
        yield
        return
    lock, until = os.open(folder, os.O_RDONLY | os.O_CLOEXEC), time.monotonic() + WAIT_S
    try:
        _lock_file(lock, until)
        yield
    finally:
        os.close(lock)


def _lock_file(lock: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return


def _create(path: Path) -> None:
    """Create an empty file, for the group too in a folder that is shared with it.

    What a deleted file has left beside it would be taken for the log of the new one.
    """
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        if _is_shared(path.parent):
            os.fchmod(handle, 0o660)
    finally:
        os.close(handle)


def _is_shared(folder: Path) -> bool:
    """Return whether its group may write to a folder, and owns what is made in it."""
    return folder.stat().st_mode & 0o2020 == 0o2020


def _check_user(path: Path, found: os.stat_result) -> None:
    if sys.platform == "win32" or found.st_uid in (os.geteuid(), 0) or _is_shared(path.parent):
        return
    raise PermissionError(0, "the file belongs to another user; name another one")


@lru_cache
def _marks(rows: int, columns: int) -> str:
    return ",".join([f"({','.join('?' * columns)})"] * rows)


# Rows --------------------------------------------------------------------------------------------


class _Rows:
    """What a decision has read and changed."""

    def __init__(self, prefix: str, execute: Callable[..., list[Any]]) -> None:
        self._execute = execute
        self.full_name = lru_cache(MAX_NAMES)(partial(_full_name, prefix))
        self.clear()

    def clear(self) -> None:
        self.texts: dict[str, str | None] = {}
        """As read; None: there is none."""
        self.found: dict[str, Any] = {}
        self.changed: set[str] = set()
        self.filled: set[str] = set()
        """Tables that had a record which was read."""

    def records(self) -> Records:
        names = Records.__dataclass_fields__
        return Records(**{name: _Table[Any](self, name) for name in names})

    def read(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Read records that are needed soon: tables and names."""
        tables = {self.full_name(table, name): table for table, name in wanted}
        names = [*tables]
        for start in range(0, len(names), ROWS_AT_ONCE):
            some = names[start : start + ROWS_AT_ONCE]
            sql = f"SELECT name, value FROM records WHERE name IN {_marks(1, len(some))}"  # noqa: S608
            found = dict(self._execute(sql, some))
            self.texts.update(dict.fromkeys(some) | found)
            self.filled.update(tables[name] for name in found)

    def read_range(self, begin: str, end: str) -> dict[str, str | None]:
        sql = "SELECT name, value FROM records WHERE name >= ? AND name < ?"
        self.texts.update(self._execute(sql, (begin, end)))
        return self.texts

    def store(self, now: float) -> bool:
        """Write what was changed; return False if somebody else has changed it meanwhile."""
        if not self.changed:
            return True
        new: list[Any] = []
        seen: list[Any] = []
        for name in self.changed:
            record = self.found[name]
            text = "" if record is None else dump(record)  # swept soon
            new += [name, text, now if record is None else expires_at(record, now)]
            seen += [name, self.texts[name]]
        count = len(self.changed)
        (written,) = self._execute(
            "INSERT INTO records SELECT * FROM"  # noqa: S608 - marks
            f" (VALUES {_marks(count, 3)}) WHERE NOT EXISTS (SELECT 1 FROM"
            f" (VALUES {_marks(count, 2)}) AS seen LEFT JOIN records ON name = seen.column1"
            " WHERE value IS NOT seen.column2)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value, expires = excluded.expires",
            new + seen,
        )
        return bool(written > 0)


def _full_name(prefix: str, table: str, name: str) -> str:
    text = f"{prefix}{table}:{name}"
    return text if text.isascii() else text.encode(errors="replace").decode()


class _Table(Generic[_T]):
    """One table of `Records`."""

    def __init__(self, rows: _Rows, table: str) -> None:
        self._rows, self._table = rows, table

    def get(self, name: str) -> _T | None:
        rows, full = self._rows, self._rows.full_name(self._table, name)
        if full not in rows.found:
            if full not in rows.texts:
                rows.read([(self._table, name)])
            text = rows.texts.setdefault(full)
            rows.found[full] = load(self._table, full, text) if text else None
        found: _T | None = rows.found[full]
        return found

    def __setitem__(self, name: str, record: _T | None) -> None:
        self.get(name)
        full = self._rows.full_name(self._table, name)
        self._rows.found[full] = record
        self._rows.changed.add(full)

    def pop(self, name: str, default: None) -> _T | None:
        found = self.get(name)
        if found is not None:
            self[name] = None
        return found if found is not None else default

    def items(self) -> list[tuple[str, _T]]:
        start = self._rows.full_name(self._table, "")
        texts = self._rows.read_range(start, f"{start[:-1]};")
        names = [name.removeprefix(start) for name in texts if name.startswith(start)]
        found = [(name, self.get(name)) for name in names]
        return [(name, record) for name, record in found if record is not None]

    def __len__(self) -> int:
        return self._table in self._rows.filled  # that of a decision was read before
