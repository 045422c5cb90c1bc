"""Between our values and the words that the scripts of ../lua take and give."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from math import inf
from typing import Any, NamedTuple

from ...core.model import (
    NO_LIMITS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Unavailable,
    Verdict,
)
from ...core.selection import RankedCandidates
from ...core.windows import (
    DAY_S,
    GUARD_S,
    NO_MARK,
    Cooldown,
    QuotaWindows,
    SlidingWindow,
    TokenBucket,
    next_pacific_midnight,
)
from ..base import KeyHealth

__all__ = [
    "DRY_RUN",
    "Midnights",
    "Offers",
    "RedisReservation",
    "behind_by",
    "cooldowns_of",
    "fingerprint_of",
    "granted",
    "health_of",
    "lease_ids",
    "lease_words",
    "owner_of",
    "plain",
    "quota_of",
    "refused",
    "stored_name",
    "tell",
    "text",
    "until_of",
    "verdict_words",
]

DRY_RUN = ""
"""The lease id by which acquire.lua decides, and reserves nothing."""

Word = str | int | float | bytes

_OWNED_S = {"files/": 49 * 3600, "page:": DAY_S, "continuation:": DAY_S}
"""How long the owner of a stored thing is kept: Google deletes files after 48 hours."""
_OWNED_LONG_S = 30 * DAY_S


class RedisReservation(NamedTuple):
    """What was booked where for a lease: all that settle needs, as plain data."""

    lease_id: str
    at: str
    """When it was granted by the server's clock, to the last digit."""
    minute: int
    near_boundary: int
    day_end: int
    mark: int
    """Where its pace has it."""
    held: int
    """1: it holds one of the key's `max_concurrency`."""
    model: str
    """As asked for; the lease has only the bucket."""


class Midnights:
    """The next midnights of Los Angeles as a JSON list, for a server that has no time zones.

    From two days ago to three days ahead, so that a host whose clock is wrong by a day does no
    harm: the server picks the first one after its own time.
    """

    def __init__(self) -> None:
        self._known = (inf, -inf, "")
        """From when to when the text is right; one value, since threads share it."""

    def __call__(self, now: float) -> str:
        """List them as of *now*, epoch seconds."""
        begin, end, text = self._known
        if not begin <= now < end:
            begin, end, text = self._known = _midnights(now)
        return text


def _midnights(now: float) -> tuple[float, float, str]:
    days = [next_pacific_midnight(now - 2 * DAY_S)]
    while len(days) < 5:
        days.append(next_pacific_midnight(days[-1]))
    begin = max(day for day in days if day <= now)
    return begin, next_pacific_midnight(now), json.dumps([int(day) for day in days])


def text(words: str) -> bytes:
    """Write text that came from the program's request; it may hold what UTF-8 cannot."""
    return words.encode(errors="replace")


def granted(
    reply: Sequence[Any], info: CallInfo, candidates: RankedCandidates, lease_id: str, behind: float
) -> Lease:
    """Read a grant; *behind* is how far this host's clock is behind the server's, seconds."""
    _, _, place, bucket, at, probe, minute, near_boundary, day_end, mark, held = reply
    key = candidates[place - 1][1]
    at = at.decode()
    return Lease(
        key_id=key.key_id,
        project=key.project,
        billing_account=key.billing_account,
        bucket=bucket.decode(),
        verb=info.verb,
        tokens=info.tokens,
        requests=info.requests,
        at=float(at) - behind,
        probe=bool(probe),
        tier=key.tier,
        reservation=RedisReservation(
            lease_id, at, minute, near_boundary, day_end, mark, held, info.quota_model
        ),
        record=key.record,
    )


def refused(reply: Sequence[Any], candidates: RankedCandidates, behind: float) -> Unavailable:
    """Read a refusal: why keys of *candidates* cannot serve; all of them, but for a dry run."""
    blocks = {
        key.key_id: Block(reason.decode(), float(until) - behind, bool(waitable))
        for (_, key), reason, until, waitable in zip(
            candidates, reply[3::3], reply[4::3], reply[5::3], strict=True
        )
        if reason
    }
    return Unavailable(float(reply[2]) - behind, blocks)


def lease_words(lease: Lease, outcome: Outcome) -> list[Word]:
    """Write a lease and what became of it."""
    reservation = lease.reservation
    if not isinstance(reservation, RedisReservation):  # reported by hand: nothing was booked
        reservation = RedisReservation("", repr(lease.at), -1, 0, 0, NO_MARK, 0, lease.bucket)
    used = outcome.usage.input_tokens
    return [
        lease.key_id,
        lease.project,
        lease.record or lease.key_id,
        text(lease.bucket),
        text(lease.verb),
        text(reservation.model),
        outcome.kind.value,
        "" if used is None else used,
        *reservation[:-1],
        lease.requests,
        lease.tokens,
    ]


def plain(lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> bool:
    """Return whether nobody needs to know that a settle was booked before going on.

    An owner must be known, and a place in `max_concurrency` free, before the next call asks, which
    may do so by another connection. Of a probe everybody waits to hear.
    """
    waited_for = lease.probe or (
        isinstance(lease.reservation, RedisReservation) and lease.reservation.held
    )
    success = outcome.kind is LeaseOutcome.SUCCESS and outcome.verdict is None
    return success and not names and not waited_for


def verdict_words(verdict: Verdict | None, policy: RetryPolicy) -> str:
    """Write a verdict as JSON; nothing for none."""
    if verdict is None:
        return ""
    learned, backoff = verdict.learned, verdict.backoff or policy.backoff
    words = {
        "failure": verdict.failure,
        "scope": verdict.scope.value,
        "until": "" if verdict.until is None else repr(verdict.until),
        "waitable": verdict.has_known_end and verdict.may_wait,
        "bucket": verdict.bucket or "",
        "rpm": -1 if learned.rpm is None else learned.rpm,
        "tpm": -1 if learned.tpm is None else learned.tpm,
        "rpd": -1 if learned.rpd is None else learned.rpd,
        "is_minute_quota": verdict.is_minute_quota,
        "retry_delay_s": -1 if verdict.retry_delay_s is None else verdict.retry_delay_s,
        **backoff._asdict(),
    }
    return json.dumps(words)


def stored_name(name: str) -> tuple[str, int]:
    """Return the digest that stands for a stored thing, and for how many seconds to keep it.

    Names can be long (a continuation token) or tell something; none is needed to find the owner.
    """
    kept = next((s for begin, s in _OWNED_S.items() if name.startswith(begin)), _OWNED_LONG_S)
    return blake2b(name.encode(errors="replace"), digest_size=16).hexdigest(), int(kept)


def owner_of(records: Iterable[bytes | None]) -> tuple[str, str] | None:
    """Read the first owner that is known."""
    for record in records:
        if record is not None:
            key_id, project = json.loads(record)
            if not (isinstance(key_id, str) and isinstance(project, str)):
                raise ValueError("no owner")
            return key_id, project
    return None


def until_of(reply: bytes | None) -> float | None:
    """Read until when a scope is cooling down."""
    return None if reply is None else float(reply)


def lease_ids() -> Iterator[str]:
    """Make ids that no other process makes."""
    begin = secrets.token_hex(6)
    return map((begin + "-{}").format, count())


def behind_by(server: float, client: float) -> float:
    """Return how far a clock is behind the server's; none within the guard, where both are right."""
    skew = server - client
    return skew if abs(skew) > GUARD_S else 0.0


def tell(health: KeyHealth, behind: float) -> None:
    """Return the times of *health* by a clock that is so far behind the server's."""
    if health.last_used is not None:
        health.last_used -= behind
    if health.cooldown_until is not None:
        health.cooldown_until -= behind


def health_of(record: bytes) -> KeyHealth:
    """Read a health record."""
    last_used, successes, errors, _, *last_error = json.loads(record)
    if not all(isinstance(value, int | float) for value in (last_used, successes, errors)):
        raise ValueError("no health")
    return KeyHealth(last_used or None, successes, errors, last_error=next(iter(last_error), None))


def fingerprint_of(record: bytes) -> str:
    """Read with which value a key was used last."""
    found = json.loads(record)[3]
    return found if isinstance(found, str) else ""


def quota_of(record: bytes) -> QuotaWindows:
    """Read a quota record; shared.lua names its places."""
    values = json.loads(record)
    quota = QuotaWindows()
    if len(values) < 13:  # of an older version
        return quota
    quota.minute, quota.requests, quota.requests_next = values[:3]
    quota.tokens, quota.tokens_next, quota.day_end, quota.day_requests = values[3:7]
    (
        quota.first_second,
        quota.last_second,
        quota.previous_first_second,
        quota.previous_last_second,
    ) = values[7:11]
    quota.previous_requests, quota.previous_tokens = values[11:13]
    if len(values) > 13:
        quota.learned_until = values[13]
        limits = (None if limit < 0 else limit for limit in values[14:17])
        quota.learned = Limits(*limits) if any(v >= 0 for v in values[14:17]) else NO_LIMITS
    if len(values) > 17:
        quota.window_until, kind, window = values[17:]
        cells = zip(window[::3], window[1::3], window[2::3], strict=True) if kind == 1 else iter(())
        quota.window = SlidingWindow(cells) if kind == 1 else TokenBucket(*window)
    return quota


def cooldowns_of(record: bytes, owner: str) -> dict[tuple[str, ...], Cooldown]:
    """Read the cooldowns of one key, project or account, by the names of `scope_key`."""
    found: dict[tuple[str, ...], Cooldown] = {}
    for scope, rest in json.loads(record).items():
        kind, _, detail = scope.partition(":")
        cooldown = Cooldown()
        cooldown.extend(rest["failure"], float(rest["until"]), waitable=rest["waitable"])
        cooldown.length = float(rest.get("length", "inf"))
        found[(kind, owner, detail) if detail else (kind, owner)] = cooldown
    return found


# Shortlists as acquire.lua takes them: the names of all records are made here, and once --------
#
# In the script they would have to be made for every call, at half of its time.


MADE_KEPT = 50_000


class _Offer(NamedTuple):
    """One candidate for one bucket."""

    key: Candidate
    spec: bytes
    names: tuple[bytes, ...]


class Offers:
    """Writes shortlists; what it wrote of a candidate is kept."""

    def __init__(self, base: str) -> None:
        """Write nothing yet; all names begin with *base*."""
        self._base = text(base)
        self._made: dict[tuple[str, bytes], _Offer] = {}

    def args(self, candidates: RankedCandidates, model: bytes, bucket: bytes) -> list[Any]:
        """Return the arguments that follow the fixed ones.

        Args:
            candidates: The candidates.
            model: As asked for.
            bucket: In which it is counted, as far as is known.
        """
        specs: list[Any] = []
        names: list[Any] = [b"%b:bucket:%b" % (self._base, model), self._base + b":epoch"]
        for group, key in candidates:
            offer = self._made.get((key.key_id, bucket))
            if offer is None or offer.key is not key:
                offer = self._make(key, bucket)
            specs += (group, offer.spec)
            names += offer.names
        return specs + names

    def names(self, lease: Lease) -> tuple[bytes, ...]:
        """Return the names of the records that a lease is about."""
        bucket = text(lease.bucket)
        offer = self._made.get((lease.key_id, bucket))
        if offer is not None and _same_owners(offer.key, lease):
            return offer.names
        record = lease.record or lease.key_id
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=record)
        return self._names(key, bucket)

    def _make(self, key: Candidate, bucket: bytes) -> _Offer:
        if len(self._made) >= MADE_KEPT:
            self._made.clear()
        offer = _Offer(key, _spec(key), self._names(key, bucket))
        self._made[(key.key_id, bucket)] = offer
        return offer

    def _names(self, key: Candidate, bucket: bytes) -> tuple[bytes, ...]:
        account, project, record = map(text, (key.billing_account, key.project, key.record))
        names = (
            b"cooldown:billing:%b" % account,
            b"cooldown:project:%b" % project,
            b"cooldown:key:%b" % record,
            b"quota:%d:%b:%b" % (len(project), project, bucket),
            b"health:%b" % text(key.key_id),
        )
        return tuple(b"%b:%b" % (self._base, name) for name in names)


def _same_owners(key: Candidate, lease: Lease) -> bool:
    mine = (key.project, key.billing_account, key.record)
    return mine == (lease.project, lease.billing_account, lease.record or lease.key_id)


def _spec(key: Candidate) -> bytes:
    """Write weight and limits as JSON, and whose leases are counted; nothing for the defaults."""
    if key.limits == NO_LIMITS and key.weight == 1.0:
        return b""
    limits = (-1 if limit is None else limit for limit in key.limits)
    return text(json.dumps([key.weight, *limits, key.record], ensure_ascii=False))
