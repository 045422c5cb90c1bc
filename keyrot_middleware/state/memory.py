"""`memory://`: the state of one process, in which limits are exact for threads and tasks."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..core.activity import ActivityRows, believed_until, lifetime_s
from ..core.ledger import Ledger, Owner, Records, Table
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
from ..errors import warn_unless_logged
from ..forks import after_fork
from ..locks import Lock
from .base import LedgerState, expires_at

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")

MAX_OWNERS = 100_000
SWEEP_AT = 256
MAX_LISTS = 500


class BoundedDict(OrderedDict[str, _T]):
    """Keeps the entries that were stored last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, name: str, value: _T) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        if len(self) > self.most:
            self.popitem(last=False)


class MemoryState(LedgerState):
    """The pool's state inside this process."""

    def __init__(
        self, policy: RetryPolicy, clock: Callable[[], float], *, pool: str | None = None
    ) -> None:
        """Start empty.

        Args:
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds.
            pool: Its name, to warn when a forked process counts by itself; None: do not warn.
        """
        super().__init__(clock)
        self._lock = Lock()
        self._records = Records(owners=BoundedDict[Owner](MAX_OWNERS))
        self._ledger = Ledger(self._records, policy)
        self._sweep_at = SWEEP_AT
        self._activity: dict[str, tuple[float, dict[str, int]]] = {}
        """By record: until when it is kept, and its counts."""
        self._texts: BoundedDict[deque[str]] = BoundedDict(MAX_LISTS)
        self._pool, self._warns = pool, False
        after_fork(self, MemoryState._after_fork)

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        if self._warns:
            self._warn_of_fork()
        with self._lock:
            now = self._clock()
            self._sweep(now)
            return self._ledger.acquire(info, candidates, now, strategy=strategy)

    def count(self, lease: Lease) -> None:
        """Count a lease that a shared state has granted, in case that it is lost."""
        with self._lock:
            now = self._clock()
            self._sweep(now)
            self._ledger.count(lease, now)

    def _sweep(self, now: float) -> None:
        """Drop expired records: a program may use any number of models one after the other."""
        records = self._records
        if len(records.quotas) < self._sweep_at:
            return
        tables: tuple[Table[Any], ...] = (records.quotas, records.learned, records.cooldowns)
        for table in tables:
            for name in [name for name, one in table.items() if expires_at(one, now) <= now]:
                table.pop(name, None)
        self._sweep_at = max(SWEEP_AT, 2 * len(records.quotas))

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        with self._lock:
            return self._ledger.settle(lease, outcome, names, self._clock())

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        return self._run(lambda now: self._ledger.get_blocks(info, keys, now))

    def _run(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]] = ()) -> _T:
        del needed  # they are here
        with self._lock:
            return decide(self._clock())

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of this process; see `State.add_activity`."""
        self._run(lambda now: self._add_activity(rows, now))

    def _add_activity(self, rows: ActivityRows, now: float) -> None:
        kept = self._activity.items()
        self._activity = {
            name: one for name, one in kept if now < one[0] <= believed_until(name, now)
        }
        for name, fields in rows.counts.items():
            _, counts = self._activity.setdefault(name, (now + lifetime_s(name), {}))
            for field, n in fields.items():
                counts[field] = counts.get(field, 0) + n
        for name, (texts, most) in rows.texts.items():
            known = self._texts.get(name)
            self._texts[name] = deque(known or (), maxlen=most)
            self._texts[name].extend(texts)

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; see `State.activity`."""
        with self._lock:
            return self._counts(names, fields)

    def _counts(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        found = [self._activity[name][1] if name in self._activity else {} for name in names]
        return [
            {name: row[name] for name in (row if fields is None else fields) if name in row}
            for row in found
        ]

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; see `State.activity_log`."""
        with self._lock:
            return list(reversed(self._texts.get(name) or ()))

    def _warn_of_fork(self) -> None:
        self._warns = False
        warn_unless_logged(
            _log,
            f"pool {self._pool}: this process was forked, and KEYROT_STATE_URL is memory://: each "
            "process counts its own requests, and together they may exceed limits. Set "
            "KEYROT_STATE_URL=sqlite for the processes of one host, or a Redis for several hosts",
        )

    def _after_fork(self) -> None:
        self._warns = self._pool is not None
