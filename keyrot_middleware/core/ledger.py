"""The decisions of a pool: which key is leased, and what an outcome changes.

They read and change *records* that are named by text and do not refer to each other; a state keeps
these, in dictionaries or in rows. It calls one method at a time, with the time: here are no lock
and no clock. What an object of `Records` returns may be changed; it is stored when it is assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import NamedTuple, Protocol, TypeVar

from .affinity import owner_lifetime
from .failures import KEY_REJECTIONS
from .model import (
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
from .selection import RankedCandidates
from .spending import NANO, Spending, nano_usd, price_suffix
from .windows import (
    DAY_S,
    HOUR_S,
    PROBE_POLL_S,
    VALID_S,
    Cooldown,
    QuotaWindows,
    Slot,
    cooldown_names,
    scope_key,
    scope_keys,
)

__all__ = [
    "NO_SPENDING",
    "Cooldowns",
    "Health",
    "KeyHealth",
    "Ledger",
    "Owner",
    "Records",
    "Reservation",
    "Table",
    "UnleasedUsage",
    "Used",
    "expires_at",
    "lease_name",
    "quota_name",
    "quota_of_name",
    "snapshot",
    "spending_name",
]

CHECK_ABANDONED_EVERY = 256
"""Each time a key has this many leases in flight, abandoned ones are removed."""
NO_SPENDING: Mapping[str, int] = {}
_SEEN_S = 30 * DAY_S
"""How long it is known of an unused key when it was used."""

_T = TypeVar("_T")

# Values ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Used:
    """What a project has used of one model bucket in the current windows."""

    bucket: str
    requests_minute: int
    tokens_minute: int
    requests_day: int
    limits: Limits = NO_LIMITS


@dataclass(slots=True)
class KeyHealth:
    """What is known of one key."""

    last_used: float | None = None
    success_count: int = 0
    error_count: int = 0
    cooldown_until: float | None = None
    """Epoch seconds at which the last active cooldown ends."""
    cooldown_reason: str | None = None
    cooldown_scope: str | None = None
    last_error: str | None = None
    """The class of its latest failure, such as `quota_minute`, even if no key was penalized."""
    rejection: str | None = None
    """The class in which Google rejected its value; no request has succeeded since."""
    used: Sequence[Used] = ()
    spent_usd: float | None = None
    """What its project has spent of its budget in the Pacific day; None: it has no budget."""


class UnleasedUsage(NamedTuple):
    """Requests that a state is to count without having leased a key for them."""

    project: str
    bucket: str
    requests: int
    """In the current minute."""
    tokens: int
    """Input tokens in the current minute."""
    day_requests: int
    """In the current day, those of the minute included."""


class Reservation(NamedTuple):
    """What was reserved for a lease: all that `Ledger.settle` needs, as plain data."""

    lease_id: str
    slot: Slot
    model: str
    """As requested; the lease has only the bucket."""
    counted: bool = True
    """It is recorded as in flight."""
    granted: Lease | None = None
    """The lease of the shared state, if this is the copy of its reservation (fallback.py)."""


# Records -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Health:
    """What is known of a key itself."""

    last_used: float | None = None
    success_count: int = 0
    error_count: int = 0
    last_error: str | None = None
    fingerprint: str = ""
    """Of the value that it was last used with."""


class Owner(NamedTuple):
    """Whose stored resource it is."""

    key_id: str
    project: str
    until: float
    """How long that is remembered, epoch seconds."""


Cooldowns = dict[str, Cooldown]
"""Of one key, project or billing account, by scope."""


class Table(Protocol[_T]):
    """Records of one kind, by name; a dictionary is one."""

    def get(self, name: str, /) -> _T | None:
        """Return a record; None if there is none."""

    def __setitem__(self, name: str, record: _T, /) -> None:
        """Store a record that is new or was changed."""

    def pop(self, name: str, default: None, /) -> _T | None:
        """Remove a record."""

    def items(self) -> Iterable[tuple[str, _T]]:
        """Return all records."""

    def __len__(self) -> int:
        """Return 0 if there are no records."""


class Records:
    """All records of a pool. A state assigns the tables."""

    quotas: Table[QuotaWindows]
    cooldowns: Table[Cooldowns]
    leases: Table[dict[str, float]]
    """By key: until when each lease in flight counts, epoch seconds, by its id."""
    spending: Table[Spending]
    """By project; only of those that have a budget."""
    health: Table[Health]
    configured: Table[Limits]
    """The configured limits of each key."""
    buckets: Table[str]
    """The bucket in which Google counts a model, if a failure has named it."""
    owners: Table[Owner]
    claims: Table[float]
    """Until when each name is taken, epoch seconds."""

    def read(self, names: Sequence[str]) -> None:
        """Get ready to return these records, where that is cheaper at once."""


def quota_name(project: str, bucket: str) -> str:
    """Return the name of a quota record; the length separates `a:b`, `c` from `a`, `b:c`."""
    return f"quota:{len(project)}:{project}:{bucket}"


def quota_of_name(name: str) -> tuple[str, str]:
    """Return the project and bucket of a quota record."""
    _, length, rest = name.split(":", 2)
    end = int(length)
    return rest[:end], rest[end + 1 :]


def lease_name(record: str) -> str:
    """Return the name of the record of a key's leases in flight."""
    return f"lease:{record}"


def spending_name(project: str) -> str:
    """Return the name of the record of what a project has spent."""
    return f"spending:{project}"


def _owner_name(name: str) -> str:
    # Names can be long (a continuation token) or confidential; the digest is enough.
    return "owner:" + blake2b(name.encode(errors="replace"), digest_size=16).hexdigest()


def expires_at(record: object, now: float) -> float:
    """Return from when on a record says no more than none does, epoch seconds."""
    match record:
        case QuotaWindows():
            return record.expires_at
        case Spending():
            return now + DAY_S if record.reserved else record.day_end
        case Owner():
            return record.until
        case float():
            return record
        case dict():
            ends = [
                one.until + DAY_S if isinstance(one, Cooldown) else one for one in record.values()
            ]
            return max(ends, default=now)
        case _:
            return now + _SEEN_S


class Ledger:
    """Decides over the records of one pool."""

    def __init__(
        self,
        records: Records,
        policy: RetryPolicy,
        is_gone: Callable[[str], bool],
        *,
        counts_all: bool = False,
        share: float = 1.0,
    ) -> None:
        """Keep nothing but what is passed.

        Args:
            records: The records of a pool.
            policy: For the lengths of exponential cooldowns.
            is_gone: Returns whether the lease with this id will never be settled.
            counts_all: Record every lease as in flight, not only where a limit needs it.
            share: The part of each limit that may be used; 0 < share <= 1.
        """
        self._records = records
        self._policy = policy
        self._is_gone = is_gone
        self._counts_all = counts_all
        self._share = share

    # Choosing a key -------------------------------------------------------------------------------

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        lease_id: str,
        now: float,
        *,
        spread: bool,
        lease_until: float = inf,
    ) -> Lease | Unavailable:
        """Lease one of *candidates*, or say what blocks them; see `State.acquire`.

        Args:
            info: The call.
            candidates: `(group, candidate)` in order.
            lease_id: A new one.
            now: Epoch seconds.
            spread: Choose the least utilized key of a group.
            lease_until: Until when the lease counts as in flight if it is not settled.
        """
        bucket = self._bucket(info)
        quotas, resting = self._records.quotas, bool(self._records.cooldowns)
        names = [quota_name(key.project, bucket) for _, key in candidates]
        # Without `spread` the first key is likely to be the one.
        some = len(names) if spread else 1
        wanted = names[:some]
        for _, key in candidates[:some] if resting else ():
            wanted += cooldown_names(key)
        self._records.read(wanted)
        blocks: dict[str, Block] = {}
        best: tuple[Candidate, str, QuotaWindows, bool] | None = None
        best_group, best_share = 0, inf
        for (group, key), name in zip(candidates, names, strict=True):
            if best is not None and (group != best_group or not spread):
                break
            quota = quotas.get(name) or QuotaWindows()
            calm = quota.valid_until - VALID_S <= now < quota.valid_until
            near_boundary = not calm and quota.advance(now)
            block = self._cooldown_block(key, bucket, info.verb, now) if resting else None
            if key.limits is NO_LIMITS and quota.learned is NO_LIMITS:
                share = quota.requests / key.weight
            else:
                limits = self._limits(quota, key)
                block = block or self._limit_block(
                    key, quota, limits, info, now, near_boundary=near_boundary
                )
                share = quota.utilization(limits, key.weight) if spread else 0.0
            if block is None and key.usd_per_day is not None:
                block = self._budget_block(key, key.usd_per_day, bucket, info, now)
            if block is not None:
                blocks[key.key_id] = block
            elif best is None or share < best_share:
                best, best_group, best_share = (key, name, quota, near_boundary), group, share
        if best is None:
            return Unavailable(now, blocks)
        lease = self._grant(best, bucket, info, lease_id, now, lease_until=lease_until)
        return lease._replace(refused=blocks) if blocks else lease

    def _grant(
        self,
        best: tuple[Candidate, str, QuotaWindows, bool],
        bucket: str,
        info: CallInfo,
        lease_id: str,
        now: float,
        *,
        lease_until: float,
    ) -> Lease:
        key, name, quota, near_boundary = best
        slot = quota.reserve(info.requests, info.tokens, near_boundary=near_boundary)
        self._records.quotas[name] = quota
        has_budget = key.usd_per_day is not None
        counted = self._counts_all or has_budget or key.limits.max_concurrency is not None
        if counted:
            self._add_in_flight(key.record, lease_id, lease_until, now)
        if has_budget:
            self._reserve_spending(key, lease_id, bucket, info, now)
        self._set_used(key.key_id, key.record, now)
        return Lease(
            key_id=key.key_id,
            project=key.project,
            billing_account=key.billing_account,
            bucket=bucket,
            verb=info.verb,
            tokens=info.tokens,
            requests=info.requests,
            at=now,
            probe=self._begin_probes(key, bucket, info.verb, lease_id, now),
            tier=key.tier,
            reservation=Reservation(lease_id, slot, info.quota_model, counted),
            record=key.record,
            has_budget=has_budget,
        )

    def copy(self, granted: Lease, info: CallInfo, lease_id: str, now: float) -> Lease:
        """Reserve what another state has granted here too.

        Args:
            granted: The lease of that state.
            info: The call.
            lease_id: A new one.
            now: Epoch seconds.

        Returns:
            The lease to settle here; its `reservation.granted` is the one of the other state.
        """
        model, bucket, record = info.quota_model, granted.bucket, granted.record or granted.key_id
        if bucket != model:
            self._records.buckets[f"bucket:{model}"] = bucket
        name = quota_name(granted.project, bucket)
        quota = self._records.quotas.get(name) or QuotaWindows()
        near_boundary = quota.advance(now)
        slot = quota.reserve(granted.requests, granted.tokens, near_boundary=near_boundary)
        self._records.quotas[name] = quota
        self._add_in_flight(record, lease_id, inf, now)
        if granted.has_budget:
            self._reserve_spending(granted, lease_id, bucket, info, now)
        self._set_used(granted.key_id, record, now)
        return granted._replace(reservation=Reservation(lease_id, slot, model, True, granted))

    def get_blocks(
        self, info: CallInfo, candidates: Iterable[Candidate], now: float
    ) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.get_blocks`."""
        found: dict[str, Block] = {}
        bucket, keys = self._bucket(info), list(candidates)
        self._records.read([quota_name(key.project, bucket) for key in keys])
        for key in keys:
            quota = self._records.quotas.get(quota_name(key.project, bucket)) or QuotaWindows()
            near_boundary = quota.advance(now)
            block = self._cooldown_block(key, bucket, info.verb, now)
            block = block or self._limit_block(
                key, quota, self._limits(quota, key), info, now, near_boundary=near_boundary
            )
            if block is None and key.usd_per_day is not None:
                block = self._budget_block(key, key.usd_per_day, bucket, info, now)
            if block is not None:
                found[key.key_id] = block
        return found

    def _bucket(self, info: CallInfo) -> str:
        model = info.quota_model
        return self._records.buckets.get(f"bucket:{model}") or model

    def _limits(self, quota: QuotaWindows, key: Candidate) -> Limits:
        """Return the limits in force, or their share: at least 1 of each."""
        limits = quota.limits(key.limits)
        if self._share >= 1.0 or limits is NO_LIMITS:
            return limits
        share = self._share
        return Limits(*(n if n is None else min(n, max(1, int(n * share))) for n in limits))

    def _cooldown_block(self, key: Candidate, bucket: str, verb: str, now: float) -> Block | None:
        cooldowns = self._records.cooldowns
        if not any(map(cooldowns.get, cooldown_names(key))):
            return None
        for name, scope in scope_keys(key, bucket, verb):
            found = cooldowns.get(name)
            if found is None or (cooldown := found.get(scope)) is None:
                continue
            if (block := cooldown.blocked_by(now)) is not None:
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
        if most is not None and self._is_at_max_concurrency(key.record, most, now):
            return Block("concurrency", now + PROBE_POLL_S, waitable=True)
        return quota.blocked_by(limits, info.requests, info.tokens, near_boundary=near_boundary)

    # Leases in flight -----------------------------------------------------------------------------

    def _is_at_max_concurrency(self, record: str, most: int, now: float) -> bool:
        held = self._records.leases.get(lease_name(record))
        if held is None or len(held) < most:
            return most <= 0
        return len(self._without_ended(record, held, now)) >= most

    def _add_in_flight(self, record: str, lease_id: str, until: float, now: float) -> None:
        name = lease_name(record)
        held = self._records.leases.get(name) or {}
        if held and not len(held) % CHECK_ABANDONED_EVERY:
            held = self._without_ended(record, held, now)
        held[lease_id] = until
        self._records.leases[name] = held

    def _without_ended(self, record: str, held: dict[str, float], now: float) -> dict[str, float]:
        """Drop leases that ended without being settled: their call was lost or their process."""
        ended = [one for one, until in held.items() if until <= now or self._is_gone(one)]
        for lease_id in ended:
            del held[lease_id]
        if ended:
            self._set_or_drop(self._records.leases, lease_name(record), held)
        return held

    @staticmethod
    def _set_or_drop(table: Table[dict[str, _T]], name: str, record: dict[str, _T]) -> None:
        if record:
            table[name] = record
        else:
            table.pop(name, None)

    def renew(self, leases: Iterable[tuple[str, str]], until: float) -> None:
        """Let leases that are in flight count *until* then.

        Args:
            leases: The record of a key, and the id of its lease.
            until: Epoch seconds.
        """
        for record, lease_id in leases:
            held = self._records.leases.get(lease_name(record))
            if held is not None and lease_id in held:
                held[lease_id] = until
                self._records.leases[lease_name(record)] = held

    def end_leases(self) -> None:
        """Drop all leases, reservations and probes: they are another process's."""
        for name, _ in list(self._records.leases.items()):
            self._records.leases.pop(name, None)
        for spending in dict(self._records.spending.items()).values():
            spending.reserved.clear()
        for cooldowns in dict(self._records.cooldowns.items()).values():
            for cooldown in cooldowns.values():
                cooldown.probe = None

    # Budgets --------------------------------------------------------------------------------------

    def _budget_block(
        self, key: Candidate, usd_per_day: float, bucket: str, info: CallInfo, now: float
    ) -> Block | None:
        """Return why the budget of the key's project does not allow a request."""
        if not info.requests:  # it costs nothing
            return None
        spending = self._spending(key.project, now)
        budget = nano_usd(usd_per_day * self._share)
        expected = _expected(spending, bucket, info)
        block = spending.blocked_by(budget, expected, now)
        if block is None or not block.waitable:
            return block
        for lease_id, (_, record) in tuple(spending.reserved.items()):
            held = self._records.leases.get(lease_name(record)) or {}
            if lease_id not in held or held[lease_id] <= now or self._is_gone(lease_id):
                del spending.reserved[lease_id]  # it ended without being settled
        return spending.blocked_by(budget, expected, now)

    def _spending(self, project: str, now: float) -> Spending:
        spending = self._records.spending.get(spending_name(project)) or Spending()
        spending.advance(now)
        return spending

    def _reserve_spending(
        self, key: Candidate | Lease, lease_id: str, bucket: str, info: CallInfo, now: float
    ) -> None:
        """Reserve what a request may cost, unless it costs nothing."""
        if info.requests:
            spending = self._spending(key.project, now)
            record = key.record or key.key_id
            spending.reserved[lease_id] = _expected(spending, bucket, info), record
            self._records.spending[spending_name(key.project)] = spending

    def _settle_spending(self, lease: Lease, lease_id: str, outcome: Outcome, now: float) -> None:
        if not lease.requests:
            return
        usd = outcome.usage.cost_usd
        spending = self._spending(lease.project, now)
        spending.settle(
            lease_id,
            lease.bucket + price_suffix(outcome.usage.service_tier),
            None if usd is None else nano_usd(usd),
            served=outcome.kind is LeaseOutcome.SUCCESS,
        )
        self._records.spending[spending_name(lease.project)] = spending

    # Outcomes -------------------------------------------------------------------------------------

    def settle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str], now: float
    ) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`."""
        if outcome.kind is LeaseOutcome.SERVING:
            self._clear_cooldowns(lease, now)
            return None
        reservation = lease.reservation if isinstance(lease.reservation, Reservation) else None
        if reservation is not None:  # else it was not leased here: reported by KeyManager
            self._release(lease, reservation, outcome, now)
        for name in names:
            self._set_owner(name, lease.key_id, lease.project, now)
        verdict = outcome.verdict
        is_failure = verdict is not None and outcome.kind is not LeaseOutcome.ABANDONED
        if outcome.kind is LeaseOutcome.SUCCESS or is_failure:
            health = self._health(lease.key_id)
            health.success_count += outcome.kind is LeaseOutcome.SUCCESS
            if verdict is not None and is_failure:  # else a person disabled the key
                health.error_count += 1
                health.last_error = verdict.failure
            self._records.health[f"health:{lease.key_id}"] = health
        if outcome.kind is LeaseOutcome.SUCCESS and self._records.cooldowns:
            self._clear_cooldowns(lease, now)
        return None if verdict is None else self._apply_verdict(lease, reservation, verdict, now)

    def _release(
        self, lease: Lease, reservation: Reservation, outcome: Outcome, now: float
    ) -> None:
        lease_id, name = reservation.lease_id, quota_name(lease.project, lease.bucket)
        if reservation.counted:
            held_by = lease_name(lease.record or lease.key_id)
            held = self._records.leases.get(held_by)
            if held is not None and held.pop(lease_id, None) is not None:
                self._set_or_drop(self._records.leases, held_by, held)
        used, unsent = outcome.usage.input_tokens, outcome.kind is LeaseOutcome.UNSENT
        requests, tokens = (-lease.requests, -lease.tokens) if unsent else (0, 0)
        if not unsent and used is not None:
            tokens = used - lease.tokens
        quota = self._records.quotas.get(name)
        if quota is not None:
            if requests or tokens:
                quota.adjust(reservation.slot, requests, tokens)
            if outcome.kind is LeaseOutcome.SUCCESS and quota.learned is not NO_LIMITS:
                quota.drop_exceeded_limits(lease.requests, used or 0)
                self._records.quotas[name] = quota
            elif requests or tokens:
                self._records.quotas[name] = quota
        if lease.has_budget:
            self._settle_spending(lease, lease_id, outcome, now)
        if lease.probe:
            self._end_probes(lease, lease_id)

    def _apply_verdict(
        self, lease: Lease, reservation: Reservation | None, verdict: Verdict, now: float
    ) -> float | None:
        bucket = verdict.bucket or lease.bucket
        if bucket != lease.bucket and lease.bucket:
            model = lease.bucket if reservation is None else reservation.model
            self._records.buckets[f"bucket:{model}"] = bucket
        if any(limit is not None for limit in verdict.learned):
            name = quota_name(lease.project, bucket)
            quota = self._records.quotas.get(name) or QuotaWindows()
            quota.learn(verdict.learned, now)
            self._records.quotas[name] = quota
        if verdict.scope is Scope.NONE:
            return None
        name, scope = scope_key(
            verdict.scope,
            record=lease.record or lease.key_id,
            project=lease.project,
            billing_account=lease.billing_account,
            bucket=bucket,
            verb=lease.verb,
        )
        found = self._records.cooldowns.get(name) or {}
        kept = {one: old for one, old in found.items() if one == scope or old.until + DAY_S >= now}
        cooldown = kept.setdefault(scope, Cooldown())
        until = verdict.until
        if until is None:
            until = now + cooldown.escalate(lease.at, *(verdict.backoff or self._policy.backoff))
        waitable = verdict.has_known_end and verdict.may_wait
        cooldown.extend(verdict.failure, until, waitable=waitable, now=now)
        self._records.cooldowns[name] = kept
        return cooldown.until

    # Cooldowns ------------------------------------------------------------------------------------

    def _begin_probes(
        self, key: Candidate, bucket: str, verb: str, lease_id: str, now: float
    ) -> bool:
        """Make a lease the probe of all cooldowns of its key; return whether there are any."""
        probing = False
        if not self._records.cooldowns:
            return probing
        for name, scope in scope_keys(key, bucket, verb):
            found = self._records.cooldowns.get(name)
            if found is not None and scope in found:
                found[scope].begin_probe(lease_id, now)
                self._records.cooldowns[name] = found
                probing = True
        return probing

    def _end_probes(self, lease: Lease, lease_id: str) -> None:
        for name, scope in scope_keys(lease, lease.bucket, lease.verb):
            found = self._records.cooldowns.get(name)
            if found is not None and scope in found:
                found[scope].end_probe(lease_id)
                self._records.cooldowns[name] = found

    def _clear_cooldowns(self, lease: Lease, now: float) -> None:
        """End the cooldowns that were over when the successful *lease* was granted."""
        for name, scope in scope_keys(lease, lease.bucket, lease.verb):
            found = self._records.cooldowns.get(name)
            if found is None or (cooldown := found.get(scope)) is None:
                continue
            if cooldown.until <= lease.at or cooldown.is_in_future(now):
                del found[scope]
                self._set_or_drop(self._records.cooldowns, name, found)

    def reset(self, key: Candidate) -> None:
        """Forget what blocks this key, its project and account; see `State.reset`."""
        for name in cooldown_names(key):
            self._records.cooldowns.pop(name, None)
        self._forget_learned({key.project})

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget learned limits whose key has new configured limits; see `State.configure`."""
        changed: set[str] = set()
        keys = list(candidates)
        self._records.read([f"configured:{key.key_id}" for key in keys])
        for key in keys:
            name, limits = f"configured:{key.key_id}", Limits(*key.limits[:3])
            if (self._records.configured.get(name) or NO_LIMITS) != limits:
                self._records.configured[name] = limits
                changed.add(key.project)
        self._forget_learned(changed)

    def _forget_learned(self, projects: set[str]) -> None:
        for name, quota in list(self._records.quotas.items()) if projects else ():
            if quota.learned is not NO_LIMITS and quota_of_name(name)[0] in projects:
                quota.forget_learned()
                self._records.quotas[name] = quota

    # What is counted and remembered ---------------------------------------------------------------

    def record_usage(
        self, usages: Iterable[UnleasedUsage], spending: Mapping[str, int], now: float
    ) -> None:
        """Count requests without a lease, and costs; see `SharedState.record_usage`."""
        for project, bucket, requests, tokens, day_requests in usages:
            name = quota_name(project, bucket)
            quota = self._records.quotas.get(name) or QuotaWindows()
            near_boundary = quota.advance(now)
            quota.reserve(requests, tokens, near_boundary=near_boundary)
            quota.day_requests += day_requests - requests
            self._records.quotas[name] = quota
        for project, amount in spending.items():
            spent = self._spending(project, now)
            spent.spent += amount
            self._records.spending[spending_name(project)] = spent

    def get_owner(self, names: Iterable[str], now: float) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        for name in names:
            owner = self._records.owners.get(_owner_name(name))
            if owner is not None and owner.until > now:
                kept = owner_lifetime(name)
                if kept.renewed and owner.until < now + kept.seconds - HOUR_S:
                    self._set_owner(name, owner.key_id, owner.project, now)
                return owner.key_id, owner.project
        return None

    def _set_owner(self, name: str, key_id: str, project: str, now: float) -> None:
        until = now + owner_lifetime(name).seconds
        self._records.owners[_owner_name(name)] = Owner(key_id, project, until)

    def claim(self, name: str, seconds: float, now: float) -> float:
        """Take *name* for so many *seconds*; see `State.claim`."""
        record = f"claim:{name}"
        left = (self._records.claims.get(record) or now) - now
        if 0 < left <= seconds:
            return left
        self._records.claims[record] = now + seconds
        return 0.0

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values they were last used with; see `State.with_values`."""
        keys = list(candidates)
        self._records.read([f"health:{key.key_id}" for key in keys])
        return [key.with_value(self._health(key.key_id).fingerprint) for key in keys]

    def snapshot(self, candidates: Iterable[Candidate], now: float) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys, records = list(candidates), self._records
        records.read([f"health:{key.key_id}" for key in keys])
        cooldowns: dict[tuple[str, ...], Cooldown] = {
            (scope.partition(":")[0], name.split(":", 2)[2], scope): cooldown
            for name, found in records.cooldowns.items()
            for scope, cooldown in found.items()
        }
        budgets = dict.fromkeys(key.project for key in keys if key.usd_per_day is not None)
        return snapshot(
            keys,
            {key.key_id: _health_of(self._health(key.key_id)) for key in keys},
            {quota_of_name(name): quota for name, quota in records.quotas.items()},
            cooldowns,
            spending={project: self._spending(project, now) for project in budgets},
            now=now,
        )

    def _health(self, key_id: str) -> Health:
        return self._records.health.get(f"health:{key_id}") or Health()

    def _set_used(self, key_id: str, record: str, now: float) -> None:
        health = self._health(key_id)
        health.last_used = now
        health.fingerprint = record[len(key_id) + 1 :]
        self._records.health[f"health:{key_id}"] = health


def _expected(spending: Spending, bucket: str, info: CallInfo) -> int:
    """Return what a request may cost in the service tier that it asks for."""
    priced_as = bucket + price_suffix(info.service_tier)
    return spending.expected(priced_as, info.input_cost, info.longest_cost)


# Snapshots ---------------------------------------------------------------------------------------


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
    """Return the health of *keys* as of *now*, by id, in linear time.

    Args:
        keys: Any number.
        known: By key id.
        quotas: By project and bucket.
        cooldowns: By scope, and the key, project or account.
        spending: By project.
        now: Epoch seconds.
    """
    used: dict[str, list[Used]] = {}
    for (project, bucket), quota in quotas.items():
        quota.advance(now)
        used.setdefault(project, []).append(
            Used(bucket, quota.requests, quota.tokens, quota.day_requests, quota.learned)
        )
    latest = _latest_cooldowns(cooldowns, now)
    rejections = {  # also those whose time is over: a probe may fail again
        name[1]: cooldown.failure
        for name, cooldown in cooldowns.items()
        if name[0] == "key" and cooldown.failure in KEY_REJECTIONS
    }
    found = {}
    for key in keys:
        health = _describe(key, known.get(key.key_id, KeyHealth()), used, latest)
        health.rejection = rejections.get(key.record)
        if key.usd_per_day is not None:
            health.spent_usd = _spent(spending.get(key.project), now)
        found[key.key_id] = health
    return found


def _health_of(known: Health) -> KeyHealth:
    return KeyHealth(
        known.last_used, known.success_count, known.error_count, last_error=known.last_error
    )


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
    key: Candidate, known: KeyHealth, used: dict[str, list[Used]], latest: _LatestCooldowns
) -> KeyHealth:
    health = KeyHealth(known.last_used, known.success_count, known.error_count)
    health.last_error = known.last_error
    health.used = used.get(key.project, ())
    mine = (("billing", key.billing_account), ("project", key.project), ("key", key.record))
    found = [latest[who] for who in mine if who in latest]
    if found:
        health.cooldown_scope, cooldown = max(found, key=lambda one: _end(*one))
        health.cooldown_until, health.cooldown_reason = cooldown.until, cooldown.failure
    return health


def _end(scope: str, cooldown: Cooldown) -> tuple[float, bool]:
    """Return when a cooldown ends, and whether it blocks all calls of its scope."""
    return cooldown.until, "_" not in scope
