"""A shared state that cannot be reached is never the outage: this process counts for itself.

While the shared state works, its grants are reserved a second time in windows of this process, so
that these can take over at once. While it does not, they decide alone, with their share of each
limit. When it is back, it is sent once what it missed: what was sent, and verdicts, owners and
resets. A shared state that has lost its memory is sent all that this process has used in the
windows of now; every process sends its own part.

What this gives up (ADR 0010): cooldowns that other processes found are not known in an outage, and
those from before a loss of memory are found again, by one request each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

from ..core.activity import ActivityBatch, ActivityView
from ..core.model import (
    NO_LIMITS,
    NO_USAGE,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Verdict,
)
from ..core.selection import RankedCandidates
from ..core.windows import QuotaWindows
from ..errors import KeyrotError
from ..forks import after_fork
from .base import Holder, KeyHealth, State
from .circuit_breaker import CircuitBreaker
from .memory import MAX_BUCKETS, LocalReservation, MemoryState, put_bounded

__all__ = ["FallbackState", "LocalWindows"]

_log = logging.getLogger("keyrot_middleware")

REPORT_S = 0.1
"""One call reports no longer than this what was missed; the next goes on from there."""
REPORTS_KEPT = 1_000
"""Verdicts, owners and resets of one outage; of more the oldest are dropped."""


TRIES = 3
"""A verdict that fails so often is dropped, so that it does not keep the shared state away."""


class _Report(NamedTuple):
    """Something to tell the shared state."""

    call: Callable[[], object]
    ends_at: float | None = None
    """When it says nothing any more, epoch seconds."""
    tries: int = 1


class Usage(NamedTuple):
    """What was sent with a project's keys to one model bucket; see `State.record_usage`."""

    key: Candidate
    bucket: str
    requests: int
    tokens: int
    day_requests: int


class LocalWindows(MemoryState):
    """The windows and cooldowns of this process, beside a shared state."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float], share: float = 1.0) -> None:
        """Know nothing yet.

        Args:
            policy: For the lengths of exponential cooldowns.
            clock: Returns epoch seconds.
            share: Of each limit, what this process may use while it decides alone; 0 < share <= 1.
        """
        super().__init__(policy, clock)
        self._missed: dict[tuple[str, str], QuotaWindows] = {}
        """What was granted here, and the shared state does not know, by project and bucket."""
        if share < 1.0:
            self._new_quota = _quota_of_share(share)

    @property
    def has_missed(self) -> bool:
        """Return whether anything was granted that the shared state does not know."""
        return bool(self._missed)

    def record_grant(self, granted: Lease, model: str, holder: Holder | None) -> Lease:
        """Reserve here too what the shared state has granted.

        Args:
            granted: Its lease.
            model: As asked for.
            holder: As `State.acquire` has it.

        Returns:
            The lease to go on with; its `reservation.granted` is the other.
        """
        with self._lock:
            now = self._clock()
            if granted.bucket != model:
                put_bounded(self._buckets, model, granted.bucket, MAX_BUCKETS)
            quota = self._quota(granted.project, granted.bucket)
            slot = quota.reserve(
                granted.requests, granted.tokens, now, near_boundary=quota.advance(now)
            )
            number = self._add_in_flight(granted.key_id, holder)
            self._health_of(granted.key_id).last_used = now
        reservation = LocalReservation(quota, slot, (), model, granted, number)
        return granted._replace(reservation=reservation)

    def usage(self) -> list[Usage]:
        """Return all that this process has used in the windows of now; the rest is not missed."""
        with self._lock:
            self._missed.clear()
            return _usages(self._quotas, self._clock())

    def take_missed(self) -> list[Usage]:
        """Return what the shared state does not know; from now on it counts as reported."""
        with self._lock:
            missed, self._missed = self._missed, {}
            return _usages(missed, self._clock())

    def time(self) -> float:
        """Return the time, epoch seconds."""
        return self._clock()

    def forget_usage(self) -> None:
        """Leave it to the parent to report, in a forked child."""
        self._missed.clear()
        self._quotas.clear()

    def _grant(
        self,
        best: tuple[Candidate, QuotaWindows, bool],
        bucket: str,
        info: CallInfo,
        now: float,
        holder: Holder | None,
    ) -> Lease:
        lease = super()._grant(best, bucket, info, now, holder)
        missed = self._missed.setdefault((lease.project, bucket), QuotaWindows())
        missed.reserve(info.requests, info.tokens, now, near_boundary=missed.advance(now))
        return lease._replace(degraded=True)

    def _release(self, lease: Lease, outcome: Outcome) -> None:
        super()._release(lease, outcome)
        missed = self._missed.get((lease.project, lease.bucket)) if lease.degraded else None
        if missed is None or not isinstance(lease.reservation, LocalReservation):
            return
        if outcome.kind is LeaseOutcome.UNSENT:
            missed.adjust(lease.reservation.slot, -lease.requests, -lease.tokens)
        elif outcome.usage.input_tokens is not None:
            missed.adjust(lease.reservation.slot, 0, outcome.usage.input_tokens - lease.tokens)


class FallbackState(State):
    """A shared state while it works, the process's own windows while it does not.

    It raises nothing of its own. A lease is settled with the state that granted it.
    """

    is_local: ClassVar[bool] = False

    def __init__(
        self, shared: State, local: LocalWindows, breaker: CircuitBreaker, pool: str
    ) -> None:
        """Ask nothing yet.

        Args:
            shared: May raise anything, and block for as long as its own time limit.
            local: This process's own; nothing else uses it.
            breaker: Decides when *shared* is asked.
            pool: Its name, for messages.
        """
        self._shared, self._local = shared, local
        self._breaker, self._pool = breaker, pool
        self._losses = self._losses_reported = shared.data_losses
        """Up to which loss of memory the shared state has been sent all, and for which one `_usage`
        was filled."""
        self._reports: deque[_Report] = deque(maxlen=REPORTS_KEPT)
        self._usage: deque[_Report] = deque()
        self._reporting = threading.Lock()
        after_fork(self, FallbackState._after_fork)

    @property
    def degraded(self) -> bool:
        """Return whether this process counts for itself."""
        return self._breaker.is_open

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Reserve one key of *candidates*; see `State.acquire`."""
        permit = self._permit()
        if permit is not None:
            try:
                if self._is_behind:
                    self._send_reports()
                losses = self._losses
                reply = self._shared.acquire(info, candidates, spread=spread, holder=holder)
                if self._shared.data_losses != losses:  # granted without knowing what was used
                    self._send_reports(wait=True)
                    if isinstance(reply, Lease):
                        self._shared.settle(reply, Outcome(LeaseOutcome.UNSENT))
                    reply = self._shared.acquire(info, candidates, spread=spread, holder=holder)
            except Exception as error:
                self._on_failure(permit, error)
            else:
                if not isinstance(reply, Lease):
                    return reply
                return self._local.record_grant(reply, info.quota_model, holder)
        return self._local.acquire(info, candidates, spread=spread, holder=holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Book what became of *lease* with the state that granted it; see `State.settle`."""
        names = tuple(names)
        reservation = lease.reservation
        granted = reservation.granted if isinstance(reservation, LocalReservation) else lease
        permit = self._breaker.permit_if_closed() if granted is not None else None
        if granted is not None and permit is not None:
            try:
                until = self._shared.settle(granted, outcome, names)
            except Exception as error:
                self._on_failure(permit, error)
            else:  # the cooldown of the shared state is the one that is kept
                self._local.settle(lease, _with_until(outcome, until), names)
                return until
        until = self._local.settle(lease, outcome, names)
        if granted is not None and outcome.kind is not LeaseOutcome.SERVING:
            self._shared.release(granted)
        if outcome.kind is not LeaseOutcome.SERVING and (names or _affects_others(outcome.verdict)):
            by_hand = (granted or lease)._replace(reservation=None, degraded=False)
            known = _with_until(outcome, until)._replace(kind=LeaseOutcome.FAILURE, usage=NO_USAGE)
            if outcome.verdict is None:
                known = Outcome(LeaseOutcome.ABANDONED)
            ends_at = None if names else until
            self._reports.append(
                _Report(partial(self._shared.settle, by_hand, known, names), ends_at)
            )
        return until

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return whose key made one of *names*; see `State.owner`."""
        names = tuple(names)
        return self._call_shared(self._shared.get_owner, names) or self._local.get_owner(names)

    def reset(self, key: Candidate) -> None:
        """Forget all that blocks this key; the shared state is updated later if it must be."""
        self._local.reset(key)
        if self._call_shared(_returning_true(self._shared.reset), key) is None:
            self._reports.append(_Report(partial(self._shared.reset, key)))

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget what was learned before configured limits changed; there too, maybe later."""
        keys = list(candidates)
        self._local.configure(keys)
        if self._call_shared(_returning_true(self._shared.configure), keys) is None:
            self._reports.append(_Report(partial(self._shared.configure, keys)))

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return keys as those of the values in use, as far as is known; see `State.with_values`."""
        keys = list(candidates)
        found = self._call_shared(self._shared.with_values, keys)
        return keys if found is None else found

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; while degraded, as this process decides."""
        keys = list(candidates)
        found = self._call_shared(self._shared.get_blocks, info, keys)
        return self._local.get_blocks(info, keys) if found is None else found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key; while degraded, what this process alone knows."""
        keys = list(candidates)
        found = self._call_shared(self._shared.snapshot, keys)
        return self._local.snapshot(keys) if found is None else found

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity of the pool; while degraded it is dropped."""
        self._ask(self._shared.record_activity, batch)

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of the pool; nothing while degraded."""
        found = self._ask(self._shared.activity, tuple(key_ids), now)
        return super().activity(key_ids, now) if found is None else found

    def check(self) -> None:
        """Check whether the shared state works; where it does not, a warning says so."""
        self._call_shared(_returning_true(self._shared.check))

    def close(self) -> None:
        """Let go of connections and threads."""
        super().close()
        self._shared.close()

    # Whether the shared state is asked ------------------------------------------------------------

    def _permit(self) -> int | None:
        """Return a permit to ask the shared state; None while it is out of reach.

        While it is, one caller every few seconds finds out whether it is back: it must take a
        write, since reading works where writing is refused, and it is sent what it has missed.
        """
        permit = self._breaker.acquire_permit()
        if permit is None or not self._breaker.is_open:
            return permit
        try:
            self._shared.check()
            self._send_reports()
        except Exception as error:
            self._on_failure(permit, error)
            return None
        seconds = self._breaker.record_success(permit)
        if seconds is not None:
            text = "pool %s: the shared state is back after %.1f s; limits are shared again"
            _log.warning(text, self._pool, seconds)
        return permit

    def _call_shared(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the shared state; None where it cannot be asked, or failed."""
        permit = self._permit()
        if permit is None:
            return None
        try:
            return method(*args)
        except Exception as error:
            self._on_failure(permit, error)
            return None

    def _on_failure(self, permit: int, error: Exception) -> None:
        if self._breaker.record_failure(permit):
            why = str(error) if isinstance(error, KeyrotError) else type(error).__name__
            _log.warning(
                "pool %s: the shared state cannot be used (%s); falling back to in-process limits",
                self._pool,
                why,
            )

    # What it has missed ---------------------------------------------------------------------------

    @property
    def _is_behind(self) -> bool:
        return bool(self._local.has_missed or self._reports or self._usage)

    def _send_reports(self, *, wait: bool = False) -> None:
        """Return the shared state what it has missed.

        Args:
            wait: While another caller reports, wait until it has; else nothing is done then.

        Raises:
            Exception: Of the shared state; what was not sent yet is kept.
        """
        if not self._reporting.acquire(blocking=wait):
            return
        try:
            losses = self._shared.data_losses
            if losses != self._losses_reported:
                self._losses_reported = losses
                self._usage.clear()  # all of it is part of what comes now
                self._add(self._local.usage())
            else:
                self._add(self._local.take_missed())
            until = time.monotonic() + REPORT_S
            while (reports := self._usage or self._reports) and time.monotonic() < until:
                report = reports.popleft()
                if report.ends_at is not None and report.ends_at <= self._local.time():
                    continue
                try:
                    report.call()
                except Exception:
                    if report.tries < TRIES or reports is self._usage:
                        reports.appendleft(report._replace(tries=report.tries + 1))
                    raise
            if not self._usage:
                self._losses = losses
        finally:
            self._reporting.release()

    def _add(self, usages: Iterable[Usage]) -> None:
        for key, bucket, requests, tokens, day in usages:
            counts = {"requests": requests, "tokens": tokens, "day_requests": day}
            self._usage.append(_Report(partial(self._shared.record_usage, key, bucket, **counts)))

    def _after_fork(self) -> None:
        self._reporting = threading.Lock()
        self._reports.clear()
        self._usage.clear()
        self._local.forget_usage()


def _returning_true(method: Callable[..., None]) -> Callable[..., bool]:
    """Make a method without a reply give one: that it was called."""

    def call(*args: Any) -> bool:
        method(*args)
        return True

    return call


def _affects_others(verdict: Verdict | None) -> bool:
    """Return whether other processes have something to learn from a failure."""
    return verdict is not None and (verdict.scope is not Scope.NONE or verdict.learned != NO_LIMITS)


def _with_until(outcome: Outcome, until: float | None) -> Outcome:
    """Name in the outcome the end of the cooldown, where only a state could tell."""
    verdict = outcome.verdict
    if verdict is None or until is None:
        return outcome
    return outcome._replace(verdict=replace(verdict, until=until))


def _usages(quotas: dict[tuple[str, str], QuotaWindows], now: float) -> list[Usage]:
    found = []
    for (project, bucket), quota in quotas.items():
        quota.advance(now)
        requests, tokens = quota.used
        if requests or tokens or quota.day_requests:
            key = Candidate("", project, "", record="")
            found.append(Usage(key, bucket, requests, tokens, quota.day_requests))
    return found


def _quota_of_share(share: float) -> type[QuotaWindows]:
    """Make windows of which this process has only a *share* of each limit, one at the least."""

    def part(limit: int | None) -> int | None:
        return None if limit is None else min(limit, max(1, int(limit * share)))

    class PartOfQuota(QuotaWindows):
        __slots__ = ()

        def limits(self, configured: Limits) -> Limits:
            whole = super().limits(configured)
            return whole if whole is NO_LIMITS else Limits(*map(part, whole))

    return PartOfQuota
