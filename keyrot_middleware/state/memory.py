"""States of this process: `memory://`, and what stands in for a shared state that is unreachable.

In memory, limits are exact for threads and tasks, under one lock. A lease is settled with the state
that granted it. What happens while the shared state is unreachable is not reported to it
afterwards: counts are advice, and a 429 is the book. This process keeps what its own calls
have found, cooldowns, learned limits and owners, for that time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from ..core.activity import ActivityRows, lifetime_s
from ..core.ledger import KeyHealth, Ledger, Owner, Records, Table
from ..core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    Limits,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from ..core.selection import RankedCandidates
from ..errors import KeyrotError, warn_unless_logged
from ..forks import after_fork
from ..locks import Lock
from .base import State, expires_at, without_reservation

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


class MemoryState(State):
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
        super().__init__(clock)
        self._lock = Lock()
        self._records = Records(owners=BoundedDict[Owner](MAX_OWNERS))
        self._ledger = Ledger(self._records, policy, share)
        self._sweep_at = SWEEP_AT
        self._activity: dict[str, tuple[float, dict[str, int]]] = {}
        """By record: until when it is kept, and its counts."""
        self._texts: BoundedDict[deque[str]] = BoundedDict(MAX_LISTS)
        self._pool, self._warns = pool, False
        after_fork(self, MemoryState._after_fork)

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, spread: bool
    ) -> Lease | Unavailable:
        if self._warns:
            self._warn_of_fork()
        with self._lock:
            now = self._clock()
            if len(self._records.quotas) >= self._sweep_at:
                self._sweep(now)
            return self._ledger.acquire(info, candidates, now, spread=spread)

    def _sweep(self, now: float) -> None:
        """Drop expired records: a program may use any number of models one after the other."""
        records = self._records
        tables: tuple[Table[Any], ...] = (records.quotas, records.learned, records.cooldowns)
        for table in tables:
            for name in [name for name, one in table.items() if expires_at(one, now) <= now]:
                table.pop(name, None)
        self._sweep_at = max(SWEEP_AT, 2 * len(records.quotas))

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        with self._lock:
            return self._ledger.settle(lease, outcome, names, self._clock())

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        with self._lock:
            return self._ledger.get_blocks(info, keys, self._clock())

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        with self._lock:
            return self._ledger.get_owner(names, self._clock())

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        with self._lock:
            return self._ledger.snapshot(candidates, self._clock())

    def reset(self, key: Candidate) -> None:
        """Forget the cooldowns of this key, its project and account, and its learned limits."""
        with self._lock:
            self._ledger.reset(key)

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        with self._lock:
            self._ledger.record_values(candidates)

    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read; see `State.take_limits`."""
        with self._lock:
            self._ledger.take_limits(project, found, self._clock())

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of this process; see `State.add_activity`."""
        with self._lock:
            self._add_activity(rows, self._clock())

    def _add_activity(self, rows: ActivityRows, now: float) -> None:
        for name, fields in rows.counts.items():
            if name not in self._activity:
                kept = self._activity.items()
                self._activity = {one: found for one, found in kept if found[0] > now}
                self._activity[name] = now + lifetime_s(name), {}
            counts = self._activity[name][1]
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
            return self._read_activity(names, fields)

    def _read_activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        found = [self._activity[name][1] if name in self._activity else {} for name in names]
        if fields is None:
            return [dict(row) for row in found]
        return [{name: row[name] for name in fields if name in row} for row in found]

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


FIRST_PAUSE_S, PAUSE_S = 0.1, 2.0
"""Before the first trial, and between two trials at the most."""
_FAILED: Any = object()


class Breaker:
    """Decides when a state that fails is called again: after a pause, which doubles.

    A trial that succeeds proves little: the calls may fail all the same. So the state is back when
    a call has succeeded `PAUSE_S` after the trial.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed; *clock* returns monotonic seconds."""
        self.clock = clock
        self._lock = Lock()
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = self._closed_at = 0.0
        self.is_open = False
        self.lost_at: float | None = None
        """When it failed; None: it is back."""

    def open(self, began: float) -> bool:
        """Record the failure of a call that *began* then; return whether the state was well before.

        One that began before the breaker closed says nothing about the time since.
        """
        with self._lock:
            if self.is_open or began < self._closed_at:
                return False
            now, was_well = self.clock(), self.lost_at is None
            if was_well:
                self._pause_s, self.lost_at = FIRST_PAUSE_S, now
            self.is_open, self._retry_at = True, now + self._pause_s
            return was_well

    def may_try(self) -> bool:
        """Return whether the state may be tried now; the next trial may follow after a pause."""
        with self._lock:
            now = self.clock()
            if not self.is_open or now < self._retry_at:
                return False
            self._pause_s = min(2 * self._pause_s, PAUSE_S)
            self._retry_at = now + self._pause_s
            return True

    def close(self) -> None:
        """Record that a trial has succeeded: calls go to the state again."""
        with self._lock:
            if self.is_open:
                self.is_open, self._closed_at = False, self.clock()

    def succeed(self, began: float) -> float | None:
        """Record a call that *began* then; return how long the state was lost, if it is back."""
        lost_at = self.lost_at
        if lost_at is None:
            return None
        with self._lock:
            if self.lost_at != lost_at or self.is_open or began < self._closed_at + PAUSE_S:
                return None
            self.lost_at = None
            return self._closed_at - lost_at


class FallbackState(State):
    """It raises no errors."""

    is_local: ClassVar[bool] = False

    def __init__(
        self,
        shared: State,
        local: MemoryState,
        pool: str,
        clock: Callable[[], float],
        breaker: Breaker | None = None,
    ) -> None:
        """Start without calling the shared state.

        Args:
            shared: May raise anything, and block up to its own time limit.
            local: Used by this object only.
            pool: Its name, for messages.
            clock: Returns epoch seconds.
            breaker: Decides when *shared* is tried again after a failure.
        """
        super().__init__(clock)
        self._shared, self._local, self._pool = shared, local, pool
        self._breaker = breaker or Breaker()
        self._activity_failed = False

    @property
    def degraded(self) -> bool:
        """Return whether in-process limits apply, or did a moment ago."""
        return self._breaker.lost_at is not None

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, spread: bool
    ) -> Lease | Unavailable:
        reply = self._call(lambda: self._shared._acquire(info, candidates, spread=spread))
        if reply is _FAILED:
            reply = self._local._acquire(info, candidates, spread=spread)
            return reply._replace(degraded=True) if isinstance(reply, Lease) else reply
        found: Lease | Unavailable = reply
        return found

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        if lease.degraded:
            return self._local._settle(lease, outcome, names)
        local = None
        if outcome.verdict is not None or names or lease.probe:
            local = self._local._settle(without_reservation(lease), outcome, names)
        until = self._call(lambda: self._shared._settle(lease, outcome, names))
        return local if until is _FAILED else until

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> bool:
        """Return whether the shared state settles without I/O, or does not know *lease*."""
        return lease.degraded or self._shared.settles_without_io(lease, outcome, names)

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        return self._first(
            lambda: self._shared.get_blocks(info, keys), lambda: self._local.get_blocks(info, keys)
        )

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys = list(candidates)
        return self._first(lambda: self._shared.snapshot(keys), lambda: self._local.snapshot(keys))

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        names = tuple(names)
        found: Any = self._call(lambda: self._shared.get_owner(names))
        return self._local.get_owner(names) if found in (_FAILED, None) else found

    def reset(self, key: Candidate) -> None:
        """Forget what blocks *key*; see `State.reset`."""
        self._local.reset(key)
        self._call(lambda: self._shared.reset(key))

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        self._call(lambda: self._shared.record_values(candidates))

    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read; see `State.take_limits`."""
        self._local.take_limits(project, found)
        self._call(lambda: self._shared.take_limits(project, found))

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool; what is not taken is dropped."""
        self._for_pages(lambda: self._shared.add_activity(rows), None)

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; nothing while degraded."""
        nothing: list[Mapping[str, int]] = [{} for _ in names]
        return self._for_pages(lambda: self._shared.activity(names, fields), nothing)

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; nothing while degraded."""
        return self._for_pages(lambda: self._shared.activity_log(name), [])

    def check(self) -> None:
        """Check whether the shared state works; warn if it does not."""
        self._call(self._shared.check)

    def close(self) -> None:
        """Close connections and threads."""
        super().close()
        self._shared.close()

    # Calling the shared state ---------------------------------------------------------------------

    def _call(self, call: Callable[[], Any]) -> Any:
        """Call the shared state; return `_FAILED` if it fails, and while it is unreachable.

        While it is, a thread tries every few seconds whether it is back, so that no call waits.
        """
        if self._breaker.is_open:
            if self._breaker.may_try():
                trial = threading.Thread(
                    target=self._try_again, name="keyrot-state-trial", daemon=True
                )  # a daemon: the exit does not wait for it
                with suppress(RuntimeError):  # none can be started
                    trial.start()
            return _FAILED
        began = self._breaker.clock()
        try:
            found = call()
        except Exception as error:
            if self._breaker.open(began):
                warn_unless_logged(
                    _log,
                    f"pool {self._pool}: the shared state cannot be used ({_reason(error)}); "
                    "falling back to in-process limits",
                )
            return _FAILED
        if (seconds := self._breaker.succeed(began)) is not None:
            text = "pool %s: the shared state is back after %.1f s; limits are shared again"
            _log.warning(text, self._pool, seconds)
        return found

    def _try_again(self) -> None:
        with suppress(Exception):  # it is still away
            self._shared.check()
            self._breaker.close()

    def _first(self, call: Callable[[], _T], local: Callable[[], _T]) -> _T:
        found = self._call(call)
        return local() if found is _FAILED else found

    def _for_pages(self, call: Callable[[], _T], default: _T) -> _T:
        """Call what no limit depends on; return *default* while it is away, or if it fails.

        A failure does not open the breaker: the user may lack a command that only pages need.
        """
        if self._breaker.is_open:
            return default
        try:
            return call()
        except Exception as error:
            if not self._activity_failed:
                self._activity_failed = True
                _log.warning(
                    "pool %s: the activity of calls cannot be shared (%s); limits are not affected",
                    self._pool,
                    _reason(error),
                )
            return default


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, KeyrotError) else type(error).__name__
