"""What this process knows of a shared state: enough to go on with when that cannot be reached.

While the shared state serves, everything that it tells this process is booked here a second time:
what it lent, what it refused and until when, and how each lease ended. While it does not serve,
this decides alone, with its share of the limits, and keeps count of what the other must learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..core.failures import RULES
from ..core.model import (
    OF_A_MODEL,
    Block,
    CallInfo,
    Candidate,
    Kind,
    Lease,
    Limits,
    Outcome,
    Scope,
    Verdict,
)
from ..core.policy import RetryPolicy
from ..core.roster import Shortlist
from ..core.windows import Cooldown, Quota, Where, scope_key, scope_keys
from .base import Holder, KeyHealth, Used
from .memory import BUCKETS_KEPT, Booking, MemoryState
from .recent import keep
from .share import quota_of_share

__all__ = ["Mirror", "Unreported"]

_SCOPES = {rule.name: rule.scope for rule in RULES if rule.scope is not Scope.NONE}
_PASSING = frozenset({"rpm", "tpm", "concurrency", "probe", "inactive"})
"""Refusals that are over within a minute, or are about one size of request."""


class Unreported(NamedTuple):
    """What a shared state has to book; the arguments of `State.book`."""

    key: Candidate
    bucket: str
    requests: int
    tokens: int
    day_requests: int


class Mirror(MemoryState):
    """A state in memory that follows a shared one, or stands in for it."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float], share: float = 1.0) -> None:
        """Know nothing yet.

        Args:
            policy: For the lengths of exponential cooldowns.
            clock: Tells epoch seconds.
            share: Of each limit, what this process may use when it decides alone; 0 < share <= 1.
        """
        super().__init__(policy, clock)
        self.struck = 0
        """How many failures were booked: a grant asked for before the last may be older news."""
        self._meanwhile: dict[tuple[str, str], Quota] = {}
        """What was lent here, and the shared state knows nothing of, by project and bucket."""
        self._keys: dict[str, Candidate] = {}
        """Keys that were lent or refused, to tell the shared state whose something is."""
        if share < 1.0:
            self._new_quota = quota_of_share(share)

    # While the shared state serves ---------------------------------------------------------------

    def lent(
        self,
        granted: Lease,
        model: str,
        struck: int,
        doubted: Candidate | None = None,
        holder: Holder | None = None,
    ) -> Lease | None:
        """Book here too what the shared state has lent.

        Args:
            granted: Its lease.
            model: As asked for.
            struck: What `struck` was before it was asked.
            doubted: The key, where the shared state does not know all that was sent with it.
            holder: As `State.acquire` has it.

        Returns:
            The lease to go on with; `books.granted` is the other. None, and nothing is booked,
            where it has lent more than this process alone may have, or what rests here.
        """
        key_id, project, bucket = granted.key_id, granted.project, granted.bucket
        with self._lock:
            now = self._clock()
            if bucket != model:
                keep(self._buckets, model, bucket, BUCKETS_KEPT)
            quota = self._quota(project, bucket)
            edge = quota.roll(now)
            if doubted is not None and self._doubts(doubted, quota, granted, now, edge=edge):
                return None
            where = quota.book(granted.requests, granted.tokens, now, edge=edge)
            place = self._hold(key_id, holder)
            self._health_of(key_id).last_used = now
            self._note(granted)
            if self._cooldowns and doubted is None and struck == self.struck:
                self._rested(granted, now)
        books = Booking(quota, where, (), model, granted, place)
        return Lease._make((*granted[:10], books, False, granted.record))

    def _doubts(
        self, key: Candidate, quota: Quota, granted: Lease, now: float, *, edge: bool
    ) -> bool:
        resting = self._resting(key, granted.bucket, granted.verb, now) is not None
        return resting or _overrun(quota, key.limits, granted, edge=edge)

    def refused(self, info: CallInfo, shortlist: Shortlist, blocks: Mapping[str, Block]) -> None:
        """Rest what the shared state says rests: other processes saw it fail."""
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(info.counted, info.counted)
            for _, key in shortlist:
                block = blocks.get(key.key_id)
                if block is not None and block.until > now and not _passes(block, info):
                    self._rest(key, bucket, info.verb, block, now)

    def _rest(self, key: Candidate, bucket: str, verb: str, block: Block, now: float) -> None:
        """Rest the scope of the failure class; of one that is not known, the key alone."""
        rpd = block.reason == "rpd"
        scope = Scope.PROJECT_MODEL if rpd else _SCOPES.get(block.reason, Scope.KEY_MODEL)
        if not bucket and scope in OF_A_MODEL:
            scope = Scope.KEY_VERB
        self._note(key)
        name = scope_key(
            scope,
            record=key.record,
            project=key.project,
            billing_account=key.billing_account,
            bucket=bucket,
            verb=verb,
        )
        resting = self._cooldowns.setdefault(name, Cooldown())
        if block.until > resting.until or resting.ahead(now):
            resting.strike(block.reason, block.until, waitable=block.waitable, now=now)

    def _note(self, of: Candidate | Lease) -> None:
        record = of.record or of.key_id
        known = self._keys.get(of.key_id)
        if known is None or known.project != of.project or known.record != record:
            self._keys[of.key_id] = Candidate(
                of.key_id, of.project, of.billing_account, record=record
            )

    def _rested(self, granted: Lease, now: float) -> None:
        """Forget what rests here and not there: somebody has reset it, or its probe did well."""
        for name in scope_keys(granted, granted.bucket, granted.verb):
            resting = self._cooldowns.get(name)
            if resting is not None and resting.until > now:
                del self._cooldowns[name]

    def _punish(self, lease: Lease, verdict: Verdict, now: float) -> float | None:
        self.struck += 1
        return super()._punish(lease, verdict, now)

    # While it does not ---------------------------------------------------------------------------

    def _lend(
        self,
        best: tuple[Candidate, Quota, bool],
        bucket: str,
        info: CallInfo,
        now: float,
        holder: Holder | None,
    ) -> Lease:
        lease = super()._lend(best, bucket, info, now, holder)._replace(degraded=True)
        alone = self._meanwhile.setdefault((lease.project, bucket), Quota())
        books = lease.books
        assert isinstance(books, Booking)  # noqa: S101 - narrows the type; made by the line above
        alone.follow(books.quota)
        alone.book(info.requests, info.tokens, now, edge=alone.roll(now))
        self._note(lease)
        return lease

    def _give_back(self, lease: Lease, outcome: Outcome) -> None:
        super()._give_back(lease, outcome)
        if not lease.degraded:
            return
        alone = self._meanwhile.get((lease.project, lease.bucket))
        if alone is not None and isinstance(lease.books, Booking):
            _correct(alone, lease, outcome, lease.books.where)

    # When it is back -----------------------------------------------------------------------------

    def used(self) -> list[Unreported]:
        """Tell all that this process was lent in the windows of now, with a key of each project."""
        with self._lock:
            return self._used()

    def time(self) -> float:
        """Tell the time, epoch seconds."""
        return self._clock()

    def forget_meanwhile(self) -> None:
        """Let another process tell what was lent here: this one is its child."""
        self._meanwhile.clear()

    def unreported(
        self, before: Iterable[Unreported], seen: Mapping[str, KeyHealth]
    ) -> list[Unreported]:
        """Tell what a shared state that knows as much as *seen* has to book; tell it once.

        That is what was lent here meanwhile. Where it knows less than even this process alone had
        used *before* it was asked, it has lost its memory, and all of that is missing. What it
        lends while it tells is in our windows now, and not in what it told.
        """
        known = {
            (key_id, used.bucket): used for key_id, health in seen.items() for used in health.used
        }
        with self._lock:
            debts = [self._debt(used, known) for used in before]
        return [debt for debt in debts if any(debt[2:])]

    def whole_share(self) -> list[Unreported]:
        """Tell all that this process was lent in the windows of now, for who has forgotten it.

        Every process tells its own part, and together that is what was used.
        """
        with self._lock:
            self._meanwhile.clear()
            return self._used()

    def rests(self) -> list[tuple[Lease, Outcome]]:
        """Tell every cooldown and retirement that runs, as failures reported by hand."""
        with self._lock:
            now = self._clock()
            owners = {("billing", key.billing_account): key for key in self._keys.values()} | {
                ("project", key.project): key for key in self._keys.values()
            }
            owners |= {("key", key.record): key for key in self._keys.values()}
            return [
                _reported(owners[who], name, cooldown, now)
                for name, cooldown in self._cooldowns.items()
                if cooldown.runs(now) and (who := (name[0].partition("_")[0], name[1])) in owners
            ]

    def _used(self) -> list[Unreported]:
        now, of_project = self._clock(), {key.project: key for key in self._keys.values()}
        return [
            Unreported(of_project[project], bucket, *_counts(quota))
            for (project, bucket), quota in self._quotas.items()
            if project in of_project and _is_used(quota, now)
        ]

    def _debt(self, used: Unreported, known: Mapping[tuple[str, str], Used]) -> Unreported:
        place = (used.key.project, used.bucket)
        there = known.get((used.key.key_id, used.bucket)) or Used(used.bucket, 0, 0, 0)
        alone, ours = self._meanwhile.pop(place, None) or Quota(), self._quota(*place)
        for quota in (alone, ours):
            quota.roll(self._clock())  # a window may have ended since
        told = (there.requests_minute, there.tokens_minute, there.requests_day)
        counts = zip(_counts(alone), used[2:], _counts(ours), told, strict=True)
        missing = [max(a, min(before, now) - t) for a, before, now, t in counts]
        return Unreported(used.key, used.bucket, *missing)


def _passes(block: Block, info: CallInfo) -> bool:
    return block.reason in _PASSING or (block.reason == "rpd" and info.requests > 1)


def _reported(
    key: Candidate, name: tuple[str, ...], cooldown: Cooldown, now: float
) -> tuple[Lease, Outcome]:
    """Make the failure that rests what *name* says, for `State.settle`."""
    scope, detail = Scope(name[0]), name[2] if len(name) > 2 else ""
    verdict = Verdict(
        cooldown.failure,
        scope=scope,
        until=cooldown.until,
        named=cooldown.waitable,
        wait=cooldown.waitable,
    )
    lease = Lease(
        key.key_id, key.project, key.billing_account, detail, detail, 0, 0, now, record=key.record
    )
    return lease, Outcome(Kind.FAILURE, verdict)


def _counts(quota: Quota) -> tuple[int, int, int]:
    return *quota.used, quota.day_requests


def _is_used(quota: Quota, now: float) -> bool:
    """Tell whether anything counts today, in the windows of *now*."""
    quota.roll(now)
    return quota.day_requests > 0 or quota.used[0] > 0


def _overrun(quota: Quota, configured: Limits, lease: Lease, *, edge: bool) -> bool:
    """Tell whether a lease is more than the whole limit allows; the share is for bad times only."""
    limits = Quota.limits(quota, configured)
    return quota.block(limits, lease.requests, lease.tokens, edge=edge) is not None


def _correct(quota: Quota, lease: Lease, outcome: Outcome, where: Where) -> None:
    """Put the truth in place of what was reserved, as `MemoryState` does in its own windows."""
    if outcome.kind is Kind.UNSENT:
        quota.correct(where, -lease.requests, -lease.tokens)
    elif outcome.usage.input_tokens is not None:
        quota.correct(where, 0, outcome.usage.input_tokens - lease.tokens)
