"""`memory://`: the state of one process, exact for threads and tasks, under one lock.

Nothing is awaited and no I/O happens under the lock, so tasks may call it as well as threads.
Cooldowns, windows and counts exist only for what was used; expired ones are removed when their
number has doubled, so unused keys cost nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from math import inf
from typing import NamedTuple, TypeVar

from ..core.affinity import owner_lifetime
from ..core.model import (
    NO_LIMITS,
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
from ..core.spending import NANO, Spending, nano_usd, price_suffix
from ..core.windows import (
    DAY_S,
    PROBE_POLL_S,
    VALID_S,
    Cooldown,
    QuotaWindows,
    Slot,
    scope_key,
    scope_keys,
)
from ..forks import after_fork
from .base import (
    NO_SPENDING,
    Holder,
    HolderRef,
    KeyHealth,
    State,
    UnleasedUsage,
    Used,
    is_abandoned,
)

__all__ = [
    "MemoryState",
    "put_bounded",
    "snapshot",
]

# Bounded tables ---------------------------------------------------------------------------------


_T = TypeVar("_T")


def put_bounded(table: OrderedDict[str, _T], name: str, value: _T, most: int) -> None:
    """Store *value* in *table* as its newest entry; keep at most *most* entries."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > most:
        table.popitem(last=False)


# Snapshots --------------------------------------------------------------------------------------


_LatestCooldowns = dict[tuple[str, str], tuple[str, Cooldown]]
"""By `key`, `project` or `billing` and its id: the scope and the cooldown that ends last; of
several that end together the one that blocks all calls, not only those of a model or method."""


def snapshot(
    keys: Iterable[Candidate],
    known: Mapping[str, KeyHealth],
    quotas: Mapping[tuple[str, str], QuotaWindows],
    cooldowns: Mapping[tuple[str, ...], Cooldown],
    *,
    spending: Mapping[str, Spending],
    now: float,
) -> dict[str, KeyHealth]:
    """Return the health of *keys* as of *now*, by id, in linear time."""
    used: dict[str, list[Used]] = {}
    for (project, bucket), quota in quotas.items():
        quota.advance(now)
        used.setdefault(project, []).append(
            Used(bucket, quota.requests, quota.tokens, quota.day_requests, quota.learned)
        )
    latest = _latest_cooldowns(cooldowns, now)
    found = {}
    for key in keys:
        health = _describe(key, known.get(key.key_id, KeyHealth()), used, latest)
        if key.usd_per_day is not None:
            health.spent_usd = _spent(spending.get(key.project), now)
        found[key.key_id] = health
    return found


def _expected(spending: Spending, bucket: str, info: CallInfo) -> int:
    """Return what a request may cost in the service tier that it asks for."""
    priced_as = bucket + price_suffix(info.service_tier)
    return spending.expected(priced_as, info.input_cost, info.longest_cost)


def _spent(spending: Spending | None, now: float) -> float:
    if spending is None:
        return 0.0
    spending.advance(now)
    return spending.spent / NANO


def _latest_cooldowns(
    cooldowns: Mapping[tuple[str, ...], Cooldown], now: float
) -> _LatestCooldowns:
    latest: _LatestCooldowns = {}
    for name, cooldown in cooldowns.items():
        who = name[0].partition("_")[0], name[1]
        if cooldown.is_active(now) and (
            who not in latest or _end(name[0], cooldown) > _end(*latest[who])
        ):
            latest[who] = name[0], cooldown
    return latest


def _describe(
    key: Candidate,
    known: KeyHealth,
    used: dict[str, list[Used]],
    latest: _LatestCooldowns,
) -> KeyHealth:
    health = KeyHealth(known.last_used, known.success_count, known.error_count)
    health.last_error = known.last_error
    health.used = used.get(key.project, ())
    mine = (
        ("billing", key.billing_account),
        ("project", key.project),
        ("key", key.record),
    )
    found = [latest[who] for who in mine if who in latest]
    if found:
        health.cooldown_scope, cooldown = max(found, key=lambda one: _end(*one))
        health.cooldown_until, health.cooldown_reason = cooldown.until, cooldown.failure
    return health


def _end(scope: str, cooldown: Cooldown) -> tuple[float, bool]:
    """Return when a cooldown ends, and whether it blocks all calls of its scope."""
    return cooldown.until, "_" not in scope


MAX_OWNERS = 100_000
MAX_BUCKETS = 1_000
MAX_CLAIMS = 10_000
SWEEP_AT = 256
CHECK_ABANDONED_EVERY = 256
"""Each time a key has this many leases in flight, abandoned ones are removed."""


class LocalReservation(NamedTuple):
    """What was reserved for a lease."""

    quota: QuotaWindows
    slot: Slot
    probing: tuple[Cooldown, ...]
    """Ended cooldowns whose probe the lease is."""
    model: str
    """As requested; the lease has only the bucket."""
    granted: Lease | None = None
    """The lease of the shared state, if this is the copy of its reservation (fallback.py)."""
    number: int = 0
    """Identifies it among the leases of its key in flight."""
    spending: Spending | None = None
    """Of the key's project, if that has a budget."""


class MemoryState(State):
    """The pool's state inside this process."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._quotas: dict[tuple[str, str], QuotaWindows] = {}
        self._configured: dict[str, Limits] = {}
        self._cooldowns: dict[tuple[str, ...], Cooldown] = {}
        self._in_flight: dict[str, dict[int, HolderRef]] = {}
        """Per key: the holders of its leases in flight, by number."""
        self._numbers = count(1)
        self._health: dict[str, KeyHealth] = {}
        self._buckets: OrderedDict[str, str] = OrderedDict()
        self._owners: OrderedDict[str, tuple[tuple[str, str], float]] = OrderedDict()
        """The owner of each stored resource, and until when it is remembered, epoch seconds."""
        self._claims: OrderedDict[str, float] = OrderedDict()
        """Until when each name is taken, epoch seconds."""
        self._spending: dict[str, Spending] = {}
        """By project; only of those that have a budget."""
        self._budget_share = 1.0
        self._new_quota: Callable[[], QuotaWindows] = QuotaWindows
        self._sweep_at = SWEEP_AT
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
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(info.quota_model, info.quota_model)
            quotas, resting = self._quotas, bool(self._cooldowns)
            blocks: dict[str, Block] = {}
            best: tuple[Candidate, QuotaWindows, bool] | None = None
            best_group, best_share = 0, inf
            for group, key in candidates:
                if best is not None and (group != best_group or not spread):
                    break
                quota = quotas.get((key.project, bucket)) or self._quota(key.project, bucket)
                calm = quota.valid_until - VALID_S <= now < quota.valid_until
                near_boundary = not calm and quota.advance(now)
                block = self._cooldown_block(key, bucket, info.verb, now) if resting else None
                if key.limits is NO_LIMITS and quota.learned is NO_LIMITS:
                    share = quota.requests / key.weight
                else:
                    limits = quota.limits(key.limits)
                    block = block or self._limit_block(
                        key, quota, limits, info, now, near_boundary=near_boundary
                    )
                    share = quota.utilization(limits, key.weight) if spread else 0.0
                if block is None and key.usd_per_day is not None:
                    block = self._budget_block(key, key.usd_per_day, bucket, info, now)
                if block is not None:
                    blocks[key.key_id] = block
                elif best is None or share < best_share:
                    best, best_group, best_share = (
                        (key, quota, near_boundary),
                        group,
                        share,
                    )
            if best is None:
                return Unavailable(now, blocks)
            lease = self._grant(best, bucket, info, now, holder)
            return lease._replace(refused=blocks) if blocks else lease

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`."""
        with self._lock:
            now = self._clock()
            if outcome.kind is LeaseOutcome.SERVING:
                self._clear_cooldowns(lease, now)
                return None
            self._release(lease, outcome)
            for name in names:
                self._set_owner(name, (lease.key_id, lease.project), now)
            verdict = outcome.verdict
            health = self._health.get(lease.key_id) or self._health_of(lease.key_id)
            if outcome.kind is LeaseOutcome.SUCCESS:
                health.success_count += 1
                reservation = lease.reservation
                if (
                    isinstance(reservation, LocalReservation)
                    and reservation.quota.learned is not NO_LIMITS
                ):
                    reservation.quota.drop_exceeded_limits(
                        lease.requests, outcome.usage.input_tokens or 0
                    )
                if self._cooldowns:
                    self._clear_cooldowns(lease, now)
            if verdict is None:
                return None
            if outcome.kind is not LeaseOutcome.ABANDONED:  # else a person disabled the key
                health.error_count += 1
                health.last_error = verdict.failure
            return self._apply_verdict(lease, verdict, now)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        with self._lock:
            now = self._clock()
            return next((owner for name in names if (owner := self._owner(name, now))), None)

    def _set_owner(self, name: str, owner: tuple[str, str], now: float) -> None:
        put_bounded(self._owners, name, (owner, now + owner_lifetime(name).seconds), MAX_OWNERS)

    def _owner(self, name: str, now: float) -> tuple[str, str] | None:
        owner, until = self._owners.get(name, (None, 0.0))
        if owner is not None and until <= now:
            del self._owners[name]
            return None
        if owner is not None and owner_lifetime(name).renewed:
            self._set_owner(name, owner, now)
        return owner

    def reset(self, key: Candidate) -> None:
        """Forget the cooldowns of this key, its project and account, and its learned limits."""
        mine = {
            "key": key.record,
            "project": key.project,
            "billing": key.billing_account,
        }
        with self._lock:
            for name in tuple(self._cooldowns):
                if name[1] == mine[name[0].partition("_")[0]]:
                    del self._cooldowns[name]
            self._forget_learned({key.project})

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget learned limits whose key has new configured limits; see `State.configure`."""
        with self._lock:
            changed: set[str] = set()
            for key in candidates:
                if self._configured.get(key.key_id, NO_LIMITS)[:3] != key.limits[:3]:
                    self._configured[key.key_id] = key.limits
                    changed.add(key.project)
            self._forget_learned(changed)

    def record_usage(
        self,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int] = NO_SPENDING,
        report: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Count requests that were sent without a lease; see `State.record_usage`."""
        del report, again  # no reply and no data gets lost here
        with self._lock:
            now = self._clock()
            for project, bucket, requests, tokens, day_requests in usages:
                quota = self._quota(project, bucket)
                quota.reserve(requests, tokens, near_boundary=quota.advance(now))
                quota.day_requests += day_requests - requests
            for project, amount in spending.items():
                self._advanced_spending(project, now).spent += amount

    def record_spending(self, project: str, amount: int) -> None:
        """Count what requests without a lease have cost; see `State.record_spending`."""
        with self._lock:
            self._advanced_spending(project, self._clock()).spent += amount

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.blocked`."""
        found: dict[str, Block] = {}
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(info.quota_model, info.quota_model)
            for key in candidates:
                quota = self._quotas.get((key.project, bucket)) or self._new_quota()
                near_boundary = quota.advance(now)
                limits = quota.limits(key.limits)
                block = self._cooldown_block(key, bucket, info.verb, now)
                block = block or self._limit_block(
                    key, quota, limits, info, now, near_boundary=near_boundary
                )
                if block is None and key.usd_per_day is not None:
                    block = self._budget_block(key, key.usd_per_day, bucket, info, now)
                if block is not None:
                    found[key.key_id] = block
        return found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        with self._lock:
            tables = self._health, self._quotas, self._cooldowns
            return snapshot(candidates, *tables, spending=self._spending, now=self._clock())

    def claim(self, name: str, seconds: float) -> float:
        """Take *name* for so long; see `State.claim`."""
        with self._lock:
            now = self._clock()
            left = self._claims.get(name, now) - now
            if 0 < left <= seconds:
                return left
            put_bounded(self._claims, name, now + seconds, MAX_CLAIMS)
            return 0.0

    def _forget_learned(self, projects: Collection[str]) -> None:
        for (project, _), quota in self._quotas.items() if projects else ():
            if project in projects:
                quota.forget_learned()

    def _after_fork(self) -> None:
        """Drop the calls in flight in a forked child: they are its parent's."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self._in_flight.clear()
        for spending in self._spending.values():
            spending.reserved.clear()
        for cooldown in self._cooldowns.values():
            cooldown.probe = None

    def _quota(self, project: str, bucket: str) -> QuotaWindows:
        quota = self._quotas.get((project, bucket))
        if quota is None:
            if len(self._quotas) >= self._sweep_at:
                self._sweep()
            quota = self._quotas[(project, bucket)] = self._new_quota()
        return quota

    def _health_of(self, key_id: str) -> KeyHealth:
        return self._health.setdefault(key_id, KeyHealth())

    def _cooldown_block(self, key: Candidate, bucket: str, verb: str, now: float) -> Block | None:
        for name in scope_keys(key, bucket, verb):
            cooldown = self._cooldowns.get(name)
            if cooldown is not None and (block := cooldown.blocked_by(now)) is not None:
                return block
        return None

    def _limit_block(
        self,
        key: Candidate,
        quota: QuotaWindows,
        limits: Limits,
        info: CallInfo,
        now: float,
        *,
        near_boundary: bool,
    ) -> Block | None:
        most = limits.max_concurrency
        if most is not None and self._is_at_max_concurrency(key.key_id, most):
            return Block("concurrency", now + PROBE_POLL_S, waitable=True)
        return quota.blocked_by(limits, info.requests, info.tokens, near_boundary=near_boundary)

    def _budget_block(
        self,
        key: Candidate,
        usd_per_day: float,
        bucket: str,
        info: CallInfo,
        now: float,
    ) -> Block | None:
        """Return why the budget of the key's project does not allow a request."""
        if not info.requests:  # it costs nothing
            return None
        spending = self._advanced_spending(key.project, now)
        budget = nano_usd(usd_per_day * self._budget_share)
        expected = _expected(spending, bucket, info)
        block = spending.blocked_by(budget, expected, now)
        if block is None or not block.waitable:
            return block
        for key_id, number in tuple(spending.reserved):
            held = self._in_flight.get(key_id, {})
            if number not in held or is_abandoned(held[number]):  # ended without being settled
                del spending.reserved[key_id, number]
        return spending.blocked_by(budget, expected, now)

    def _advanced_spending(self, project: str, now: float) -> Spending:
        spending = self._spending.get(project)
        if spending is None:
            spending = self._spending[project] = Spending()
        spending.advance(now)
        return spending

    def _reserve_spending(
        self,
        key: Candidate | Lease,
        number: int,
        bucket: str,
        info: CallInfo,
        now: float,
    ) -> Spending | None:
        """Reserve what a request may cost; None if it costs nothing."""
        if not info.requests:
            return None
        spending = self._advanced_spending(key.project, now)
        expected = _expected(spending, bucket, info)
        spending.reserved[key.key_id, number] = expected
        return spending

    def _is_at_max_concurrency(self, key_id: str, most: int) -> bool:
        held = self._in_flight.get(key_id)
        if held is None or len(held) < most:
            return most <= 0
        self._drop_abandoned(held)
        return len(held) >= most

    def _add_in_flight(self, key_id: str, holder: Holder | None) -> int:
        """Add a lease of *key_id* in flight; return its number."""
        held = self._in_flight.get(key_id)
        if held is None:
            held = self._in_flight[key_id] = {}
        elif not len(held) % CHECK_ABANDONED_EVERY:
            self._drop_abandoned(held)
        number = next(self._numbers)
        held[number] = None if holder is None else weakref.ref(holder)
        return number

    @staticmethod
    def _drop_abandoned(held: dict[int, HolderRef]) -> None:
        """Remove leases whose call ended without settling them: interrupted or lost."""
        for number in [number for number, holder in held.items() if is_abandoned(holder)]:
            del held[number]

    def _grant(
        self,
        best: tuple[Candidate, QuotaWindows, bool],
        bucket: str,
        info: CallInfo,
        now: float,
        holder: Holder | None,
    ) -> Lease:
        key, quota, near_boundary = best
        probing = self._cooldowns_to_probe(key, bucket, info.verb) if self._cooldowns else ()
        slot = quota.reserve(info.requests, info.tokens, near_boundary=near_boundary)
        key_id = key.key_id
        number = self._add_in_flight(key_id, holder)
        (self._health.get(key_id) or self._health_of(key_id)).last_used = now
        has_budget = key.usd_per_day is not None
        spending = self._reserve_spending(key, number, bucket, info, now) if has_budget else None
        reservation = LocalReservation(
            quota, slot, probing, info.quota_model, None, number, spending
        )
        for cooldown in probing:
            cooldown.begin_probe(reservation, now)
        return Lease(
            key_id=key_id,
            project=key.project,
            billing_account=key.billing_account,
            bucket=bucket,
            verb=info.verb,
            tokens=info.tokens,
            requests=info.requests,
            at=now,
            probe=bool(probing),
            tier=key.tier,
            reservation=reservation,
            record=key.record,
            has_budget=has_budget,
        )

    def _cooldowns_to_probe(self, key: Candidate, bucket: str, verb: str) -> tuple[Cooldown, ...]:
        names = scope_keys(key, bucket, verb)
        return tuple(self._cooldowns[name] for name in names if name in self._cooldowns)

    def _release(self, lease: Lease, outcome: Outcome) -> None:
        reservation = lease.reservation
        if not isinstance(reservation, LocalReservation):
            return  # not leased here: reported by KeyManager
        held = self._in_flight.get(lease.key_id)
        if held is not None:
            held.pop(reservation.number, None)
            if not held:
                del self._in_flight[lease.key_id]
        if outcome.kind is LeaseOutcome.UNSENT:
            reservation.quota.adjust(reservation.slot, -lease.requests, -lease.tokens)
        elif outcome.usage.input_tokens is not None:
            reservation.quota.adjust(reservation.slot, 0, outcome.usage.input_tokens - lease.tokens)
        if reservation.spending is not None:
            self._settle_spending(reservation.spending, lease, reservation.number, outcome)
        for cooldown in reservation.probing:
            cooldown.end_probe(reservation)

    def _settle_spending(
        self, spending: Spending, lease: Lease, number: int, outcome: Outcome
    ) -> None:
        usd = outcome.usage.cost_usd
        spending.advance(self._clock())
        spending.settle(
            (lease.key_id, number),
            lease.bucket + price_suffix(outcome.usage.service_tier),
            None if usd is None else nano_usd(usd),
            served=outcome.kind is LeaseOutcome.SUCCESS,
        )

    def _clear_cooldowns(self, lease: Lease, now: float) -> None:
        """End the cooldowns that were over when the successful *lease* was granted."""
        for name in scope_keys(lease, lease.bucket, lease.verb):
            cooldown = self._cooldowns.get(name)
            if cooldown is not None and (cooldown.until <= lease.at or cooldown.is_in_future(now)):
                del self._cooldowns[name]

    def _apply_verdict(self, lease: Lease, verdict: Verdict, now: float) -> float | None:
        reservation, bucket = lease.reservation, verdict.bucket or lease.bucket
        if bucket != lease.bucket and lease.bucket:
            model = reservation.model if isinstance(reservation, LocalReservation) else lease.bucket
            put_bounded(self._buckets, model, bucket, MAX_BUCKETS)
        if any(limit is not None for limit in verdict.learned):
            self._quota(lease.project, bucket).learn(verdict.learned, now)
        if verdict.scope is Scope.NONE:
            return None
        name = scope_key(
            verdict.scope,
            record=lease.record or lease.key_id,
            project=lease.project,
            billing_account=lease.billing_account,
            bucket=bucket,
            verb=lease.verb,
        )
        cooldown = self._cooldowns.setdefault(name, Cooldown())
        until = verdict.until
        if until is None:
            until = now + cooldown.escalate(lease.at, *(verdict.backoff or self._policy.backoff))
        waitable = verdict.has_known_end and verdict.may_wait
        cooldown.extend(verdict.failure, until, waitable=waitable, now=now)
        return cooldown.until

    def _sweep(self) -> None:
        now = self._clock()
        idle = [name for name, quota in self._quotas.items() if quota.is_expired(now)]
        over = [name for name, cooldown in self._cooldowns.items() if cooldown.until + DAY_S < now]
        for used in idle:
            del self._quotas[used]
        for scope in over:
            del self._cooldowns[scope]
        for project in [p for p, spending in self._spending.items() if spending.is_expired(now)]:
            del self._spending[project]
        self._sweep_at = max(SWEEP_AT, 2 * len(self._quotas))
