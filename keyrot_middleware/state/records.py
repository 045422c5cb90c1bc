"""A state whose records are texts in a store: a file of SQLite, or what another package plugs in.

A decision reads what it needs, without a lock, and writes all that it changes at once, but only
where that is still as it was read; else the decision is made again.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from random import random
from typing import Any, ClassVar, Generic, TypeVar

from ..core.activity import ActivityRows, believed_until, lifetime_s
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
    Strategy,
    Unavailable,
)
from ..core.selection import RankedCandidates
from ..core.windows import DAY_S, cooldown_names
from ..errors import KeyrotError
from ..locks import Lock
from .base import OF_LIMITS, Deferred, LedgerState, can_wait, dump, expires_at, load

_T = TypeVar("_T")

WAIT_S = 2.0
"""How long a decision waits for other processes, seconds: they may have little of the CPU."""
LOOK_AGAIN_S = 0.005
ROWS_AT_ONCE = 500
SETTLES_AT_ONCE = 16
"""Of earlier calls, with one decision. Each changes a few records, and a service that writes all of
its changes or none may take a hundred at most."""
ACTIVITY_AT_ONCE = 25
"""Records of counts, and of texts. Each is right by itself: one write need not have all."""
MAX_NAMES = 10_000

Change = tuple[str, str | None, str, float]
"""A record that is to be written: its name, its text as it was read (None: there was none), its new
text, and from when on that says no more than none does, epoch seconds: drop it then, or later."""


class StoreError(KeyrotError):
    """The store cannot be used now."""


class RecordState(LedgerState):
    """The state of a pool in a store of texts by name: a database, a file, a service.

    A subclass says how texts are read and written: `read`, `read_all` and `write`, and where it has
    connections `close`. All else is here: limits, cooldowns, budgets, owners, activity. One thread
    at a time calls these methods, never one that runs an event loop. They may block for a second or
    two, so set time-outs. When they raise anything, calls go on with the limits of their own
    process, and `check` is called every few seconds until it succeeds.

    A forked process must not go on with a connection of its parent: compare `os.getpid()`. What a
    method needs is imported when the state is opened, not in a thread that runs later.
    """

    is_local: ClassVar[bool] = False

    def __init__(
        self, policy: RetryPolicy, clock: Callable[[], float], *, pool: str = "default"
    ) -> None:
        """Open nothing yet.

        Args:
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds, the same in all processes.
            pool: Its name, with which the names of its records begin.
        """
        super().__init__(clock)
        self._pool = pool
        self._lock = Lock(2 * WAIT_S)
        self._deferred = Deferred[tuple[Lease, Outcome]](self)
        self._is_closed = False
        self._rows = self._make_rows(f"{pool}:")
        self._ledger = Ledger(self._rows.records(), policy)

    def _make_rows(self, prefix: str) -> Rows:
        return Rows(prefix, self)

    # The store ------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the texts of records, by name; those that do not exist are left out.

        Args:
            names: At most 500. They hold any characters, line feeds too.
        """

    @abstractmethod
    def read_all(self, prefix: str) -> Mapping[str, str]:
        """Return the texts of all records whose names begin with *prefix*, by name."""

    @abstractmethod
    def write(self, changes: Sequence[Change]) -> bool:
        """Write all *changes*, or none if a record is not as it was read; return whether it did.

        A call changes a few records; with earlier calls that are settled with it, some tens. Only
        the values of keys, and limits that are read from a provider, may be many more: a record for
        each key, and for each model of a project.

        No other process may write between the comparison and the last of the changes: this is one
        statement or one transaction. Limits are as exact as this.
        """

    def check(self) -> None:
        """Check whether records can be read and written; raise what is wrong.

        Raises:
            StoreError: They cannot be.
            UnreadableRecordError: One of them holds a limit, and cannot be read.
        """
        self._run(lambda _: self._rows.read_all(OF_LIMITS))
        name = f"{self._pool}:check"
        self._until_written(
            lambda now: (None, [(name, self.read([name]).get(name), "1", now + DAY_S)])
        )

    def close(self) -> None:
        """Write what was deferred; calls in flight can still be settled.

        A subclass calls this first, and then closes its connections, which a later call opens anew.
        """
        super().close()
        self._is_closed = True
        self._deferred.finish()

    def flush(self) -> None:
        """Write the deferred settles."""
        while self._deferred:
            self._run(lambda _: None)

    # Calls ----------------------------------------------------------------------------------------

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        needed = self._needed(info, [key for _, key in candidates])
        return self._run(
            lambda now: self._ledger.acquire(info, candidates, now, strategy=strategy), needed
        )

    def _needed(self, info: CallInfo, keys: Sequence[Candidate]) -> list[tuple[str, str]]:
        """Return the records about a call; its bucket is often named like its model."""
        model = info.replaced_by if info.replaced_by and info.quota_model else info.quota_model
        old_model = info.quota_model if model != info.quota_model else ""
        needed = [("buckets", one) for one in (model, old_model) if one or not old_model]
        for key in keys:
            needed.append(("learned", quota_name(key.project, model)))
            needed += [("quotas", name) for name in quota_names(key.project, model, info.terms)]
            if old_model:
                old_name = quota_name(key.project, old_model)
                needed += [("learned", old_name), ("quotas", old_name)]
            needed += [("purses", name) for name, _ in purses_of(key, info)]
            needed += [("cooldowns", name) for name in cooldown_names(key)]
        return needed

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        if self.settles_without_io(lease, outcome, names):
            self._deferred.add((lease, outcome))
            return None
        needed = self._needed_to_settle(lease)
        return self._run(lambda now: self._ledger.settle(lease, outcome, names, now), needed)

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> bool:
        """Return whether `settle` only defers; see `State.settles_without_io`."""
        return not self._is_closed and can_wait(lease, outcome, tuple(names))

    def _needed_to_settle(self, lease: Lease) -> list[tuple[str, str]]:
        name, reservation = quota_name(lease.project, lease.bucket), lease.reservation
        needed = [("health", lease.key_id), ("quotas", name), ("learned", name)]
        if isinstance(reservation, Reservation):
            needed += [("quotas", part_name(name, part)) for part in reservation.parts]
            if reservation.old_bucket:
                needed.append(("quotas", quota_name(lease.project, reservation.old_bucket)))
        needed += [("purses", name) for name in lease.purses]
        return needed + [("cooldowns", name) for name in cooldown_names(lease)]

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        needed = self._needed(info, keys)
        return self._run(lambda now: self._ledger.get_blocks(info, keys, now), needed)

    # Decisions ------------------------------------------------------------------------------------

    def _run(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]] = ()) -> _T:
        """Settle what was deferred and make a decision; return its result.

        Raises:
            StoreError: The store cannot be used.
        """
        if settles := self._deferred.take(SETTLES_AT_ONCE):
            decide, needed = self._after(settles, decide), list(needed)
            needed += self._needed_after(settles)

        def work(now: float) -> tuple[_T, list[Change]]:
            self._rows.clear()
            self._rows.read_ahead(needed)
            result = decide(now)
            return result, self._rows.changes(self._clock())

        return self._until_written(work)

    def _after(
        self, settles: list[tuple[Lease, Outcome]], decide: Callable[[float], _T]
    ) -> Callable[[float], _T]:
        """Return a decision that settles first."""

        def both(now: float) -> _T:
            for lease, outcome in settles:
                self._ledger.settle(lease, outcome, (), now)
            return decide(now)

        return both

    def _needed_after(self, settles: list[tuple[Lease, Outcome]]) -> list[tuple[str, str]]:
        return [one for lease, _ in settles for one in self._needed_to_settle(lease)]

    def _until_written(self, work: Callable[[float], tuple[_T, list[Change]]]) -> _T:
        """Do *work*, again and again until nobody was faster; return its result.

        Args:
            work: Gets the time; returns its result and what it changes.

        Raises:
            StoreError: The store cannot be used.
        """
        try:
            with self._lock:
                return self._repeat(work)
        except KeyrotError:
            raise
        except Exception as error:  # its text may hold an address with a password
            raise StoreError(f"{type(error).__name__} in {type(self).__name__}") from error

    def _repeat(self, work: Callable[[float], tuple[_T, list[Change]]]) -> _T:
        ends_at = time.monotonic() + WAIT_S
        while time.monotonic() < ends_at:
            result, changes = work(self._clock())
            if not changes or self.write(changes):
                return result
            time.sleep(random() * LOOK_AGAIN_S)
        raise StoreError(f"other processes were faster for {WAIT_S:g} s")

    # Activity -------------------------------------------------------------------------------------

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool; see `State.add_activity`."""
        self.flush()
        counts, texts = [*rows.counts.items()], [*rows.texts.items()]
        for start in range(0, max(len(counts), len(texts)), ACTIVITY_AT_ONCE):
            some = slice(start, start + ACTIVITY_AT_ONCE)
            self._add(ActivityRows(dict(counts[some]), dict(texts[some])))

    def _add(self, rows: ActivityRows) -> None:
        self._until_written(lambda now: (None, self._activity_changes(rows, now)))

    def _activity_changes(self, rows: ActivityRows, now: float) -> list[Change]:
        names = {**self._names("counts", rows.counts), **self._names("texts", rows.texts)}
        seen, new = self.read([*names]), dict[str, object]()
        for full, name in self._names("counts", rows.counts).items():
            counts = _kept(seen.get(full), name, now, dict)
            for field, n in rows.counts[name].items():
                counts[field] = counts.get(field, 0) + n
            new[full] = counts
        for full, name in self._names("texts", rows.texts).items():
            texts, most = rows.texts[name]
            new[full] = [*_kept(seen.get(full), name, now, list), *texts][-most:]
        ends = {full: now + lifetime_s(name) for full, name in names.items()}
        return [
            (full, seen.get(full), json.dumps([ends[full], one]), ends[full])
            for full, one in new.items()
        ]

    def _names(self, table: str, names: Iterable[str]) -> dict[str, str]:
        """Return the names of records of the activity, by their names in the store."""
        return {_full_name(f"{self._pool}:", table, name): name for name in names}

    def _read_activity(self, table: str, names: Iterable[str]) -> tuple[Mapping[str, str], float]:
        full = [*self._names(table, names)]
        return self._until_written(lambda now: ((_read(self, full), now), []))

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; see `State.activity`."""
        full = {name: one for one, name in self._names("counts", names).items()}
        seen, now = self._read_activity("counts", names)
        found = [_kept(seen.get(full[name]), name, now, dict) for name in names]
        return [
            {name: row[name] for name in (row if fields is None else fields) if name in row}
            for row in found
        ]

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; see `State.activity_log`."""
        seen, now = self._read_activity("texts", [name])
        return list(reversed(_kept(next(iter(seen.values()), None), name, now, list)))


def _kept(text: str | None, name: str, now: float, kind: Callable[[], Any]) -> Any:
    """Return what a record of the activity holds, as a new one of its *kind*; else an empty one."""
    with suppress(ValueError, TypeError):
        until, found = json.loads(text or "")
        if isinstance(found, kind) and now < until <= believed_until(name, now):  # type: ignore[arg-type]
            return found
    return kind()


# Rows --------------------------------------------------------------------------------------------


class Rows:
    """What a decision has read and changed."""

    def __init__(self, prefix: str, store: RecordState) -> None:
        self._store = store
        self.full_name = lru_cache(MAX_NAMES)(partial(_full_name, prefix))
        self.clear()

    def clear(self) -> None:
        """Begin a decision: nothing is read."""
        self.texts: dict[str, str | None] = {}
        """As read; None: there is none."""
        self.found: dict[str, Any] = {}
        self.changed: set[str] = set()
        self.filled: set[str] = set()
        """Tables that have a record, as far as is known."""
        self.empty: set[str] = set()
        """Tables that have none."""

    def records(self) -> Records:
        """Return the tables, for a ledger."""
        names = Records.__dataclass_fields__
        return Records(**{name: RowTable[Any](self, name) for name in names})

    def read_ahead(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Read what a decision needs, as far as is known: tables and names."""
        self.read(wanted)

    def read(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Read records that are needed soon: tables and names."""
        tables = {self.full_name(table, name): table for table, name in wanted}
        found = _read(self._store, [*tables])
        self.texts |= dict.fromkeys(tables) | found
        self.filled.update(tables[name] for name in found)

    def text(self, table: str, name: str) -> str | None:
        """Return a record as it is in the store."""
        full = self.full_name(table, name)
        if full not in self.texts and table not in self.empty:
            self.read([(table, name)])
        return self.texts.setdefault(full)

    def read_all(self, tables: Iterable[str]) -> None:
        """Parse all records of tables."""
        records = self.records()
        for table in tables:
            getattr(records, table).items()

    def read_table(self, prefix: str) -> dict[str, str | None]:
        """Read all records whose names begin so; return all that was read."""
        self.texts.update(self._store.read_all(prefix))
        return self.texts

    def changes(self, now: float) -> list[Change]:
        """Return what the decision has changed, to be written."""
        changes = list[Change]()
        for name in self.changed:
            record = self.found[name]
            text = "" if record is None else dump(record)  # swept soon
            ends = now if record is None else expires_at(record, now)
            changes.append((name, self.texts[name], text, ends))
        return changes


def _read(store: RecordState, names: Sequence[str]) -> dict[str, str]:
    """Read records, no more at once than `RecordState.read` says."""
    found = dict[str, str]()
    for start in range(0, len(names), ROWS_AT_ONCE):
        found.update(store.read(names[start : start + ROWS_AT_ONCE]))
    return found


def _full_name(prefix: str, table: str, name: str) -> str:
    text = f"{prefix}{table}:{name}"
    return text if text.isascii() else text.encode(errors="replace").decode()


class RowTable(Generic[_T]):
    """One table of `Records`."""

    def __init__(self, rows: Rows, table: str) -> None:
        self._rows, self._table = rows, table

    def get(self, name: str) -> _T | None:
        """Return a record; see `Table`."""
        rows, full = self._rows, self._rows.full_name(self._table, name)
        if full not in rows.found:
            text = rows.text(self._table, name)
            rows.found[full] = load(self._table, full, text) if text else None
        found: _T | None = rows.found[full]
        return found

    def __setitem__(self, name: str, record: _T | None) -> None:
        self.get(name)
        full = self._rows.full_name(self._table, name)
        self._rows.found[full] = record
        self._rows.changed.add(full)

    def pop(self, name: str, default: None) -> None:
        """Remove a record; see `Table`."""
        del default
        rows, full = self._rows, self._rows.full_name(self._table, name)
        if rows.text(self._table, name):
            rows.found[full] = None
            rows.changed.add(full)

    def keys(self) -> list[str]:
        """Read the whole table, and return the names."""
        start = self._rows.full_name(self._table, "")
        texts = self._rows.read_table(start)
        return [name.removeprefix(start) for name in texts if name.startswith(start)]

    def items(self) -> list[tuple[str, _T]]:
        """Return all records; see `Table`."""
        found = [(name, self.get(name)) for name in self.keys()]
        return [(name, record) for name, record in found if record is not None]

    def __len__(self) -> int:
        return self._table in self._rows.filled  # that of a decision was read before
