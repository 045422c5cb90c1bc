"""The decisions of a pool: which key is leased, and what an outcome changes.

They read and change *records* that are named by text and do not refer to each other; a state keeps
these, in dictionaries or in rows. It calls one method at a time, with the time: here are no lock
and no clock. What a table returns may be changed; it is stored when it is assigned. Counts are
advice: after a fault of a state some are missing, and a 429 rotates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from typing import NamedTuple, Protocol, TypeVar

from .affinity import owner_lifetime
from .failures import ENDED_BY_PERSON, UNKNOWN_REFUSAL
from .model import (
    FREE,
    NO_BUDGET,
    NO_LIMITS,
    Block,
    Budget,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Reported,
    RetryPolicy,
    Scope,
    Strategy,
    Terms,
    Unavailable,
    Verdict,
    nano_usd,
    smaller_limit,
)
from .selection import RankedCandidates
from .windows import (
    DAY_S,
    HOUR_S,
    PROBE_S,
    RESERVED_S,
    Cooldown,
    Learned,
    QuotaWindows,
    Slot,
    Spending,
    cooldown_names,
    later,
    scope_key,
    scope_keys,
)

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
    """Those that the provider has named."""
    first: QuotaWindows | None = None
    """The part of the workloads that are `first`, if there are any."""
    read: Limits = NO_LIMITS
    """Those that were read from the provider's list."""
    peaks: tuple[float, float] = (0, 0)
    """The most requests, and input tokens, that a minute of the day has counted."""


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
    """The class in which a provider cut it off, its project or its account, for a person to end; no
    request has succeeded since."""
    set_aside: str | None = None
    """For which model it was set aside after a refusal that no row knows, and no request has
    succeeded since; empty: for all. A day after the end of that, it is no longer so."""
    used: Sequence[Used] = ()
    spent: Budget = NO_BUDGET
    """What was spent in each window in which it has a budget."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Reservation:
    """What was reserved for a lease: all that `Ledger.settle` needs."""

    slot: Slot
    model: str
    """As requested; the lease has only the bucket."""
    cost: int = 0
    """Billionths of a dollar in each purse, and the period in which they were reserved."""
    period: int = 0
    parts: tuple[str, ...] = ()
    """As what it is counted beside the whole; see `Terms.parts`."""
    old_bucket: str = ""
    """That of the model's old name, in which it is counted too; see `Ledger.buckets`."""


# Records -----------------------------------------------------------------------------------------


class Health(NamedTuple):
    """How often a key has served."""

    last_used: float | None = None
    success_count: int = 0
    error_count: int = 0
    last_error: str | None = None
    rest: Sequence[object] = ()
    """See `QuotaWindows.rest`."""


class Owner(NamedTuple):
    """Whose stored resource it is."""

    key_id: str
    project: str
    until: float
    """How long that is remembered, epoch seconds."""
    rest: Sequence[object] = ()
    """See `QuotaWindows.rest`."""


Cooldowns = dict[str, Cooldown]
"""Of one key, project or billing account, by scope."""


class Table(Protocol[_T]):
    """Records of one kind, by name; a dictionary is one."""

    def get(self, name: str, /) -> _T | None:
        """Return a record; None if there is none."""

    def __setitem__(self, name: str, record: _T, /) -> None:
        """Store a record that is new or was changed."""

    def pop(self, name: str, default: None, /) -> object:
        """Remove a record, whether it can be read or not."""

    def keys(self) -> Iterable[str]:
        """Return the names of all records."""

    def items(self) -> Iterable[tuple[str, _T]]:
        """Return all records."""

    def __len__(self) -> int:
        """Return 0 if there is none of the records that were asked for, read ahead or by `get`."""


@dataclass(slots=True)
class Records:
    """The tables of a pool."""

    quotas: Table[QuotaWindows] = field(default_factory=dict)
    learned: Table[Learned] = field(default_factory=dict)
    cooldowns: Table[Cooldowns] = field(default_factory=dict)
    purses: Table[Spending] = field(default_factory=dict)
    """Only of what has a budget."""
    health: Table[Health] = field(default_factory=dict)
    fingerprints: Table[str] = field(default_factory=dict)
    """Of the value that processes have of a key."""
    buckets: Table[str] = field(default_factory=dict)
    """The bucket in which a model is counted, if a failure has named it."""
    owners: Table[Owner] = field(default_factory=dict)


def quota_name(project: str, bucket: str) -> str:
    """Return the name of the records of a project's quota; no project has a line feed in it."""
    return f"{project}\n{bucket}"


def owner_name(name: str) -> str:
    """Return the name of an owner's record: names can be long or confidential."""
    return blake2b(name.encode(errors="replace"), digest_size=16).hexdigest()


def quota_names(project: str, bucket: str, terms: Terms | None) -> list[str]:
    """Return the names of all records of a quota that a call on these terms needs."""
    name = quota_name(project, bucket)
    if terms is None:
        return [name]
    return [
        name,
        *(part_name(name, part) for part in (*terms.parts, *([""] if terms.behind else ()))),
    ]


FIRST_PART = "\n"
"""Of the calls that are `first`. Versions of November 2026 have other fields under an empty one."""


def part_name(name: str, part: str) -> str:
    """Return the name of the record of a part of a quota; no name of a whole one begins so."""
    return f"\n{part or FIRST_PART}\n{name}"


def purses_of(key: Candidate, info: CallInfo) -> tuple[tuple[str, Budget], ...]:
    """Return what pays for a call with a key."""
    if not info.requests or key.tier == FREE:
        return ()
    found = key.purses if key.usd is not NO_BUDGET else ()
    if info.terms is not None and info.terms.usd != NO_BUDGET:
        found = (*found, info.terms.purse)
    return found


class Ledger:
    """Decides over the records of one pool."""

    def __init__(self, records: Records, policy: RetryPolicy) -> None:
        """Keep the records of a pool; *policy* has the lengths of exponential cooldowns."""
        self._records, self._policy = records, policy

    # Choosing a key -------------------------------------------------------------------------------

    def acquire(
        self, info: CallInfo, candidates: RankedCandidates, now: float, *, strategy: Strategy
    ) -> Lease | Unavailable:
        """Lease one of *candidates*, or say what blocks them; see `State.acquire`."""
        bucket, old_bucket = self.buckets(info)
        spread = strategy == "spread"
        blocks: dict[str, Block] = {}
        best: tuple[Candidate, QuotaWindows] | None = None
        best_group, best_share = 0, inf
        for group, key in candidates:
            if best is not None and (group != best_group or not spread):
                break
            quota, limits, block = self._judge(key, bucket, info, now)
            if old_bucket:
                block = later(block, self._old_block(key, old_bucket, info, now))
            if block is not None:
                blocks[key.key_id] = block
                continue
            share = quota.utilization(limits, key.weight) if spread else 0.0
            if best is None or share < best_share:
                best, best_group, best_share = (key, quota), group, share
        if best is None:
            return Unavailable(now, blocks)
        key, quota = best
        name, terms, purses = quota_name(key.project, bucket), info.terms, tuple[str, ...]()
        if key.usd is not NO_BUDGET or terms is not None:
            purses = tuple([purse for purse, _ in purses_of(key, info)])
        steady = bool(self._records.learned) and self._is_steady(name, now)
        reservation = Reservation(
            quota.reserve(info.requests, info.tokens, now, steady=steady),
            info.quota_model,
            *(self._reserve_spending(purses, info, now) if purses else ()),
        )
        self._records.quotas[name] = quota
        if old_bucket:
            self._reserve_old(key, old_bucket, info, reservation, now)
        if terms is not None and info.requests:
            self._reserve_parts(name, terms, info, reservation, now)
        probe = bool(self._records.cooldowns) and self._begin_probes(key, bucket, info.verb, now)
        return key.lease(
            info, bucket, now, reservation=reservation, probe=probe, purses=purses, refused=blocks
        )

    def count(self, lease: Lease, now: float) -> None:
        """Count a lease that another state has granted."""
        name, found = quota_name(lease.project, lease.bucket), lease.reservation
        self._count_in(name, lease, now)
        if not isinstance(found, Reservation):
            return
        if found.old_bucket:
            self._count_in(quota_name(lease.project, found.old_bucket), lease, now)
        for part in found.parts:
            counted = self._part(name, part, now)
            counted.reserve(lease.requests, lease.tokens, now)
            self._records.quotas[part_name(name, part)] = counted

    def _count_in(self, name: str, lease: Lease, now: float) -> None:
        quota = self._quota(name, now)
        quota.reserve(lease.requests, lease.tokens, now)
        self._records.quotas[name] = quota

    def get_blocks(
        self, info: CallInfo, candidates: Iterable[Candidate], now: float
    ) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; see `State.get_blocks`."""
        (bucket, old_bucket), found = self.buckets(info), {}
        for key in candidates:
            _, _, block = self._judge(key, bucket, info, now)
            if old_bucket:
                block = later(block, self._old_block(key, old_bucket, info, now))
            if block is not None:
                found[key.key_id] = block
        return found

    def buckets(self, info: CallInfo) -> tuple[str, str]:
        """Return the bucket in which a call counts, and that of its model's old name, if it is two.

        A call that names a replaced model counts in the bucket of the model that answers it, with
        the calls that name that one (docs/gemini-api.md#models-that-answer-under-old-names). It
        counts in the bucket of the old name too, where a version of this package that does not
        know of it counts: limits stay exact with such a one beside this.
        """
        model, buckets = info.quota_model, self._records.buckets
        bucket = buckets.get(model) or model
        if not info.replaced_by:
            return bucket, ""
        if not model:
            return "", ""
        of_both = buckets.get(info.replaced_by) or info.replaced_by
        return of_both, "" if bucket == of_both else bucket

    def _quota(self, name: str, now: float) -> QuotaWindows:
        quota = self._records.quotas.get(name) or QuotaWindows()
        quota.advance(now, self._policy.zone)
        return quota

    def _old_block(self, key: Candidate, bucket: str, info: CallInfo, now: float) -> Block | None:
        """Return what blocks the old name of a model; parts of it are counted under the new one."""
        return self._judge(key, bucket, info._replace(terms=None), now)[2]

    def _reserve_old(
        self, key: Candidate, bucket: str, info: CallInfo, reservation: Reservation, now: float
    ) -> None:
        name, reservation.old_bucket = quota_name(key.project, bucket), bucket
        quota = self._quota(name, now)
        quota.adjust(reservation.slot, info.requests, info.tokens)
        self._records.quotas[name] = quota

    def _limits(self, key: Candidate, name: str, now: float) -> Limits:
        """Return the limits in force, as far as the pool may use them."""
        limits, learned = key.limits, self._records.learned.get(name)
        if learned is not None and now < learned.until:
            limits = learned.smaller(limits)
        return limits if key.use >= 1.0 or limits is NO_LIMITS else limits.part(key.use)

    def _is_steady(self, name: str, now: float) -> bool:
        learned = self._records.learned.get(name)
        return learned is not None and learned.steady and now < learned.until

    def _judge(
        self, key: Candidate, bucket: str, info: CallInfo, now: float
    ) -> tuple[QuotaWindows, Limits, Block | None]:
        """Return what is used of a key's quota, its limits, and what blocks it the longest."""
        name = quota_name(key.project, bucket)
        quota = self._records.quotas.get(name) or QuotaWindows()
        quota.advance(now, self._policy.zone)
        limits, block, terms = self._limits(key, name, now), None, info.terms
        if self._records.cooldowns:
            block = self._cooldown_block(key, bucket, info.verb, now)
        if limits is not NO_LIMITS:
            is_steady = self._records.learned and self._is_steady(name, now)
            steady_at = now if is_steady else None
            full = quota.blocked_by(limits, info.requests, info.tokens, steady_at)
            block = full if block is None else later(block, full)
            if terms is not None and info.requests:
                block = later(block, self._terms_block(name, quota, limits, info, now))
        if key.usd is not NO_BUDGET or terms is not None:
            block = later(block, self._budget_block(key, info, now))
        return quota, limits, block

    # Workloads ------------------------------------------------------------------------------------

    def _part(self, name: str, part: str, now: float) -> QuotaWindows:
        found = copy(self._records.quotas.get(part_name(name, part))) or QuotaWindows()
        found.advance(now, self._policy.zone, first=not part)
        return found

    def _terms_block(
        self, name: str, quota: QuotaWindows, limits: Limits, info: CallInfo, now: float
    ) -> Block | None:
        """Return which window is full by the terms of the call's workload."""
        terms, sizes, block = info.terms or Terms(), (info.requests, info.tokens), None
        if terms.share < 1.0:
            most = limits.part(terms.share)
            block = self._part(name, terms.workload, now).blocked_by(most, *sizes)
            if block is not None:
                amounts = (getattr(one, block.reason) for one in (most, limits))
                block = block._replace(note=terms.note("share", block.reason, *amounts))
        if terms.behind:
            first = self._part(name, "", now)
            for until, kept in first.held_back(quota, limits, *sizes, now):
                note = terms.note("first", kept.reason, kept.amount, kept.limit)
                block = later(block, Block(kept.reason, until, kept.reason != "rpd", note))
        return block

    def _reserve_parts(
        self, name: str, terms: Terms, info: CallInfo, reservation: Reservation, now: float
    ) -> None:
        quotas, reservation.parts = self._records.quotas, terms.parts
        for part in terms.parts:
            found = self._part(name, part, now)
            found.adjust(reservation.slot, info.requests, info.tokens)
            quotas[part_name(name, part)] = found
        known = quotas.get(part_name(name, "")) if terms.behind else None
        if terms.behind and (known is None or now >= known.day_end):  # begin to watch them
            quotas[part_name(name, "")] = self._part(name, "", now)

    def _cooldown_block(self, key: Candidate, bucket: str, verb: str, now: float) -> Block | None:
        cooldowns = self._records.cooldowns
        if not any([cooldowns.get(name) for name in cooldown_names(key)]):
            return None
        found = None
        for name, scope in scope_keys(key, bucket, verb):
            cooldown = (cooldowns.get(name) or {}).get(scope)
            if cooldown is not None:
                found = later(found, cooldown.blocked_by(now))
        return found

    # Money ----------------------------------------------------------------------------------------

    def _spending(self, purse: str, now: float) -> Spending:
        spending = self._records.purses.get(purse) or Spending()
        spending.advance(now, self._policy.zone)
        return spending

    def _budget_block(self, key: Candidate, info: CallInfo, now: float) -> Block | None:
        found = None
        for purse, budget in purses_of(key, info):
            spending = self._spending(purse, now)
            expected = spending.expected(info.input_cost, info.longest_cost)
            block = spending.blocked_by(budget, expected, now)
            if block is not None and info.terms is not None and purse.startswith("workload:"):
                block = block._replace(note=info.terms.note("usd", block.reason))
            found = later(found, block)
        return found

    def _reserve_spending(
        self, purses: Iterable[str], info: CallInfo, now: float
    ) -> tuple[int, int]:
        found = {name: self._spending(name, now) for name in purses}
        cost = max(one.expected(info.input_cost, info.longest_cost) for one in found.values())
        for name, spending in found.items():
            spending.reserved += cost
            self._records.purses[name] = spending
        return cost, int(now // RESERVED_S)

    def _settle_spending(
        self, lease: Lease, reservation: Reservation, outcome: Outcome, now: float
    ) -> None:
        for name in lease.purses:
            spending, usd = self._spending(name, now), outcome.usage.cost_usd
            spending.release(reservation.period, reservation.cost)
            if usd is not None:
                spending.book(nano_usd(usd))
            self._records.purses[name] = spending

    # Outcomes -------------------------------------------------------------------------------------

    def settle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str], now: float
    ) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`."""
        kind, verdict = outcome.kind, outcome.verdict
        if kind is LeaseOutcome.SERVING:
            self._clear_cooldowns(lease)
            return None
        reservation = lease.reservation if isinstance(lease.reservation, Reservation) else None
        if reservation is not None:  # else it was not leased here: reported by KeyManager
            self._release(lease, reservation, outcome, now)
            if lease.purses:
                self._settle_spending(lease, reservation, outcome, now)
        for name in names:
            self._set_owner(name, lease.key_id, lease.project, now)
        if kind is not LeaseOutcome.UNSENT or verdict is not None:
            self._count_end(lease, kind, verdict, now)
        if kind is LeaseOutcome.SUCCESS and self._records.cooldowns:
            self._clear_cooldowns(lease)
        return None if verdict is None else self._apply_verdict(lease, reservation, verdict, now)

    def _release(
        self, lease: Lease, reservation: Reservation, outcome: Outcome, now: float
    ) -> None:
        name, used = quota_name(lease.project, lease.bucket), outcome.usage.input_tokens
        requests, tokens = 0, 0 if used is None else used - lease.tokens
        if outcome.kind is LeaseOutcome.UNSENT:
            requests, tokens = -lease.requests, -lease.tokens
        if requests or tokens:
            names = [name, *[part_name(name, part) for part in reservation.parts]]
            if reservation.old_bucket:
                names.append(quota_name(lease.project, reservation.old_bucket))
            for one in names:
                quota = self._records.quotas.get(one)
                if quota is not None:
                    quota.adjust(reservation.slot, requests, tokens)
                    self._records.quotas[one] = quota
        if outcome.kind is LeaseOutcome.SUCCESS:
            if self._records.learned:
                self._drop_exceeded_limits(name, lease.requests, used or 0)
            if outcome.reported and lease.requests:
                self._take_reported(name, outcome.reported, now)
        if lease.probe:
            self._end_probes(lease)

    def _take_reported(self, name: str, reported: Sequence[Reported], now: float) -> None:
        """Learn the limits that a response names, and how much of them is used."""
        was_steady = self._is_steady(name, now)
        self._learn(name, Limits(**{one.limit: one.of for one in reported}), now, steady=True)
        quota = self._quota(name, now)
        if not was_steady:  # what was counted before drains in the next minute too
            quota.late_requests, quota.late_tokens = quota.requests, quota.tokens
        for one in reported:
            quota.sync(one, now)
        self._records.quotas[name] = quota

    def _learn(self, name: str, new: Limits, now: float, *, steady: bool) -> None:
        known = self._learned(name, now)
        found = known.with_reported(new, now, steady=steady)
        if found[1:] != known[1:] or found.until > known.until + HOUR_S:
            self._records.learned[name] = found

    def _learned(self, name: str, now: float) -> Learned:
        known = self._records.learned.get(name)
        return Learned(now, NO_LIMITS) if known is None or now >= known.until else known

    def take_limits(self, project: str, found: Mapping[str, Limits], now: float) -> None:
        """Use the limits of a project that were read; see `State.take_limits`."""
        for bucket, limits in found.items():
            name = quota_name(project, bucket)
            self._records.learned[name] = self._learned(name, now).with_read(limits, now)

    def _drop_exceeded_limits(self, name: str, requests: int, tokens: int) -> None:
        """Forget the learned limits that a single successful request exceeds.

        The sum of several proves nothing: the order in which the server counted them is unknown.
        """
        learned = self._records.learned.get(name)
        if learned is None:
            return
        sizes = zip(learned.limits, (requests, tokens, requests, 0), strict=True)
        left = Limits(*(None if limit is not None and n > limit else limit for limit, n in sizes))
        if left != learned.limits:
            self._records.learned[name] = learned._replace(limits=left)

    def _count_end(
        self, lease: Lease, kind: LeaseOutcome, verdict: Verdict | None, now: float
    ) -> None:
        health = self._records.health.get(lease.key_id) or Health()
        last_used = now if lease.reservation is not None else health.last_used
        failed = verdict is not None and kind is not LeaseOutcome.ABANDONED  # disabled by a person
        self._records.health[lease.key_id] = Health(
            last_used,
            health.success_count + (kind is LeaseOutcome.SUCCESS),
            health.error_count + failed,
            verdict.failure if failed and verdict is not None else health.last_error,
            health.rest,
        )

    def _apply_verdict(
        self, lease: Lease, reservation: Reservation | None, verdict: Verdict, now: float
    ) -> float | None:
        records, bucket = self._records, verdict.bucket or lease.bucket
        if reservation is not None and bucket == reservation.old_bucket:
            bucket = lease.bucket
        if bucket != lease.bucket and lease.bucket:
            records.buckets[lease.bucket if reservation is None else reservation.model] = bucket
        if verdict.learned != NO_LIMITS:
            self._learn(quota_name(lease.project, bucket), verdict.learned, now, steady=False)
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
        found = records.cooldowns.get(name) or {}
        kept = {
            one: old
            for one, old in found.items()  # of a key, a project or an account: until a success
            if one == scope or "_" not in one or old.until + DAY_S >= now
        }
        cooldown = kept.setdefault(scope, Cooldown())
        until = verdict.until
        if until is None:
            until = now + cooldown.escalate(lease.at, *(verdict.backoff or self._policy.backoff))
        waitable = verdict.has_known_end and verdict.may_wait
        cooldown.extend(verdict.failure, until, waitable=waitable)
        records.cooldowns[name] = kept
        return cooldown.until

    # Cooldowns ------------------------------------------------------------------------------------

    def _begin_probes(self, key: Candidate, bucket: str, verb: str, now: float) -> bool:
        """Make a lease the probe of all cooldowns of its key; return whether there are any."""
        probing = False
        for name, scope in scope_keys(key, bucket, verb):
            found = self._records.cooldowns.get(name)
            if found is not None and scope in found:
                found[scope].probe_until, probing = now + PROBE_S, True
                self._records.cooldowns[name] = found
        return probing

    def _end_probes(self, lease: Lease) -> None:
        """Allow the next request, unless a later one is the probe."""
        for name, scope in scope_keys(lease, lease.bucket, lease.verb):
            found = self._records.cooldowns.get(name)
            if found is not None and scope in found and found[scope].is_probed_by(lease.at):
                found[scope].probe_until = 0.0
                self._records.cooldowns[name] = found

    def _clear_cooldowns(self, lease: Lease) -> None:
        """End the cooldowns that were over when the successful *lease* was granted."""
        for name, scope in scope_keys(lease, lease.bucket, lease.verb):
            found = self._records.cooldowns.get(name)
            if found is None or scope not in found or found[scope].until > lease.at:
                continue
            del found[scope]
            if found:
                self._records.cooldowns[name] = found
            else:
                self._records.cooldowns.pop(name, None)

    def reset(self, key: Candidate) -> None:
        """Forget what blocks this key, its project and account; see `State.reset`."""
        for name in cooldown_names(key):
            self._records.cooldowns.pop(name, None)
        for name in list(self._records.learned.keys()):
            if name.partition("\n")[0] == key.project:
                self._records.learned.pop(name, None)

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        for key in candidates:
            if key.fingerprint not in ("", self._records.fingerprints.get(key.key_id)):
                self._records.fingerprints[key.key_id] = key.fingerprint

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values that processes have; see `State.with_values`."""
        known = self._records.fingerprints
        return [key.with_value(known.get(key.key_id) or "") for key in candidates]

    # Owners ---------------------------------------------------------------------------------------

    def get_owner(self, names: Iterable[str], now: float) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        for name in names:
            owner = self._records.owners.get(owner_name(name))
            if owner is not None and owner.until > now:
                kept = owner_lifetime(name)
                if kept.renewed and owner.until < now + kept.seconds - HOUR_S:
                    self._set_owner(name, owner.key_id, owner.project, now)
                return owner.key_id, owner.project
        return None

    def _set_owner(self, name: str, key_id: str, project: str, now: float) -> None:
        until = now + owner_lifetime(name).seconds
        self._records.owners[owner_name(name)] = Owner(key_id, project, until)

    # Snapshots ------------------------------------------------------------------------------------

    def snapshot(self, candidates: Iterable[Candidate], now: float) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id, in linear time."""
        records = self._records
        used: dict[str, list[Used]] = {}
        quotas = dict(records.quotas.items())
        learned = dict(records.learned.items())
        in_use = _used_today(quotas, now) if learned else set[str]()
        for name in quotas | learned:
            if name.startswith("\n"):
                continue
            project, _, bucket = name.partition("\n")
            first = self._part(name, "", now) if part_name(name, "") in quotas else None
            quota = quotas.get(name) or QuotaWindows()
            quota.advance(now, self._policy.zone)
            known = self._learned(name, now)
            if known.read != NO_LIMITS and bucket not in in_use:
                continue  # it is listed, and no project uses it
            of_day = smaller_limit(known.limits.rpd, known.read.rpd)
            used.setdefault(project, []).append(
                Used(
                    bucket,
                    quota.requests,
                    quota.tokens,
                    quota.day_requests,
                    known.limits._replace(rpd=of_day),
                    first,
                    known.read,
                    quota.peaks,
                )
            )
        cooldowns = dict(records.cooldowns.items())
        latest = {name: _latest(found, now) for name, found in cooldowns.items()}
        cuts = {
            name: one.failure
            for name, found in cooldowns.items()
            for scope, one in found.items()
            if one.failure in ENDED_BY_PERSON and "_" not in scope
        }
        aside = _set_aside(cooldowns, now)
        found = {}
        for key in candidates:
            served = records.health.get(key.key_id) or Health()
            health = KeyHealth(served.last_used, served.success_count, served.error_count)
            health.last_error, health.used = served.last_error, used.get(key.project, ())
            names = cooldown_names(key)
            if cut := [cuts[name] for name in names if name in cuts]:
                health.rejection = cut[-1]  # a probe that is due may fail again
            health.set_aside = aside.get(names[-1])
            ends = [end for name in names if (end := latest.get(name))]
            if ends:
                health.cooldown_until, _, health.cooldown_scope, health.cooldown_reason = max(ends)
            for name, budget in key.purses:
                spent = zip(self._spending(name, now).spent, budget, health.spent, strict=True)
                health.spent = Budget(*(had if of is None else n for n, of, had in spent))
            found[key.key_id] = health
        return found


def _used_today(quotas: Mapping[str, QuotaWindows], now: float) -> set[str]:
    """Return the buckets that a project has used."""
    used = (name for name, one in quotas.items() if one.day_requests and now < one.day_end)
    return {name.partition("\n")[2] for name in used}


def _set_aside(cooldowns: Mapping[str, Cooldowns], now: float) -> dict[str, str]:
    """Return the records of keys that are set aside, and for which model; for all comes last."""
    return {
        name: scope.partition(":")[2]
        for name, found in cooldowns.items()
        for scope, one in sorted(found.items(), reverse=True)
        if one.failure == UNKNOWN_REFUSAL and now <= one.until + DAY_S
    }


def _latest(cooldowns: Cooldowns, now: float) -> tuple[float, bool, str, str] | None:
    """Return the active cooldown that ends last: when, of all calls?, its scope and failure.

    Of several that end together it is the one that blocks all calls, not those of one model.
    """
    active = [
        (one.until, "_" not in scope, scope.partition(":")[0], one.failure)
        for scope, one in cooldowns.items()
        if now < one.until
    ]
    return max(active, default=None)
