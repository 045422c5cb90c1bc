"""`sqlite`: the state of all processes of one host, in one file.

Each decision is made by core/ledger.py in a transaction. The thread that gets to the file decides
for all that wait for it, so that many threads cost few transactions. A task does that in its own
thread if nobody else has the file, else another thread does it for the task.

Everything that fails is raised as `SqliteStateError`; state/fallback.py then falls back to
in-process limits.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ...core.activity import ActivityBatch, ActivityView, CallRecord, History, ShareKind, Span
from ...core.ledger import NO_SPENDING, KeyHealth, Ledger, Reservation, UnleasedUsage
from ...core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from ...core.selection import RankedCandidates
from ...forks import after_fork, around_fork
from ..base import DataLoss, DataLostError, Holder, SharedState
from ..memory import Holders
from ..renewals import LeaseRenewals
from . import activity
from .file import BusyError, SqliteStateError, StateFile, is_broken
from .processes import LeaseIds
from .records import RowRecords

__all__ = ["SqliteState"]

_T = TypeVar("_T")

LEASE_S = 15.0
"""How long a lease counts in `max_concurrency` without being renewed by its process."""
WAIT_S = 1.0
"""How long a call waits for other processes that have the file."""
FORK_WAIT_S = 5.0
"""How long a fork waits for a thread that has the file."""
WORKS_AT_ONCE = 64
"""Decisions in one transaction: a few milliseconds."""
CHECKPOINT_EVERY = 100
"""Transactions of this process between two checkpoints."""
SWEEP_EVERY_S = 300.0
MOST_RECORDS = 200_000


class _Work:
    """A decision that a thread waits for."""

    __slots__ = ("call", "done", "error", "result", "until")

    def __init__(self, call: Callable[[float], Any], until: float) -> None:
        self.call, self.until = call, until
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False


class SqliteState(SharedState):
    """The pool's state in a file that the processes of a host share."""

    is_local: ClassVar[bool] = False

    def __init__(
        self,
        path: Path,
        policy: RetryPolicy,
        clock: Callable[[], float],
        *,
        pool: str = "default",
        lease_s: float = LEASE_S,
        wait_s: float = WAIT_S,
        sweep_s: float = SWEEP_EVERY_S,
    ) -> None:
        """Open nothing yet.

        Args:
            path: Of the file, which is created with its folder.
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds, the same for all processes.
            pool: Its name, part of the name of each record.
            lease_s: After which time the leases of a dead process no longer count, seconds.
            wait_s: How long a call waits for other processes that have the file, seconds.
            sweep_s: How often expired records are dropped, seconds.
        """
        self._sweep_s = sweep_s
        self._clock, self._lease_s, self._wait_s = clock, lease_s, wait_s
        self._file = file = StateFile(path, wait_s)
        self._records = RowRecords(file, pool)
        self._holders = Holders()
        self._ids = LeaseIds(self._holders.is_gone)
        self._ledger = ledger = Ledger(self._records, policy, self._ids.is_gone)
        self._lock, self._checkpoint_lock = threading.Lock(), threading.Lock()
        self._queue: deque[_Work] = deque()
        self._held: list[threading.Lock] = []
        """The locks that the thread has which is forking."""
        self._begun_by: int | None = None
        """The thread whose next decision has a transaction already; see `inline`."""
        self._known_id = ""
        """Of the file whose data this process has counted in."""
        self._loss: DataLoss | None = None
        self._since_checkpoint, self._swept_at = 0, clock()
        self._is_tidying = self._must_tidy = self._is_closed = self._is_unsafe = False
        run = weakref.WeakMethod(self._run)

        def renew(leases: Sequence[str]) -> None:
            if (run_now := run()) is not None:
                pairs = list(zip(leases[::2], leases[1::2], strict=True))
                run_now(lambda now: ledger.renew(pairs, now + lease_s))

        self._renewals = LeaseRenewals(renew, lease_s)
        weakref.finalize(self, file.close)
        weakref.finalize(self, self._renewals.close)
        around_fork(self, SqliteState._before_fork, SqliteState._after_fork_in_parent)
        after_fork(self, SqliteState._after_fork)

    # Calls ----------------------------------------------------------------------------------------

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*; see `State.acquire`.

        Raises:
            DataLostError: Another file is in the place of the one that was used before.
            SqliteStateError: The file cannot be used.
        """
        lease_id = next(self._ids)

        def decide(now: float) -> Lease | Unavailable | None:
            if self._file.file_id != self._known_id:
                return None
            return self._ledger.acquire(
                info, candidates, lease_id, now, spread=spread, lease_until=now + self._lease_s
            )

        self._holders.add(lease_id, holder)
        reply = None
        try:
            reply = self._run(decide)
        finally:
            if not isinstance(reply, Lease) or not _is_counted(reply):
                self._holders.remove(lease_id)
        if reply is None:
            raise DataLostError
        if isinstance(reply, Lease):
            self._renewals.add(reply, holder)
        return reply

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`.

        Raises:
            SqliteStateError: The file cannot be used.
        """
        names = tuple(names)
        until = self._run(lambda now: self._ledger.settle(lease, outcome, names, now))
        if outcome.kind is not LeaseOutcome.SERVING:
            self.release(lease)
        return until

    def release(self, lease: Lease) -> None:
        """Stop renewing *lease*; it no longer counts after `LEASE_S`."""
        self._renewals.remove(lease)
        if isinstance(lease.reservation, Reservation):
            self._holders.remove(lease.reservation.lease_id)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        names = tuple(names)
        return self._run(lambda now: self._ledger.get_owner(names, now)) if names else None

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.get_blocks`."""
        keys = list(candidates)
        return self._look(lambda now: self._ledger.get_blocks(info, keys, now))

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys = list(candidates)
        return self._look(lambda now: self._ledger.snapshot(keys, now))

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values that processes have; see `State.with_values`."""
        keys = list(candidates)
        return self._look(lambda _: self._with_values(keys))

    def _with_values(self, keys: list[Candidate]) -> list[Candidate]:
        names = [f"value:{key.key_id}" for key in keys]
        self._records.read(names)
        used, values = self._ledger.with_values(keys), map(self._records.values.get, names)
        return [
            last if value is None else key.with_value(value)
            for key, last, value in zip(keys, used, values, strict=True)
        ]

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown that blocks *key*, and its project's learned limits."""
        self._run(lambda _: self._ledger.reset(key))

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Record configured limits and which keys have a value; see `State.configure`."""
        keys = list(candidates)
        self._run(lambda _: self._configure(keys))

    def _configure(self, keys: list[Candidate]) -> None:
        self._ledger.configure(keys)
        for key in keys:
            if key.fingerprint:
                self._records.values[f"value:{key.key_id}"] = key.fingerprint

    def record_usage(
        self,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int] = NO_SPENDING,
        report: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Count what was sent without a lease; see `SharedState.record_usage`."""
        del report, again  # a transaction is counted, or fails
        self._run(lambda now: self._ledger.record_usage(usages, spending, now))

    def claim(self, name: str, seconds: float) -> float:
        """Take *name* for all processes; see `State.claim`."""
        return self._run(lambda now: self._ledger.claim(name, seconds, now))

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity of the pool; see `State.record_activity`."""
        self._run(lambda _: activity.add(self._records, batch))

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of the pool; see `State.activity`."""
        wanted = tuple(key_ids)
        return self._look(lambda _: activity.view(self._records, wanted, now))

    def activity_history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of an entry over a span; see `State.activity_history`."""
        return self._look(lambda _: activity.history(self._records, entry, span, now))

    def activity_shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model or workload; see `State.activity_shares`."""
        return self._look(lambda _: activity.shares(self._records, kind, span, now))

    def failures_of(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed; see `State.failures_of`."""
        return self._look(lambda _: activity.failures(self._records, key_id))

    def check(self) -> None:
        """Check whether the file can be written to, and whether it is another one.

        Raises:
            SqliteStateError: It cannot be used.
        """
        self._run(lambda _: self._file.touch())
        if self._file.file_id != self._known_id and self._loss is None:
            self._loss = DataLoss(self._file.file_id, 0, None)

    def take_loss(self) -> DataLoss | None:
        """Return the data loss that was found since the last call; see `SharedState.take_loss`."""
        loss, self._loss = self._loss, None
        return loss

    def accept_loss(self, loss: DataLoss) -> None:
        """Lease keys again: what was missing is reported."""
        self._known_id = loss.epoch

    def close(self) -> None:
        """Close the file; calls in flight can still be settled."""
        self._is_closed = True
        super().close()
        self._renewals.close()
        if self._lock.acquire(timeout=self._wait_s):
            try:
                self._file.close()
            finally:
                self._lock.release()

    # Transactions ---------------------------------------------------------------------------------

    def _run(self, call: Callable[[float], _T]) -> _T:
        """Make a decision in a transaction; return its result when that is committed."""
        work = _Work(call, time.monotonic() + self._wait_s)
        if self._begun_by is not None and self._begun_by == threading.get_ident():
            self._begun_by = None
            try:
                self._decide([work])
                self._end_transaction()
            finally:
                self._lock.release()
        else:
            self._queue.append(work)
            try:
                with self._lock:
                    if not work.done:
                        self._transact(self._waiting(work))
                        self._end_transaction()
            except BaseException:
                work.done = True  # nobody waits for it
                raise
        if self._must_tidy:
            self._must_tidy = False
            self._threads.submit(self._tidy)
        if work.error is not None:
            raise work.error
        found: _T = work.result
        return found

    def _waiting(self, own: _Work) -> list[_Work]:
        """Return *own* and what other threads wait for."""
        works = [own]
        while self._queue and len(works) < WORKS_AT_ONCE:
            work = self._queue.popleft()
            if work is not own and not work.done:
                works.append(work)
        return works

    def _transact(self, works: list[_Work]) -> None:
        try:
            self._begin(works[0].until)
        except BusyError as error:
            _fail(works[:1], error)  # the others may wait longer, and decide for themselves
        except SqliteStateError as error:
            _fail(works, error)
        else:
            self._decide(works)

    def _begin(self, until: float, *, write: bool = True) -> None:
        if self._is_unsafe:
            raise SqliteStateError(f"{self._file.path}: the process was forked while it was used")
        try:
            self._file.begin(until, write=write)
            self._records.begin()
        except (sqlite3.Error, OSError) as error:
            raise self._undo(error) from error
        self._known_id = self._known_id or self._file.file_id

    def _decide(self, works: list[_Work]) -> None:
        """Make decisions in the transaction that was begun, and commit it."""
        try:
            now = self._clock()
            results = [work.call(now) for work in works]
            self._records.store(now)
            self._file.commit()
        except (sqlite3.Error, OSError, SqliteStateError) as error:
            _fail(works, self._undo(error))
        except Exception as error:
            self._undo(error)
            if len(works) == 1:
                works[0].error, works[0].done = error, True
            else:  # one of them is wrong: the others must not fail
                for work in works:
                    self._transact([work])
        except BaseException:
            self._undo(None)
            raise
        else:
            for work, result in zip(works, results, strict=True):
                work.result, work.done = result, True

    def _undo(self, error: BaseException | None) -> SqliteStateError:
        """Roll back and forget what was read; return *error* as a sentence."""
        self._records.forget()
        self._file.rollback()
        if isinstance(error, sqlite3.DatabaseError) and is_broken(error):
            try:
                self._file.move_aside(error)
            except (sqlite3.Error, OSError) as failure:
                error = failure
        if isinstance(error, sqlite3.Error | OSError):
            return self._file.to_sentence(error)
        return error if isinstance(error, SqliteStateError) else SqliteStateError(str(error))

    def _look(self, call: Callable[[float], _T]) -> _T:
        """Read in a transaction that changes nothing and waits for no other process."""
        with self._lock:
            self._begin(time.monotonic() + self._wait_s, write=False)
            try:
                return call(self._clock())
            except (sqlite3.Error, OSError) as error:
                raise self._undo(error) from error
            finally:
                self._records.changed.clear()
                self._file.rollback()
                if self._is_closed:
                    self._file.close()

    @contextmanager
    def inline(self) -> Iterator[bool]:
        """Make the next decision of this thread at once, if nobody else has the file.

        Yields:
            Whether that is so; else the decision would wait.
        """
        if not self._file.is_open or not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            self._begin(0.0)
        except SqliteStateError:
            self._lock.release()
            yield False
            return
        except BaseException:
            self._lock.release()
            raise
        self._begun_by = threading.get_ident()
        try:
            yield True
        finally:
            if self._begun_by is not None:  # it was not needed
                self._begun_by = None
                self._file.rollback()
                self._lock.release()

    def _end_transaction(self) -> None:
        self._since_checkpoint += 1
        if self._is_closed:
            self._file.close()
        elif not self._is_tidying and (
            self._since_checkpoint >= CHECKPOINT_EVERY
            or self._clock() - self._swept_at > self._sweep_s
        ):
            self._is_tidying = self._must_tidy = True

    def _tidy(self) -> None:
        """Drop expired records and shorten the write-ahead log, in another thread."""
        now = self._clock()
        try:
            if now - self._swept_at > self._sweep_s:
                self._swept_at = now
                self._run(self._sweep)
            self._since_checkpoint = 0
            with self._checkpoint_lock:
                self._file.checkpoint()
        except SqliteStateError:  # calls notice that too
            pass
        finally:
            self._is_tidying = False

    def _sweep(self, now: float) -> None:
        self._file.sweep(now, MOST_RECORDS)
        self._records.forget_later()

    # Forks ----------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Close the file: SQLite does not work in a child that was forked while it is open."""
        self._held = [
            lock
            for lock in (self._checkpoint_lock, self._lock)
            if lock.acquire(timeout=FORK_WAIT_S)
        ]
        self._is_unsafe = len(self._held) < 2
        if not self._is_unsafe:
            self._file.close()

    def _after_fork_in_parent(self) -> None:
        self._is_unsafe = False
        for lock in self._held:
            lock.release()

    def _after_fork(self) -> None:
        self._lock, self._checkpoint_lock = threading.Lock(), threading.Lock()
        self._queue = deque()
        self._begun_by, self._is_tidying, self._must_tidy = None, False, False
        if self._is_unsafe:
            self._file.abandon()
        self._records.forget()
        self._holders.clear()
        self._ids.renew()


def _is_counted(lease: Lease) -> bool:
    return isinstance(lease.reservation, Reservation) and lease.reservation.counted


def _fail(works: Iterable[_Work], error: SqliteStateError) -> None:
    for work in works:
        work.error, work.done = SqliteStateError(str(error)), True
