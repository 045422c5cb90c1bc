"""`memory://`: the state of one process, exact for threads and tasks, under one lock.

Nothing is awaited and no I/O happens under the lock, so tasks may call it as well as threads.
Cooldowns, windows and counts exist only for what was used; expired ones are removed when their
number has doubled, so unused keys cost nothing.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

from ..core.ledger import (
    NO_SPENDING,
    Cooldowns,
    Health,
    KeyHealth,
    Ledger,
    Owner,
    Records,
    Reservation,
    Table,
    UnleasedUsage,
    expires_at,
)
from ..core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from ..core.selection import RankedCandidates
from ..core.spending import Spending
from ..core.windows import QuotaWindows
from ..errors import warn_unless_logged
from ..forks import after_fork
from .base import Holder, HolderRef, SharedState, is_abandoned

__all__ = [
    "BoundedDict",
    "Holders",
    "MemoryState",
]

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")


MAX_OWNERS = 100_000
MAX_BUCKETS = 1_000
MAX_CLAIMS = 10_000
SWEEP_AT = 256


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


class _Records(Records):
    """The records of a pool in dictionaries."""

    def __init__(self) -> None:
        self.quotas = dict[str, QuotaWindows]()
        self.cooldowns = dict[str, Cooldowns]()
        self.leases = dict[str, dict[str, float]]()
        self.spending = dict[str, Spending]()
        self.health = dict[str, Health]()
        self.configured = dict[str, Limits]()
        self.buckets = BoundedDict[str](MAX_BUCKETS)
        self.owners = BoundedDict[Owner](MAX_OWNERS)
        self.claims = BoundedDict[float](MAX_CLAIMS)
        self._sweep_at = SWEEP_AT

    def sweep(self, now: float) -> None:
        """Drop expired records, if their number has doubled since the last time."""
        if len(self.quotas) < self._sweep_at:
            return
        tables: tuple[Table[Any], ...] = (self.quotas, self.cooldowns, self.spending)
        for table in tables:
            for name in [name for name, one in table.items() if expires_at(one, now) <= now]:
                table.pop(name, None)
        self._sweep_at = max(SWEEP_AT, 2 * len(self.quotas))

    def forget_usage(self) -> None:
        """Drop what was counted."""
        self.quotas = dict[str, QuotaWindows]()
        self.spending = dict[str, Spending]()


class Holders:
    """The calls of this process that hold leases, by the id of the lease.

    A lease is added before it is granted, and removed before it is settled, so that one whose
    call is interrupted in between is gone as well.
    """

    def __init__(self) -> None:
        self._held: dict[str, HolderRef] = {}

    def add(self, lease_id: str, holder: Holder | None) -> None:
        """Record which call holds a lease; None: it is held until it is settled."""
        held, ref = self._held, None
        if holder is not None:
            ref = weakref.ref(holder, lambda _: held.pop(lease_id, None))
        held[lease_id] = ref

    def remove(self, lease_id: str) -> None:
        """Forget a lease: it is settled, or was not granted."""
        self._held.pop(lease_id, None)

    def is_gone(self, lease_id: str) -> bool:
        """Return whether a lease of this process will never be settled."""
        try:
            return is_abandoned(self._held[lease_id])
        except KeyError:
            return True

    def clear(self) -> None:
        """Forget all: they are the parent's."""
        self._held.clear()


class MemoryState(SharedState):
    """The pool's state inside this process."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float],
        share: float = 1.0,
        *,
        pool: str | None = None,
    ) -> None:
        """Start empty.

        Args:
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds.
            share: The part of each limit that this process may use; 0 < share <= 1.
            pool: Its name, to warn when a forked process counts by itself; None: do not warn.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._records = _Records()
        self._holders = Holders()
        self._ledger = Ledger(
            self._records, policy, self._holders.is_gone, counts_all=True, share=share
        )
        self._ids = map(str, count(1))
        self._pool, self._warns = pool, False
        after_fork(self, MemoryState._after_fork)

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*; see `State.acquire`."""
        if self._warns:
            self._warn_of_fork()
        with self._lock:
            now = self._clock()
            self._records.sweep(now)
            return self._acquire(info, candidates, now, spread=spread, holder=holder)

    def _acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        now: float,
        *,
        spread: bool,
        holder: Holder | None,
    ) -> Lease | Unavailable:
        lease_id = next(self._ids)
        self._holders.add(lease_id, holder)
        reply = self._ledger.acquire(info, candidates, lease_id, now, spread=spread)
        if isinstance(reply, Unavailable):
            self._holders.remove(lease_id)
        return reply

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`."""
        with self._lock:
            return self._settle(lease, outcome, names, self._clock())

    def _settle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str], now: float
    ) -> float | None:
        if isinstance(lease.reservation, Reservation) and outcome.kind is not LeaseOutcome.SERVING:
            self._holders.remove(lease.reservation.lease_id)
        return self._ledger.settle(lease, outcome, names, now)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        with self._lock:
            return self._ledger.get_owner(names, self._clock())

    def reset(self, key: Candidate) -> None:
        """Forget the cooldowns of this key, its project and account, and its learned limits."""
        with self._lock:
            self._ledger.reset(key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget learned limits whose key has new configured limits; see `State.configure`."""
        with self._lock:
            self._ledger.configure(candidates)

    def record_usage(
        self,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int] = NO_SPENDING,
        report: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Count requests that were sent without a lease; see `SharedState.record_usage`."""
        del report, again  # no reply and no data gets lost here
        with self._lock:
            self._ledger.record_usage(usages, spending, self._clock())

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.get_blocks`."""
        with self._lock:
            return self._ledger.get_blocks(info, candidates, self._clock())

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        with self._lock:
            return self._ledger.snapshot(candidates, self._clock())

    def claim(self, name: str, seconds: float) -> float:
        """Take *name* for so long; see `State.claim`."""
        with self._lock:
            return self._ledger.claim(name, seconds, self._clock())

    def _warn_of_fork(self) -> None:
        self._warns = False
        warn_unless_logged(
            _log,
            f"pool {self._pool}: this process was forked, and KEYROT_STATE_URL is memory://: each "
            "process counts its own requests, and together they may exceed limits. Set "
            "KEYROT_STATE_URL=sqlite for the processes of one host, or a Redis for several hosts",
        )

    def _after_fork(self) -> None:
        """Drop the calls in flight in a forked child: they are its parent's."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self._holders.clear()
        self._ledger.end_leases()
        self._warns = self._pool is not None
