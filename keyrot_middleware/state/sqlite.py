"""The state of a pool in a file that the processes of one host share.

Decisions are made as `records.py` says, each written by one statement. So no process holds the file
while it computes, or waits for its interpreter.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

from ..core.activity import TIMED, ActivityRows, believed_until, lifetime_s
from ..core.ledger import KeyHealth
from ..core.model import Candidate, Lease, Outcome, RetryPolicy
from ..errors import ConfigError, KeyrotError
from ..forks import after_fork, around_fork
from ..locks import LockError, TriedLock
from ..settings import IN_FILE, SAMPLE_FILE
from .base import OF_LIMITS, BusyError, OtherVersionError, UnreadableRecordError, at_once
from .records import LOOK_AGAIN_S, ROWS_AT_ONCE, WAIT_S, Change, RecordState, Rows

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
TRIES = 5
"""After so many others were faster, a decision takes the file for itself."""
SETTLES_ON_LOOP = 16
ROWS_ON_LOOP = 200
OTHERS_S = 0.05
"""How long tasks decide in threads after another process has written, seconds."""
DECISIONS_ON_LOOP = 300
"""So many in a row, then one in a thread, which also shortens the log: that waits for the disk."""
CHECKPOINT_PAGES = 1_000
SWEEP_S = 300.0
MAX_OWNERS = 100_000
READ_ANEW_S = 1.0
"""How long what a connection has read of the file may stand for it, where no call waits."""
SELDOM = ("buckets", "cooldowns", "learned")
"""Tables that most pools have no record of."""
_NEW, _SEEN = itemgetter(0, 2, 3), itemgetter(0, 1)
"""Of a change: the row that it writes, and what must be there."""
BROKEN = "database disk image is malformed"
"""In SQLite's own words."""


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


class SqliteState(RecordState):
    """The pool's state in a file."""

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
        super().__init__(policy, clock, pool=pool)
        self.path = path
        self._tried_lock = TriedLock(self._lock)
        self._queue: deque[None] = deque()
        """One for each thread that decides, or waits to."""
        self._on_loop = 0
        """How many decisions were made at once since the last one in a thread."""
        self._version, self._alone_at = 0, 0.0
        """What others have written was seen; until when tasks decide in threads for that."""
        self._waits = True
        """The connection waits for other processes, and for the disk."""
        self._db: sqlite3.Connection | None = None
        self._log = f"{path}-wal"
        self._inodes: list[tuple[int, int] | None] = []
        self._swept_at = -SWEEP_S
        self._failed_at = 0.0
        self._unreadable = False
        """A record of a limit could not be read."""
        self._is_damaged = False
        """The file was found to be broken; other parts of it may still be read."""
        self._read_at = 0.0
        """When the file was last read anew, by `time.monotonic()`."""
        self._is_unsafe = False
        """The process was forked while a thread used the file."""
        around_fork(self, SqliteState._before_fork, SqliteState._after_fork_in_parent)
        after_fork(self, SqliteState._after_fork_in_child)

    def _make_rows(self, prefix: str) -> Rows:
        return _FileRows(prefix, self)

    # Records --------------------------------------------------------------------------------------

    def read(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return records; see `RecordState.read`."""
        sql = f"SELECT name, value FROM records WHERE name IN {_marks(1, len(names))}"  # noqa: S608
        return dict(self._execute(sql, names))

    def read_all(self, prefix: str) -> Mapping[str, str]:
        """Return all records of a table; see `RecordState.read_all`."""
        sql = "SELECT name, value FROM records WHERE name >= ? AND name < ?"
        return dict(self._execute(sql, _range(prefix)))

    def write(self, changes: Sequence[Change]) -> bool:
        """Write what was changed, if it is as it was read; see `RecordState.write`."""
        count = len(changes)
        (written,) = self._execute(
            "INSERT INTO records SELECT * FROM"  # noqa: S608 - marks
            f" (VALUES {_marks(count, 3)}) WHERE NOT EXISTS (SELECT 1 FROM"
            f" (VALUES {_marks(count, 2)}) AS seen LEFT JOIN records ON name = seen.column1"
            " WHERE value IS NOT seen.column2)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value, expires = excluded.expires",
            [*chain.from_iterable(map(_NEW, changes)), *chain.from_iterable(map(_SEEN, changes))],
        )
        return bool(written > 0)

    def _write_changed(self) -> bool:
        """Write what a decision has changed; return False if somebody else was faster."""
        changes = self._rows.changes(self._clock())
        return not changes or self.write(changes)

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        self._run(lambda _: self._check_version())
        return super().snapshot(candidates)

    def check(self) -> None:
        """Check whether the file can be written to.

        Raises:
            SqliteStateError: It cannot be used.
        """
        # A log that fills the disk begins anew.
        self._run(lambda _: self._execute("PRAGMA wal_checkpoint(PASSIVE)"))
        self._run(lambda _: self._execute(f"PRAGMA application_id = {APPLICATION_ID}"))  # a write
        self._run(lambda _: self._check_version())
        if self._is_damaged:
            self._run(lambda _: self._check_all())
            self._is_damaged = False
        if self._unreadable:
            self._run(lambda _: self._rows.read_all(OF_LIMITS))
            self._unreadable = False

    def _check_all(self) -> None:
        """Read the whole file: where a part is broken, calls that need others must not say well."""
        ((found,),) = self._execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(BROKEN)

    def close(self) -> None:
        """Write what was deferred and close the file; calls in flight can still be settled."""
        super().close()
        with suppress(LockError), self._lock:
            self._close()

    # Activity -------------------------------------------------------------------------------------

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool; see `State.add_activity`."""
        self._run(lambda now: self._add_activity(rows, now))

    def _add_activity(self, rows: ActivityRows, now: float) -> None:
        self._check_version()
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

    def _check_version(self) -> None:
        _check_version(self._execute("PRAGMA user_version")[0][0])

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
        """Return the texts of a list; see `State.activity_log`.

        Each process asks for one every few seconds, also without calls: so it finds out then if
        the file was overwritten, of which its connection may have all it needs in memory.
        """
        if time.monotonic() - self._read_at > READ_ANEW_S:
            self._read_at = time.monotonic()
            self._run(lambda _: self._execute("PRAGMA shrink_memory"))
        sql = "SELECT text FROM texts WHERE name = ? ORDER BY id DESC"
        return [
            text for (text,) in self._run(lambda _: self._execute(sql, (f"{self._pool}:{name}",)))
        ]

    # Decisions ------------------------------------------------------------------------------------

    def _run(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]] = ()) -> _T:
        """Settle what was deferred and make a decision; return its result.

        Raises:
            SqliteStateError: The file cannot be used.
            BusyError: This is `try_at_once`, and it would wait, or fails: nothing was done.
        """
        if at_once.get():
            return self._run_at_once(decide, [*needed])
        if settles := self._deferred.take():
            decide, needed = self._after(settles, decide), list(needed)
            needed += self._needed_after(settles)
        if self._is_unsafe:
            raise SqliteStateError(f"{self.path}: the process was forked while it was used")
        began = time.monotonic()
        with self._queued(), self._lock:
            if began < self._failed_at:  # it has waited for the one that failed
                raise SqliteStateError(f"{self.path}: it could not be used a moment ago")
            try:
                return self._decide(decide, needed)
            except BaseException as error:
                self._close()
                if isinstance(error, OtherVersionError):
                    self._unreadable |= isinstance(error, UnreadableRecordError)
                    raise type(error)(f"{self.path}: {error}") from None
                if isinstance(error, sqlite3.Error | OSError | ValueError):
                    self._failed_at = time.monotonic()
                    self._is_damaged |= type(error) is sqlite3.DatabaseError
                    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise SqliteStateError(f"{self.path}: {why}") from error
                raise

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Let nobody decide at once meanwhile: a loop would take the lock again and again."""
        self._queue.append(None)
        try:
            yield
        finally:
            self._queue.pop()

    def try_at_once(self, work: Callable[[], _T]) -> _T:
        """Do *work* if no other process or thread uses the file; see `State.try_at_once`."""
        token = at_once.set(True)
        try:
            return work()
        finally:
            at_once.reset(token)

    def _run_at_once(self, decide: Callable[[float], _T], needed: list[tuple[str, str]]) -> _T:
        """Make a decision on an event loop; what goes wrong is found again in a thread."""
        settles: list[tuple[Lease, Outcome]] = []
        try:
            with self._tried_lock:
                self._check_at_once(needed)
                if settles := self._deferred.take(SETTLES_ON_LOOP):
                    decide = self._after(settles, decide)
                    needed += self._needed_after(settles)
                return self._decide_at_once(decide, needed)
        except Exception as error:
            self._deferred.put_back(settles)
            raise BusyError(str(error)) from error

    def _check_at_once(self, needed: list[tuple[str, str]]) -> None:
        """Raise BusyError if a decision is one for a thread, or a thread waits for its own."""
        if self._queue or time.monotonic() < self._alone_at:
            raise BusyError("a thread waits, or other processes write")
        is_open = self._db is not None and self._is_in_place()
        if not is_open or self._is_unsafe or len(needed) > ROWS_ON_LOOP:
            raise BusyError("this takes longer")
        if self._on_loop >= DECISIONS_ON_LOOP:
            raise BusyError("the log grows")
        self._let_wait(False)
        if (version := self._data_version()) != self._version:
            self._version, self._alone_at = version, time.monotonic() + OTHERS_S
            raise BusyError("another process has written")

    def _data_version(self) -> int:
        """Return what changes when another process writes to the file."""
        ((version,),) = self._execute("PRAGMA data_version")
        return int(version)

    def _decide_at_once(self, decide: Callable[[float], _T], needed: list[tuple[str, str]]) -> _T:
        try:
            self._rows.clear()
            self._rows.read_ahead(needed)
            result = decide(self._clock())
            if self._write_changed():
                self._on_loop += 1
                return result
        except Exception:
            raise
        except BaseException:  # as in `_run`
            self._close()
            raise
        raise BusyError("another process was faster")

    def _let_wait(self, waits: bool) -> None:
        """Let the connection wait for other processes and shorten the log, or not."""
        if self._waits is not waits:
            self._execute(f"PRAGMA busy_timeout = {WAIT_S * 1e3 if waits else 0:.0f}")
            self._execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES if waits else 0}")
            self._waits = waits

    def _decide(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]]) -> _T:
        """Make a decision, again and again until nobody was faster."""
        self._open()
        self._let_wait(True)
        self._on_loop = 0
        for tries in range(TRIES + 1):
            if tries == TRIES:
                self._execute("BEGIN IMMEDIATE")
            self._rows.clear()
            self._rows.read_ahead(needed)
            result = decide(self._clock())
            if self._write_changed():
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
        for kind in TIMED:
            names = f"{self._pool}:{kind}:", f"{self._pool}:{kind};"
            self._execute(
                "DELETE FROM counts WHERE name >= ? AND name < ? AND expires > ?",
                (*names, believed_until(kind, now)),
            )
        self._execute(
            "DELETE FROM records WHERE name IN (SELECT name FROM records"
            " WHERE name >= ?1 || ':owners:' AND name < ?1 || ':owners;'"
            " ORDER BY expires DESC LIMIT -1 OFFSET ?2)",
            (self._pool, MAX_OWNERS),
        )

    # The file -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the file, unless the one that is open, and its log, are still in their places."""
        if self._db is not None and self._is_in_place():
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path.resolve()
        with _alone_in(path.parent):
            self._close()
            if not path.exists():
                _create(path)
            _check_user(path, path.stat())
            self._connect(path)
            self._log = f"{path}-wal"
            self._inodes = [_inode(path), _inode(self._log)]

    def _is_in_place(self) -> bool:
        return self._inodes == [_inode(self.path), _inode(self._log)]

    def _connect(self, path: Path) -> None:
        db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db, self._waits = db, True
        self._closing = finalize(self, db.close)  # also where the state is dropped
        self._closing.atexit = False
        self._version = self._data_version()

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
        _check_version(version)
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

    def _after_fork_in_child(self) -> None:
        self._queue.clear()  # its threads are those of the parent


def _check_version(version: int) -> None:
    if version > SCHEMA:
        raise OtherVersionError("a newer version of keyrot_middleware uses it; update this one")


def _inode(path: Path | str) -> tuple[int, int] | None:
    """Return which file is there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process open a file of *folder* at a time; the folder itself is locked."""
    if sys.platform == "win32":
        yield
        return
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock_file(lock, folder)
        yield
    finally:
        os.close(lock)


def _lock_file(lock: int, folder: Path) -> None:
    for _ in range(int(WAIT_S / LOOK_AGAIN_S)):  # a process that stood still looks again too
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOOK_AGAIN_S)
    raise TimeoutError(0, f"other processes have been opening a file of {folder} for {WAIT_S:g} s")


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


def _range(prefix: str) -> tuple[str, str]:
    """Return the first name that begins with a prefix, and the first one behind these."""
    return prefix, f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}"


@lru_cache
def _marks(rows: int, columns: int) -> str:
    return ",".join([f"({','.join('?' * columns)})"] * rows)


# Rows --------------------------------------------------------------------------------------------


class _FileRows(Rows):
    """Rows of which one statement reads all that a call needs."""

    def __init__(self, prefix: str, state: SqliteState) -> None:
        super().__init__(prefix, state)
        self._execute = state._execute
        self._firsts = "".join(_first_of(table, self.full_name(table, "")) for table in SELDOM)

    def read_ahead(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Read what a decision needs: tables and names; of `SELDOM` only where there is any."""
        often, seldom = dict[str, str](), list[tuple[str, str]]()
        for table, name in wanted:
            if table in SELDOM:
                seldom.append((table, name))
            else:
                often[self.full_name(table, name)] = table
        if len(often) > ROWS_AT_ONCE or not seldom:
            self.read(wanted)
            return
        sql = f"SELECT name, value FROM records WHERE name IN {_marks(1, len(often))}{self._firsts}"  # noqa: S608
        rows = self._execute(sql, [*often])
        self.texts = dict.fromkeys(often) | {name: text for name, text in rows if name in often}
        self.filled.update(often[name] for name, _ in rows if name in often)
        firsts = {name for name, text in rows if text is None}
        self.empty = {one for one in SELDOM if one not in firsts}
        self.read([one for one in seldom if one[0] in firsts])


def _first_of(table: str, prefix: str) -> str:
    """Return SQL that adds a row with the name of a table, if a record begins with its prefix."""
    begin, end = (f"'{one}'" for one in _range(prefix.replace("'", "''")))
    return (
        f" UNION ALL SELECT * FROM (SELECT '{table}', NULL FROM records"  # noqa: S608 - quoted
        f" WHERE name >= {begin} AND name < {end} LIMIT 1)"
    )
