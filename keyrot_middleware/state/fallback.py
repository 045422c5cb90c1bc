"""Falls back to in-process limits while the shared state is unreachable.

While the shared state works, its leases are reserved a second time in windows of this process, so
that these can take over at once. While it does not work, they decide alone, with a share of each
limit. When it is back, it receives once what it missed: usage, verdicts, owners and resets. A
shared state that has lost data receives what this process has counted in it since that data was
saved, or everything of the current windows; every process sends its own part. A background thread
sends it, and a caller waits for that a little.

Limitations (ADR 0010): cooldowns found by other processes are unknown during an outage, and those
from before a data loss are found again with one request each.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

from ..core.activity import ActivityBatch, ActivityView, CallRecord, History, ShareKind, Span
from ..core.ledger import (
    KeyHealth,
    Reservation,
    Table,
    UnleasedUsage,
    quota_name,
    quota_of_name,
    spending_name,
)
from ..core.model import (
    IN_USE,
    NO_LIMITS,
    NO_USAGE,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Verdict,
)
from ..core.selection import RankedCandidates
from ..core.spending import Spending, nano_usd
from ..core.windows import QuotaWindows, next_minute, next_pacific_midnight
from ..errors import KeyrotError, warn_unless_logged
from ..forks import after_fork
from .base import (
    Counted,
    DataLoss,
    DataLostError,
    Holder,
    SharedState,
    State,
    without_reservation,
)
from .circuit_breaker import CircuitBreaker
from .memory import BoundedDict, MemoryState

__all__ = ["FallbackState", "LocalWindows"]

_log = logging.getLogger("keyrot_middleware")

_Unreported = tuple[list[UnleasedUsage], dict[str, int]]
"""Requests, and billionths of a dollar by project."""

REPORT_S = 0.1
"""How long a call waits until the shared state has received reports, seconds."""
COLLECT_S = 0.25
"""How long a call waits after a data loss, so that other processes report their usage too."""
USAGES_PER_REPORT = 100
MAX_REFUSED = 10_000
_SHORT = IN_USE | {"tpm"}
"""Reasons that may not concern the next request."""
SAME_SETTLE_S = 50.0
"""How long the shared state knows by its lease that it has received a settle, seconds."""
REPORTS_KEPT = 1_000
"""Verdicts, owners and resets kept during an outage; the oldest are dropped."""
TRIES = 3
"""A report that fails this often is dropped, so that it does not block the others."""
_UNREACHABLE = object()


class _DelayedCall(NamedTuple):
    """A call of the shared state that is made later."""

    call: Callable[[], object]
    ends_at: float | None = None
    """When it is obsolete, epoch seconds."""
    tries: int = 1
    again: bool = False
    """It reports what was counted before a data loss."""


class LocalWindows(MemoryState):
    """The windows and cooldowns of this process, beside a shared state."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float], share: float = 1.0) -> None:
        """Start empty; see MemoryState."""
        super().__init__(policy, clock, share)
        self._missed: dict[str, QuotaWindows] = {}
        """Usage that the shared state does not know, by the name of its record."""
        self._missed_spending: dict[str, Spending] = {}
        """What was spent and the shared state does not know, likewise."""
        self._refused: BoundedDict[Block] = BoundedDict(MAX_REFUSED)
        """Why the shared state refused a key, by model and record."""

    @property
    def has_missed(self) -> bool:
        """Return whether there is usage that the shared state does not know."""
        return bool(self._missed or self._missed_spending)

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.get_blocks`."""
        keys = list(candidates)
        return super().get_blocks(info, keys) | self._refusals(info, keys)

    def _refusals(self, info: CallInfo, keys: Iterable[Candidate]) -> dict[str, Block]:
        now, refused = self._clock(), self._refused
        found = {key.key_id: refused.get(_refusal_name(info, key)) for key in keys if refused}
        return {key_id: block for key_id, block in found.items() if block and block.until > now}

    def record_refusals(
        self, info: CallInfo, candidates: RankedCandidates, reply: Lease | Unavailable
    ) -> None:
        """Remember which keys the shared state has refused, and until when."""
        blocks = reply.refused if isinstance(reply, Lease) else reply.blocks
        chosen = reply.key_id if isinstance(reply, Lease) else None
        if not blocks and not self._refused:
            return
        with self._lock:
            for _, key in candidates:
                block, name = blocks.get(key.key_id), _refusal_name(info, key)
                if block is not None and block.reason not in _SHORT:
                    self._refused[name] = block
                elif key.key_id == chosen:
                    self._refused.pop(name, None)

    def reset(self, key: Candidate) -> None:
        """Forget all that blocks this key; see `State.reset`."""
        self._refused.clear()
        super().reset(key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Use new limits; see `State.configure`."""
        self._refused.clear()
        super().configure(candidates)

    def record_grant(self, granted: Lease, info: CallInfo, holder: Holder | None) -> Lease:
        """Reserve a lease of the shared state here too.

        Args:
            granted: The lease.
            info: The call.
            holder: See `State.acquire`.

        Returns:
            The lease to use; its `reservation.granted` is the one of the shared state.
        """
        with self._lock:
            lease_id = next(self._ids)
            self._holders.add(lease_id, holder)
            return self._ledger.copy(granted, info, lease_id, self._clock())

    def take_all(self) -> _Unreported:
        """Return usage in the current windows and today's spending; nothing is missed then."""
        with self._lock:
            self._missed.clear()
            self._missed_spending.clear()
            now, records = self._clock(), self._records
            return _usages(records.quotas, now), _spent_today(records.spending, now)

    def take_missed(self) -> _Unreported:
        """Return usage and spending that the shared state does not know; nothing is missed then."""
        with self._lock:
            missed, self._missed = self._missed, {}
            spendings, self._missed_spending = self._missed_spending, {}
            now = self._clock()
            return _usages(missed, now), _spent_today(spendings, now)

    def usage_of(self, counted: Iterable[Counted]) -> _Unreported:
        """Return what requests and costs amount to in the current windows."""
        quotas: dict[str, QuotaWindows] = {}
        spendings: dict[str, Spending] = {}
        for one in counted:
            if one.spent:
                spending = spendings.setdefault(spending_name(one.project), Spending())
                spending.advance(one.at)
                spending.spent += one.spent
            else:
                quota = quotas.setdefault(quota_name(one.project, one.bucket), QuotaWindows())
                near_boundary = quota.advance(one.at)
                quota.reserve(one.requests, one.tokens, near_boundary=near_boundary)
        now = self._clock()
        return _usages(quotas, now), _spent_today(spendings, now)

    def time(self) -> float:
        """Return the time, epoch seconds."""
        return self._clock()

    def forget_usage(self) -> None:
        """Drop the usage in a forked child: the parent reports it."""
        self._missed.clear()
        self._missed_spending.clear()
        self._records.forget_usage()

    def _acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        now: float,
        *,
        spread: bool,
        holder: Holder | None,
    ) -> Lease | Unavailable:
        """Acquire a lease of a key that the shared state has not refused until later."""
        refused = self._refusals(info, [key for _, key in candidates])
        offer = tuple(one for one in candidates if one[1].key_id not in refused)
        reply = super()._acquire(info, offer, now, spread=spread, holder=holder)
        if isinstance(reply, Unavailable):
            reply.blocks.update(refused)
            return reply
        name = quota_name(reply.project, reply.bucket)
        missed = self._missed.setdefault(name, QuotaWindows())
        missed.reserve(info.requests, info.tokens, near_boundary=missed.advance(now))
        return reply._replace(degraded=True)

    def _settle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str], now: float
    ) -> float | None:
        until = super()._settle(lease, outcome, names, now)
        reservation, usage = lease.reservation, outcome.usage
        if (
            not lease.degraded
            or not isinstance(reservation, Reservation)
            or outcome.kind is LeaseOutcome.SERVING
        ):
            return until
        if lease.has_budget and usage.cost_usd:
            name = spending_name(lease.project)
            spending = self._missed_spending.setdefault(name, Spending())
            spending.advance(now)
            spending.spent += nano_usd(usage.cost_usd)
        missed = self._missed.get(quota_name(lease.project, lease.bucket))
        if missed is None:
            return until
        if outcome.kind is LeaseOutcome.UNSENT:
            missed.adjust(reservation.slot, -lease.requests, -lease.tokens)
        elif usage.input_tokens is not None:
            missed.adjust(reservation.slot, 0, usage.input_tokens - lease.tokens)
        return until


class FallbackState(State):
    """Uses a shared state while it works, and windows of this process while it does not.

    It raises no errors. A lease is settled with the state that granted it.
    """

    is_local: ClassVar[bool] = False

    def __init__(
        self, shared: SharedState, local: LocalWindows, breaker: CircuitBreaker, pool: str
    ) -> None:
        """Start without calling the shared state.

        Args:
            shared: May raise anything, and block up to its own time limit.
            local: Used by this object only.
            breaker: Decides when *shared* is called.
            pool: Its name, for messages.
        """
        self._shared, self._local = shared, local
        self._breaker, self._pool = breaker, pool
        self._loss: DataLoss | None = None
        """The data loss whose usage is being reported."""
        self._has_lost = False
        """The shared state has lost data; it leases no key until what is missing is reported."""
        self._collects_until = 0.0
        """When other processes have reported their usage too, monotonic seconds."""
        self._reports: deque[_DelayedCall] = deque(maxlen=REPORTS_KEPT)
        self._usage: deque[_DelayedCall] = deque()
        self._sending, self._reporting = threading.Lock(), threading.Lock()
        self._reported = threading.Event()
        """Set when the thread that sends reports has ended; see `_report`."""
        self._reported.set()
        self._activity_failed = False
        """A failure of the activity was logged; one in a process is enough."""
        after_fork(self, FallbackState._after_fork)

    @property
    def degraded(self) -> bool:
        """Return whether in-process limits apply."""
        return self._breaker.is_open

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*; see `State.acquire`."""
        for _ in range(2):
            permit = self._permit()
            if permit is None:
                break
            if (pause_s := self._collects_until - time.monotonic()) > 0:
                time.sleep(pause_s)
            try:
                reply = self._shared.acquire(info, candidates, spread=spread, holder=holder)
            except DataLostError:
                self._has_lost = True  # it leases again when it has received what is missing
            except Exception as error:
                self._on_failure(permit, error)
                if (undo := getattr(error, "undo", None)) is not None:
                    self._reports.append(_DelayedCall(undo))
                break
            else:
                self._breaker.record_success(permit)
                self._local.record_refusals(info, candidates, reply)
                if not isinstance(reply, Lease):
                    return reply
                return self._local.record_grant(reply, info, holder)
        return self._local.acquire(info, candidates, spread=spread, holder=holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with the state that granted it; see `State.settle`."""
        names = tuple(names)
        granted = _granted(lease)
        permit = self._breaker.permit_if_closed() if granted is not None else None
        if granted is not None and permit is not None:
            try:
                until = self._shared.settle(granted, outcome, names)
            except Exception as error:
                self._on_failure(permit, error)
            else:  # use the end of the shared state's cooldown
                self._local.settle(lease, _with_until(outcome, until), names)
                return until
        until = self._local.settle(lease, outcome, names)
        if outcome.kind is LeaseOutcome.SERVING:
            return until
        if granted is not None:
            self._shared.release(granted)
            args = granted, outcome, names, until, self._local.time() + SAME_SETTLE_S
            self._reports.append(_DelayedCall(partial(self._settle_later, *args)))
        elif names or _affects_others(outcome.verdict):
            settle = partial(self._settle_unreserved, lease, outcome, names, until)
            self._reports.append(_DelayedCall(settle, None if names else until))
        return until

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> bool:
        """Return whether the shared state settles without I/O, or does not know *lease*."""
        granted = _granted(lease)
        return granted is None or self._shared.settles_without_io(granted, outcome, names)

    def _settle_later(
        self,
        granted: Lease,
        outcome: Outcome,
        names: tuple[str, ...],
        until: float | None,
        known_until: float,
    ) -> None:
        """Settle a lease of the shared state, which may have received that already.

        It recognizes that until *known_until*; afterwards it receives only what does no harm twice.
        """
        if self._local.time() < known_until:
            self._shared.settle(granted, _with_until(outcome, until), names)
            return
        if granted.has_budget and outcome.usage.cost_usd:
            amount = nano_usd(outcome.usage.cost_usd)
            self._shared.record_usage((), {granted.project: amount})
        if names or (_affects_others(outcome.verdict) and not _is_past(until, self._local.time())):
            self._settle_unreserved(granted, outcome, names, until)

    def _settle_unreserved(
        self, lease: Lease, outcome: Outcome, names: tuple[str, ...], until: float | None
    ) -> None:
        known = _with_until(outcome, until)._replace(kind=LeaseOutcome.FAILURE, usage=NO_USAGE)
        if outcome.verdict is None:
            known = Outcome(LeaseOutcome.ABANDONED)
        self._shared.settle(without_reservation(lease), known, names)

    async def aacquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Async version of `acquire`; in a thread unless the shared state answers at once."""
        if self._is_calm:
            with self._shared.inline() as at_once:
                if at_once:
                    return self.acquire(info, candidates, spread=spread, holder=holder)
        return await super().aacquire(info, candidates, spread=spread, holder=holder)

    async def asettle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()
    ) -> float | None:
        """Async version of `settle`; in a thread unless the shared state answers at once."""
        if self._is_calm:
            with self._shared.inline() as at_once:
                if at_once:
                    return self.settle(lease, outcome, names)
        return await super().asettle(lease, outcome, names)

    @property
    def _is_calm(self) -> bool:
        """Return whether a call waits for nothing but the shared state."""
        behind = self._breaker.is_open or self._is_behind
        return not behind and time.monotonic() >= self._collects_until

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        names = tuple(names)
        owner: tuple[str, str] | None
        owner = self._call_shared(self._shared.get_owner, names, default=None)
        return owner or self._local.get_owner(names)

    def reset(self, key: Candidate) -> None:
        """Forget all that blocks this key; the shared state is updated later if unreachable."""
        self._local.reset(key)
        self._call_or_report(self._shared.reset, key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget learned limits whose key has new configured limits; see `State.configure`."""
        keys = list(candidates)
        self._local.configure(keys)
        self._call_or_report(self._shared.configure, keys)

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values in use, if known; see `State.with_values`."""
        keys = list(candidates)
        found: list[Candidate] = self._call_shared(self._shared.with_values, keys, default=keys)
        return found

    def record_spending(self, project: str, amount: int) -> None:
        """Count what requests without a lease have cost; there too, maybe later."""
        self._local.record_spending(project, amount)
        self._call_or_report(self._shared.record_usage, (), {project: amount}, _report_id())

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; while degraded, by in-process limits."""
        keys = list(candidates)
        found = self._call_shared(self._shared.get_blocks, info, keys)
        return self._local.get_blocks(info, keys) if found is _UNREACHABLE else found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key; while degraded, in this process."""
        keys = list(candidates)
        found = self._call_shared(self._shared.snapshot, keys)
        return self._local.snapshot(keys) if found is _UNREACHABLE else found

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity of the pool; while degraded it is dropped."""
        self._call_for_pages(self._shared.record_activity, batch)

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of the pool; nothing while degraded."""
        found = self._call_for_pages(self._shared.activity, tuple(key_ids), now)
        return super().activity(key_ids, now) if found is None else found

    def activity_history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of an entry; zeros while degraded."""
        found = self._call_for_pages(self._shared.activity_history, entry, span, now)
        return super().activity_history(entry, span, now) if found is None else found

    def activity_shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model or workload; nothing while degraded."""
        return self._call_for_pages(self._shared.activity_shares, kind, span, now) or {}

    def failures_of(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed; nothing while degraded."""
        return self._call_for_pages(self._shared.failures_of, key_id) or []

    def claim(self, name: str, seconds: float) -> float:
        """Take *name* in the shared state; while degraded, in this process."""
        local = self._local.claim(name, seconds)
        found: float = self._call_shared(self._shared.claim, name, seconds, default=local)
        return found

    def check(self) -> None:
        """Check whether the shared state works; warn if it fails twice."""
        if self._call_shared(self._shared.check) is _UNREACHABLE:
            self._call_shared(self._shared.check)

    def close(self) -> None:
        """Close connections and threads."""
        super().close()
        self._shared.close()

    # Calling the shared state ---------------------------------------------------------------------

    def _permit(self) -> int | None:
        """Return a permit to call the shared state; None while it is unreachable.

        While it is, one caller every few seconds tries whether it is back: a write must succeed,
        since reading works where writing is refused, and it receives what it has missed.
        """
        if self._breaker.is_open and self._sending.locked():
            return None  # another caller tries
        permit = self._breaker.acquire_permit()
        if permit is None or not (self._breaker.is_open or self._is_behind):
            return permit
        self._report(permit)
        return self._breaker.permit_if_closed()

    def _call_shared(
        self, method: Callable[..., Any], *args: Any, default: Any = _UNREACHABLE
    ) -> Any:
        """Call a method of the shared state; return *default* if it is unreachable or fails."""
        permit = self._permit()
        if permit is None:
            return default
        try:
            return method(*args)
        except Exception as error:
            self._on_failure(permit, error)
            return default

    def _call_or_report(self, method: Callable[..., Any], *args: Any) -> None:
        """Call a method of the shared state, later if it is unreachable or fails."""
        if self._call_shared(method, *args) is _UNREACHABLE:
            self._reports.append(_DelayedCall(partial(method, *args)))

    def _call_for_pages(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method that no limit depends on; return None while degraded, or if it fails.

        A failure does not open the circuit breaker: the user may lack a command that only pages
        need, or something else wrote into these records.
        """
        if self._breaker.is_open:
            return None
        try:
            return method(*args)
        except Exception as error:
            if not self._activity_failed:
                self._activity_failed = True
                _log.warning(
                    "pool %s: the activity of calls cannot be shared (%s); limits are not affected",
                    self._pool,
                    _reason(error),
                )
            return None

    def _on_failure(self, permit: int, error: Exception) -> None:
        if self._breaker.record_failure(permit):
            warn_unless_logged(
                _log,
                f"pool {self._pool}: the shared state cannot be used ({_reason(error)}); "
                "falling back to in-process limits",
            )

    # Reports of what it missed --------------------------------------------------------------------

    @property
    def _is_behind(self) -> bool:
        return self._has_lost or self._local.has_missed or bool(self._reports or self._usage)

    def _report(self, permit: int) -> None:
        """Send the shared state what it has missed, in a thread; wait for that a little."""
        if self._sending.acquire(blocking=False):
            self._reported.clear()
            work = partial(self._report_and_recover, permit)
            try:
                threading.Thread(target=work, name="keyrot-reports", daemon=True).start()
            except RuntimeError:  # no thread can be started
                work()
        self._reported.wait(REPORT_S)

    def _report_and_recover(self, permit: int) -> None:
        try:
            self._shared.check()
            self._send_reports()
            if self._breaker.is_open:
                seconds = self._breaker.record_success(permit)
                if seconds is not None:
                    text = "pool %s: the shared state is back after %.1f s; limits are shared again"
                    _log.warning(text, self._pool, seconds)
                self._send_reports()  # what calls have used meanwhile
        except Exception as error:
            self._on_failure(permit, error)
        finally:
            self._reported.set()
            self._sending.release()

    def _send_reports(self) -> None:
        """Send the shared state what it has missed.

        Raises:
            Exception: Of the shared state; unsent reports are kept.
        """
        with self._reporting:
            if (loss := self._shared.take_loss()) is not None:
                self._loss = loss
                self._replace_lost(loss)
            if self._local.has_missed:
                self._add(*self._local.take_missed())
            self._send(self._usage)
            if self._loss is not None:
                self._shared.accept_loss(self._loss)
                self._collects_until = time.monotonic() + COLLECT_S
            self._loss, self._has_lost = None, False
            self._send(self._reports)

    def _replace_lost(self, loss: DataLoss) -> None:
        """Queue what is missing after a data loss, in place of what an earlier one has queued."""
        if loss.missing is None:  # all usage is reported, with what is in the queue
            self._usage.clear()
            self._add(*self._local.take_all(), again=True)
        else:
            queued = [report for report in self._usage if not report.again]
            self._usage.clear()
            self._usage.extend(queued)
            self._add(*self._local.usage_of(loss.missing), again=True)

    def _send(self, reports: deque[_DelayedCall]) -> None:
        while reports:
            report = reports.popleft()
            if _is_past(report.ends_at, self._local.time()):
                continue
            try:
                report.call()
            except Exception:
                if report.tries < TRIES or reports is self._usage:
                    reports.appendleft(report._replace(tries=report.tries + 1))
                raise

    def _add(
        self, usages: Sequence[UnleasedUsage], spending: Mapping[str, int], *, again: bool = False
    ) -> None:
        now = self._local.time()
        for start in range(0, len(usages) or len(spending), USAGES_PER_REPORT):
            some = usages[start : start + USAGES_PER_REPORT]
            args = next_minute(now), some, spending if not start else {}, _report_id()
            report = partial(self._record_usage, *args, again=again)
            self._usage.append(_DelayedCall(report, next_pacific_midnight(now), again=again))

    def _record_usage(
        self,
        minute_end: float,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int],
        report: str,
        *,
        again: bool,
    ) -> None:
        if self._local.time() >= minute_end:
            usages = [usage._replace(requests=0, tokens=0) for usage in usages]
        self._shared.record_usage(usages, spending, report, again=again)

    def _after_fork(self) -> None:
        self._sending, self._reporting = threading.Lock(), threading.Lock()
        self._reported = threading.Event()
        self._reported.set()
        self._loss, self._has_lost = None, False
        self._reports.clear()
        self._usage.clear()
        self._local.forget_usage()


def _granted(lease: Lease) -> Lease | None:
    """Return the lease of the shared state; None if this process granted it."""
    reservation = lease.reservation
    return reservation.granted if isinstance(reservation, Reservation) else lease


def _refusal_name(info: CallInfo, key: Candidate) -> str:
    return f"{info.quota_model}:{info.verb}:{key.record}"


def _report_id() -> str:
    return secrets.token_hex(8)


def _is_past(moment: float | None, now: float) -> bool:
    return moment is not None and moment <= now


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, KeyrotError) else type(error).__name__


def _affects_others(verdict: Verdict | None) -> bool:
    """Return whether a failure concerns other processes."""
    return verdict is not None and (verdict.scope is not Scope.NONE or verdict.learned != NO_LIMITS)


def _with_until(outcome: Outcome, until: float | None) -> Outcome:
    """Return the outcome with the end of the cooldown that a state decided."""
    verdict = outcome.verdict
    if verdict is None or until is None:
        return outcome
    return outcome._replace(verdict=replace(verdict, until=until))


def _usages(quotas: Table[QuotaWindows], now: float) -> list[UnleasedUsage]:
    found = []
    for name, quota in quotas.items():
        quota.advance(now)
        counts = quota.requests, quota.tokens, quota.day_requests
        if any(counts):
            found.append(UnleasedUsage(*quota_of_name(name), *counts))
    return found


def _spent_today(spendings: Table[Spending], now: float) -> dict[str, int]:
    found = {}
    for name, spending in spendings.items():
        spending.advance(now)
        if spending.spent:
            found[name.partition(":")[2]] = spending.spent
    return found
