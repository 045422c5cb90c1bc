"""The file: opened, checked, moved aside when it is broken; its transactions and checkpoints.

One connection of a process, used by one thread at a time; the caller has a lock for that. Methods
raise `sqlite3.Error` and `OSError`, which `to_sentence` explains, and `SqliteStateError`.
"""

from __future__ import annotations

import logging
import os
import random
import re
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeVar

from ...errors import ConfigError, KeyrotError, warn_unless_logged
from ...settings import IN_FILE, SAMPLE_FILE

if sys.platform != "win32":
    import fcntl

__all__ = ["BusyError", "SqliteStateError", "StateFile", "is_broken", "path_of_url"]

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")

APPLICATION_ID = 0x6B657972
"""Marks a file as ours: `keyr`."""
SCHEMA = 1
_CREATE = (
    "CREATE TABLE IF NOT EXISTS records"
    " (name TEXT PRIMARY KEY, value TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID"
)
_ID = ":id"
"""The name of the record that tells this file from any other."""
_UPSERT = (
    "INSERT INTO records VALUES (?, ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value, expires = excluded.expires"
)
NAMES_AT_ONCE = 500
LONG_WAL = 500
"""Pages of the write-ahead log after which it is truncated, which others wait for: 2 MB."""
CHECKPOINT_WAIT_S = 0.25
"""How long a truncation waits for its turn beside writers that never pause, seconds."""
SHORT_WAL_BYTES = 512 * 1024
_BROKEN = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_abandoned: list[sqlite3.Connection] = []
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.005


class SqliteStateError(KeyrotError):
    """The file cannot be used now; the text says why, and what to do."""


class BusyError(SqliteStateError):
    """Another process holds the file."""


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


class StateFile:
    """A file of records: name, value, and when it may be dropped."""

    def __init__(self, path: Path, wait_s: float) -> None:
        """Open nothing yet.

        Args:
            path: Of the file.
            wait_s: How long a transaction may wait for other processes, seconds.
        """
        self.path, self._wait_s = path, wait_s
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        """Of the open file, which may have been renamed or deleted since."""
        self.file_id = ""
        """Tells this file from any other that was there before."""
        self.opened = 0
        """How often it was opened; what was read before is no longer valid."""

    # Transactions ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Return whether there is a connection."""
        return self._db is not None

    def begin(self, until: float, *, write: bool = True) -> None:
        """Begin a transaction; open the file if need be.

        Args:
            until: How long to wait for other processes, by `time.monotonic()`.
            write: It may write; only one does at a time.

        Raises:
            SqliteStateError: The file cannot be used.
        """
        sql = "BEGIN IMMEDIATE" if write else "BEGIN"
        for _ in range(3):
            begin = partial((self._db or self._open(until)).execute, sql)
            self._retrying(begin, until)
            if self._inode == self._inode_of_path():
                return
            self.close()  # it was renamed or deleted: go on with the one in its place
        raise SqliteStateError(f"{self.path}: the file is replaced again and again")

    def commit(self) -> None:
        """Commit."""
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if there is one; the connection is closed where that fails."""
        try:
            if self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def version(self) -> tuple[int, int]:
        """Return a value that changes when another connection has written to the file."""
        found: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return self.opened, found

    def read(self, names: Sequence[str]) -> dict[str, str]:
        """Return the values of those of *names* that are there."""
        found: dict[str, str] = {}
        for start in range(0, len(names), NAMES_AT_ONCE):
            some = names[start : start + NAMES_AT_ONCE]
            marks = ",".join("?" * len(some))
            sql = f"SELECT name, value FROM records WHERE name IN ({marks})"  # noqa: S608 - marks
            found.update(self._connection.execute(sql, some))
        return found

    def read_all(self, prefix: str) -> dict[str, str]:
        """Return the values of all names that begin with *prefix*, which ends with a colon."""
        sql = "SELECT name, value FROM records WHERE name >= ? AND name < ?"
        return dict(self._connection.execute(sql, (prefix, f"{prefix[:-1]};")))

    def has_any(self, prefix: str) -> bool:
        """Return whether any name begins with *prefix*."""
        sql = "SELECT EXISTS (SELECT 1 FROM records WHERE name >= ? AND name < ?)"
        row = self._connection.execute(sql, (prefix, f"{prefix[:-1]};")).fetchone()
        return bool(row[0])

    def write(self, name: str, value: str, expires: float) -> None:
        """Store a record."""
        self._connection.execute(_UPSERT, (name, value, expires))

    def delete(self, name: str) -> None:
        """Remove a record."""
        self._connection.execute("DELETE FROM records WHERE name = ?", (name,))

    def touch(self) -> None:
        """Write something that changes nothing, to see whether that is possible."""
        self._connection.execute("UPDATE records SET value = value WHERE name = ?", (_ID,))

    def sweep(self, now: float, most: int) -> None:
        """Remove expired records, and those that expire first of more than *most*."""
        db = self._connection
        db.execute("DELETE FROM records WHERE expires <= ?", (now,))
        more = db.execute("SELECT count(*) FROM records").fetchone()[0] - most
        if more > 0:
            db.execute(
                "DELETE FROM records WHERE name IN"
                " (SELECT name FROM records ORDER BY expires LIMIT ?)",
                (more,),
            )

    def checkpoint(self) -> None:
        """Move what was committed from the write-ahead log to the file, and keep the log short.

        This waits for the disk, so it is done apart from commits, on a connection of its own.
        """
        with suppress(sqlite3.Error):  # a full disk; the next one may work
            url = f"{self.path.as_uri()}?mode=rw"
            db = sqlite3.connect(url, uri=True, timeout=CHECKPOINT_WAIT_S)
            try:
                db.execute("PRAGMA synchronous = NORMAL")
                _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > LONG_WAL:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                db.close()

    def close(self) -> None:
        """Close the connection; the next transaction opens one."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def abandon(self) -> None:
        """Never use the connection again, not even to close it: it is another process's."""
        if self._db is not None:
            _abandoned.append(self._db)
        self._db = None

    # Opening --------------------------------------------------------------------------------------

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise SqliteStateError(f"{self.path}: the file was closed in a transaction")
        return self._db

    def _inode_of_path(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _open(self, until: float) -> sqlite3.Connection:
        with self._alone(until):
            try:
                db = self._connect(until)
            except sqlite3.DatabaseError as error:
                if not _is_one_of(error, _BROKEN):
                    raise
                self._move_aside(error)
                db = self._connect(until)
        self._db = db
        self.opened += 1
        return db

    @contextmanager
    def _alone(self, until: float) -> Iterator[None]:
        """Let one process open the file, or move it aside, at a time."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform == "win32":  # it does not let an open file be renamed either
            yield
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(f"{self.path}.lock", flags, 0o600)
        try:
            self._retrying(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), until)
            yield
        finally:
            os.close(lock)

    def _connect(self, until: float) -> sqlite3.Connection:
        # SQLite gives its other files the mode of this one. An existing file is not opened here:
        # closing it would end the locks of other connections of this process.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._inode = self._inode_of_path()
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._check_owner(db, until)
            self._retrying(lambda: self._use_log(db), until)
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute(f"PRAGMA journal_size_limit = {SHORT_WAL_BYTES}")
            self._retrying(lambda: self._create(db), until)
        except BaseException:
            db.close()
            raise
        return db

    def _use_log(self, db: sqlite3.Connection) -> None:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise SqliteStateError(
                f"{self.path}: this file system has no write-ahead log for SQLite; use a local "
                "disk, or Redis for several hosts"
            )

    def _check_owner(self, db: sqlite3.Connection, until: float) -> None:
        """Refuse a file of another program, or of a newer version of this one."""
        application, version = self._retrying(
            lambda: [
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            ],
            until,
        )
        if application != APPLICATION_ID:
            tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if application or version or tables:
                raise SqliteStateError(
                    f"{self.path} is a file of another program; name another one in "
                    "KEYROT_STATE_URL=sqlite:///path"
                )
        elif version > SCHEMA:
            raise SqliteStateError(
                f"{self.path} was written by a newer keyrot_middleware (format {version}; this "
                f"version knows {SCHEMA}); upgrade this program, or name another file in "
                "KEYROT_STATE_URL=sqlite:///path"
            )

    def _create(self, db: sqlite3.Connection) -> None:
        """Create what is missing in a new file, and read its id."""
        if not db.execute("PRAGMA user_version").fetchone()[0]:
            db.execute("BEGIN IMMEDIATE")
            db.execute(_CREATE)
            new = (_ID, secrets.token_hex(8), inf)
            db.execute("INSERT INTO records VALUES (?, ?, ?) ON CONFLICT DO NOTHING", new)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            db.execute("COMMIT")
        row = db.execute("SELECT value FROM records WHERE name = ?", (_ID,)).fetchone()
        self.file_id = row[0] if row else ""

    def move_aside(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew in place of a broken file, which is kept beside it."""
        self.rollback()
        self.close()
        with self._alone(time.monotonic() + self._wait_s):
            if self._inode == self._inode_of_path():  # else another process has done it
                self._move_aside(error)

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        kept = f"{self.path}.broken"
        os.replace(self.path, kept)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{kept}{suffix}")
        warn_unless_logged(
            _log, f"{self.path} is broken ({error}); it was moved to {kept}, and is begun anew"
        )

    # Errors ---------------------------------------------------------------------------------------

    @staticmethod
    def _retrying(work: Callable[[], _T], until: float) -> _T:
        """Do *work* again while another process has the file; pauses grow and are random."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return work()
            except (sqlite3.OperationalError, BlockingIOError) as error:
                left = until - time.monotonic()
                if not (isinstance(error, BlockingIOError) or _is_one_of(error, _BUSY)):
                    raise
                if left <= 0:
                    raise
                time.sleep(min(random.random() * pause_s, left))
                pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)

    def to_sentence(self, error: sqlite3.Error | OSError) -> SqliteStateError:
        """Say for people what went wrong."""
        if isinstance(error, BlockingIOError) or _is_one_of(error, _BUSY):
            return BusyError(f"{self.path}: another process holds the file for too long")
        if _is_one_of(error, ("SQLITE_FULL",)):
            return SqliteStateError(f"{self.path}: the disk is full")
        if _is_one_of(error, ("SQLITE_READONLY", "SQLITE_CANTOPEN")):
            return SqliteStateError(f"{self.path}: the file or its folder cannot be written to")
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return SqliteStateError(f"{self.path}: {reason or type(error).__name__}")


def is_broken(error: BaseException) -> bool:
    """Return whether an error says that the file is broken."""
    return _is_one_of(error, _BROKEN)


def _is_one_of(error: BaseException, names: Iterable[str]) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(tuple(names))
