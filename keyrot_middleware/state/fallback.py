"""What stands in for a shared state that is unreachable: the limits of this process.

A lease is settled with the state that granted it. What happens while the shared state is
unreachable is not reported to it afterwards: counts are advice, and a 429 is the book. This process
keeps for that time what its own calls have found, cooldowns, learned limits and owners, and counts
on from what it has sent itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, TypeVar

from ..core.activity import ActivityRows, versions_name
from ..core.ledger import KeyHealth
from ..core.model import (
    Block,
    Budget,
    CallInfo,
    Candidate,
    Lease,
    Limits,
    Outcome,
    Strategy,
    Unavailable,
)
from ..core.selection import RankedCandidates
from ..errors import KeyrotError, warn_unless_logged
from ..locks import Lock
from .base import BusyError, OtherVersionError, State, without_reservation
from .memory import MemoryState

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")

PART_BESIDE = 0.1
"""Of each limit, what a process uses beside another version of this package whose records it does
not know: the other ones use the whole, and how many are as this one is unknown."""
FIRST_PAUSE_S, PAUSE_S = 0.1, 2.0
"""Before the first trial, and between two trials at the most."""


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
        self._is_beside = False
        """Another version uses the state in a way that this one does not know."""

    @property
    def degraded(self) -> bool:
        """Return whether in-process limits apply, or did a moment ago."""
        return self._breaker.lost_at is not None

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        def local() -> Lease | Unavailable:
            offer = tuple((group, self._part_of(key)) for group, key in candidates)
            reply = self._local._acquire(self._part_of_call(info), offer, strategy=strategy)
            return reply._replace(degraded=True) if isinstance(reply, Lease) else reply

        reply = self._call(
            lambda: self._shared._acquire(info, candidates, strategy=strategy), local
        )
        if isinstance(reply, Lease) and not reply.degraded:
            self._local.count(reply)
        return reply

    def _part_of(self, key: Candidate) -> Candidate:
        if not self._is_beside:
            return key
        return replace(key, use=key.use * PART_BESIDE, usd=_part_of_budget(key.usd))

    def _part_of_call(self, info: CallInfo) -> CallInfo:
        if not self._is_beside or info.terms is None:
            return info
        return info._replace(terms=info.terms._replace(usd=_part_of_budget(info.terms.usd)))

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        if lease.degraded:
            return self._local._settle(lease, outcome, names)
        is_lost = False

        def lose() -> None:
            nonlocal is_lost
            is_lost = True

        until, local = self._call(lambda: self._shared._settle(lease, outcome, names), lose), None
        if outcome.verdict is not None or names or lease.probe or lease.purses:
            known = lease if lease.purses else without_reservation(lease)  # it counts what they pay
            local = self._local._settle(known, outcome, names)
        return local if is_lost else until

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> bool:
        """Return whether the shared state settles without I/O, or does not know *lease*."""
        return lease.degraded or self._shared.settles_without_io(lease, outcome, names)

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        return self._call(
            lambda: self._shared.get_blocks(info, keys),
            lambda: self._local.get_blocks(
                self._part_of_call(info), [self._part_of(key) for key in keys]
            ),
        )

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys = list(candidates)
        return self._call(lambda: self._shared.snapshot(keys), lambda: self._local.snapshot(keys))

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        names = tuple(names)
        found = self._call(lambda: self._shared.get_owner(names), lambda: None)
        return found or self._local.get_owner(names)

    def reset(self, key: Candidate) -> None:
        """Forget what blocks *key*; see `State.reset`."""
        self._local.reset(key)
        if self._is_beside:  # it may end the record that cannot be read
            with suppress(Exception):
                self._shared.reset(key)
        self._call(lambda: self._shared.reset(key), _nothing)

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        self._call(lambda: self._shared.record_values(candidates), _nothing)

    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read; see `State.take_limits`."""
        self._local.take_limits(project, found)
        self._call(lambda: self._shared.take_limits(project, found), _nothing)

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool; what is not taken is dropped."""
        self._call(lambda: self._shared.add_activity(rows), _nothing)

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; nothing while degraded."""
        return self._call(lambda: self._shared.activity(names, fields), lambda: [{} for _ in names])

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; nothing while degraded."""
        return self._call(lambda: self._shared.activity_log(name), list)

    def check(self) -> None:
        """Check whether the shared state works; warn if it does not."""
        self._call(self._shared.check, _nothing)

    def close(self) -> None:
        """Close connections and threads."""
        super().close()
        self._shared.close()

    def try_at_once(self, work: Callable[[], _T]) -> _T:
        """Do *work* if the shared state waits for nobody; see `State.try_at_once`."""
        return self._shared.try_at_once(work)

    # Calling the shared state ---------------------------------------------------------------------

    def _call(self, call: Callable[[], _T], local: Callable[[], _T]) -> _T:
        """Call the shared state; call *local* if it fails, and while it is unreachable.

        While it is, a thread tries every few seconds whether it is back, so that no call waits.
        """
        if self._breaker.is_open:
            if self._breaker.may_try():
                trial = threading.Thread(
                    target=self._try_again, name="keyrot-state-trial", daemon=True
                )  # a daemon: the exit does not wait for it
                with suppress(RuntimeError):  # none can be started
                    trial.start()
            return local()
        began = self._breaker.clock()
        try:
            found = call()
        except BusyError:
            raise
        except Exception as error:
            self._is_beside = isinstance(error, OtherVersionError)
            if self._breaker.open(began):
                reason, part = _reason(error), ""
                if self._is_beside:
                    reason += self._versions()
                    part = f", of which this process uses {PART_BESIDE:.0%}"
                warn_unless_logged(
                    _log,
                    f"pool {self._pool}: the shared state cannot be used ({reason}); "
                    f"falling back to in-process limits{part}",
                )
            return local()
        if (seconds := self._breaker.succeed(began)) is not None:
            text = "pool %s: the shared state is back after %.1f s; limits are shared again"
            _log.warning(text, self._pool, seconds)
        return found

    def _versions(self) -> str:
        """Say which versions use the state, if it is known."""
        with suppress(Exception):
            (found,) = self._shared.activity([versions_name(self._clock())], None)
            return f"; versions that used it today: {', '.join(sorted(found))}" if found else ""
        return ""

    def _try_again(self) -> None:
        with suppress(Exception):  # it is still away
            self._shared.check()
            self._breaker.close()


def _part_of_budget(usd: Budget) -> Budget:
    return Budget(*(None if most is None else int(most * PART_BESIDE) for most in usd))


def _nothing() -> None:
    """Return nothing: only the shared state has this."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, KeyrotError) else type(error).__name__
