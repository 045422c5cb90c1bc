"""Converts values to the arguments of the scripts in ../lua, and their replies to values."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from math import inf
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from ...core.affinity import owner_lifetime
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
from ...core.spending import Spending, nano_usd, price_suffix
from ...core.windows import (
    DAY_S,
    GUARD_S,
    Cooldown,
    QuotaWindows,
    next_pacific_midnight,
)
from ..base import KeyHealth
from .scripts import QUOTA

__all__ = [
    "DRY_RUN",
    "CandidateEncoder",
    "PacificMidnights",
    "RedisReservation",
    "can_defer_reply",
    "clock_skew",
    "encode_cost",
    "encode_lease",
    "encode_price_suffix",
    "encode_text",
    "encode_verdict",
    "lease_ids",
    "parse_cooldowns",
    "parse_fingerprint",
    "parse_health",
    "parse_lease",
    "parse_owner",
    "parse_quota",
    "parse_refusal",
    "parse_spending",
    "quota_name",
    "readable",
    "replies_name",
    "resource_digest",
    "shift_times",
]

DRY_RUN = ""
"""The lease id with which acquire.lua decides but reserves nothing."""

Arg = str | int | float | bytes
_T = TypeVar("_T")


class RedisReservation(NamedTuple):
    """What was reserved for a lease: all that settle needs, as plain data."""

    lease_id: str
    at: str
    """When it was granted by the server's clock, in full precision."""
    minute: int
    near_boundary: int
    day_end: int
    counted: int
    """1: it counts in the key's `max_concurrency`."""
    model: str
    """As requested; the lease has only the bucket."""


class PacificMidnights:
    """The next Pacific midnights as a JSON list, for a server without time zones.

    From two days ago to three days ahead, so that a host clock that is a day off does no harm: the
    server takes the first one after its own time.
    """

    def __init__(self) -> None:
        self._known = (inf, -inf, "")
        """Valid from, valid until, text; one value, since threads share it."""

    def __call__(self, now: float) -> str:
        """Return the list as of *now*, epoch seconds."""
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


def encode_text(words: str) -> bytes:
    """Encode text from the program's request, which UTF-8 may not be able to encode."""
    return words.encode(errors="replace")


def parse_lease(
    reply: Sequence[Any], info: CallInfo, candidates: RankedCandidates, lease_id: str, skew: float
) -> Lease:
    """Parse a granted lease; *skew* is how far this host's clock is behind, seconds."""
    position, bucket, at, probe, minute, near_boundary, day_end, counted, refusals = reply[3:]
    key = candidates[position - 1][1]
    at = at.decode()
    return Lease(
        key_id=key.key_id,
        project=key.project,
        billing_account=key.billing_account,
        bucket=bucket.decode(),
        verb=info.verb,
        tokens=info.tokens,
        requests=info.requests,
        at=float(at) - skew,
        probe=bool(probe),
        tier=key.tier,
        reservation=RedisReservation(
            lease_id, at, minute, near_boundary, day_end, counted, info.quota_model
        ),
        record=key.record,
        has_budget=key.usd_per_day is not None,
        refused=_parse_refusals(refusals, candidates, skew),
    )


def parse_refusal(reply: Sequence[Any], candidates: RankedCandidates, skew: float) -> Unavailable:
    """Parse a refusal: why *candidates* are not available; in a dry run only some of them."""
    return Unavailable(float(reply[3]) - skew, _parse_refusals(reply[4], candidates, skew))


def _parse_refusals(
    refusals: Sequence[Any], candidates: RankedCandidates, skew: float
) -> dict[str, Block]:
    return {
        candidates[position - 1][1].key_id: Block(
            reason.decode(), float(until) - skew, bool(waitable)
        )
        for position, reason, until, waitable in refusals
        if reason
    }


def encode_lease(lease: Lease, outcome: Outcome) -> list[Arg]:
    """Return a lease and its outcome as arguments of settle.lua."""
    reservation = lease.reservation
    if not isinstance(
        reservation, RedisReservation
    ):  # reported by KeyManager: nothing was reserved
        reservation = RedisReservation("", repr(lease.at), -1, 0, 0, 0, lease.bucket)
    used = outcome.usage.input_tokens
    return [
        lease.key_id,
        lease.project,
        lease.record or lease.key_id,
        encode_text(lease.bucket),
        encode_text(lease.verb),
        encode_text(reservation.model),
        outcome.kind.value,
        "" if used is None else used,
        *reservation[:-1],
        lease.requests,
        lease.tokens,
    ]


def encode_cost(lease: Lease, outcome: Outcome) -> Arg:
    """Return what a request cost as an argument of settle.lua; empty without a budget."""
    if not lease.has_budget:
        return ""
    usd = outcome.usage.cost_usd
    return "?" if usd is None else nano_usd(usd)


def encode_price_suffix(lease: Lease, outcome: Outcome) -> Arg:
    """Return how settle.lua keeps the costs of a service tier apart; empty without a budget."""
    return price_suffix(outcome.usage.service_tier) if lease.has_budget else ""


def can_defer_reply(lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> bool:
    """Return whether a settle may be sent later, since no other call depends on it.

    Owners and released `max_concurrency` must be visible to the next call, which may use another
    connection, and other calls wait for the outcome of a probe.
    """
    waited_for = lease.probe or (
        isinstance(lease.reservation, RedisReservation) and lease.reservation.counted
    )
    success = outcome.kind is LeaseOutcome.SUCCESS and outcome.verdict is None
    return success and not names and not waited_for


def encode_verdict(verdict: Verdict | None, policy: RetryPolicy) -> str:
    """Return a verdict as JSON; empty for None."""
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
        **backoff._asdict(),
    }
    return json.dumps(words)


def resource_digest(name: str) -> tuple[str, int]:
    """Return the digest of a resource name, and how long to keep its owner, seconds.

    Names can be long (a continuation token) or confidential; the digest is enough.
    """
    digest = blake2b(name.encode(errors="replace"), digest_size=16).hexdigest()
    return digest, owner_lifetime(name).seconds


def parse_owner(records: Iterable[bytes | None]) -> tuple[str, str] | None:
    """Parse the first known owner."""
    return next(filter(None, (readable(_parse_owner, record) for record in records)), None)


def _parse_owner(record: bytes) -> tuple[str, str]:
    key_id, project = json.loads(record)
    if not (isinstance(key_id, str) and isinstance(project, str)):
        raise TypeError("no owner")
    return key_id, project


def readable(parse: Callable[[bytes], _T], record: bytes | None) -> _T | None:
    """Parse a record; None if there is none, or if it cannot be read.

    The script that writes it next drops what cannot be read, and says so.
    """
    try:
        return None if record is None else parse(record)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def lease_ids() -> Iterator[str]:
    """Return an iterator of ids that are unique across processes.

    An id is `<process>.<minute>:<number>`; see `replies_name`. Threads share the iterator, so it is
    no generator.
    """
    process = secrets.token_hex(6)
    return map(lambda number: f"{process}.{monotonic() // 60:.0f}:{number}", count())


def replies_name(base: str, lease_id: str) -> str:
    """Return the name of the record that has the reply of a lease."""
    return f"{base}:replies:{lease_id.partition(':')[0]}"


def clock_skew(server: float, client: float) -> float:
    """Return how far a clock is behind the server's, seconds; 0 within the guard."""
    skew = server - client
    return skew if abs(skew) > GUARD_S else 0.0


def shift_times(health: KeyHealth, skew: float) -> None:
    """Shift the times of *health* to a clock that is *skew* seconds behind the server's."""
    if health.last_used is not None:
        health.last_used -= skew
    if health.cooldown_until is not None:
        health.cooldown_until -= skew


def parse_health(record: bytes) -> KeyHealth:
    """Parse a health record."""
    last_used, successes, errors, _, *last_error = json.loads(record)
    if not all(isinstance(value, int | float) for value in (last_used, successes, errors)):
        raise ValueError("no health")
    return KeyHealth(last_used or None, successes, errors, last_error=next(iter(last_error), None))


def parse_fingerprint(record: bytes) -> str:
    """Parse the fingerprint of the value that a key was last used with."""
    found = json.loads(record)[3]
    return found if isinstance(found, str) else ""


def parse_quota(record: bytes) -> QuotaWindows:
    """Parse a quota record; scripts.py names its fields."""
    values = json.loads(record)
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError("no quota")
    quota = QuotaWindows()
    for field, value in zip(QUOTA, values[: len(QUOTA)], strict=True):
        setattr(quota, field, value)
    if len(values) > len(QUOTA):
        quota.learned_until, *learned = values[len(QUOTA) :]
        limits = (None if limit < 0 else limit for limit in learned)
        quota.learned = Limits(*limits) if any(limit >= 0 for limit in learned) else NO_LIMITS
    return quota


def parse_spending(record: bytes) -> Spending:
    """Parse what a project has spent; scripts.py names the fields."""
    spending = Spending()
    spending.day_end, spending.spent, *_ = values = json.loads(record)
    if not all(isinstance(value, int | float) for value in values[:2]):
        raise ValueError("no spending")
    return spending


def parse_cooldowns(record: bytes, owner: str) -> dict[tuple[str, ...], Cooldown]:
    """Parse the cooldowns of one key, project or account, by the names of `scope_key`."""
    found: dict[tuple[str, ...], Cooldown] = {}
    for scope, stored in json.loads(record).items():
        kind, _, detail = scope.partition(":")
        cooldown = Cooldown()
        cooldown.extend(stored["failure"], float(stored["until"]), waitable=stored["waitable"])
        cooldown.length = float(stored.get("length", "inf"))
        found[(kind, owner, detail) if detail else (kind, owner)] = cooldown
    return found


# Candidates as arguments of acquire.lua, with the names of their records ------------------------
#
# They are encoded once and kept: building the names in the script takes half the time of a call.


MAX_ENCODED = 50_000


class _EncodedCandidate(NamedTuple):
    """One candidate for one bucket."""

    key: Candidate
    spec: bytes
    names: tuple[bytes, ...]


class CandidateEncoder:
    """Encodes candidates and caches the result."""

    def __init__(self, base: str) -> None:
        """Start empty; *base* is the prefix of all names."""
        self._base = encode_text(base)
        self._encoded: dict[tuple[str, bytes], _EncodedCandidate] = {}

    def encode(
        self, candidates: RankedCandidates, lease_id: str, model: bytes, bucket: bytes
    ) -> tuple[list[Any], list[Any]]:
        """Return the records that acquire.lua reads, and the arguments that follow the fixed ones.

        Args:
            candidates: The candidates.
            lease_id: The id of the lease.
            model: As requested.
            bucket: The last known bucket of the model.
        """
        specs: list[Any] = []
        names: list[Any] = [
            replies_name(self._base.decode(), lease_id),
            b"%b:bucket:%b" % (self._base, model),
            b"%b:epoch" % self._base,
        ]
        for group, key in candidates:
            encoded = self._encoded.get((key.key_id, bucket))
            if encoded is None or encoded.key is not key:
                encoded = self._encode(key, bucket)
            specs += (group, encoded.spec)
            names += encoded.names
        return names, specs

    def record_names(self, lease: Lease) -> tuple[bytes, ...]:
        """Return the names of the records of a lease."""
        bucket = encode_text(lease.bucket)
        encoded = self._encoded.get((lease.key_id, bucket))
        if encoded is not None and _same_owners(encoded.key, lease):
            return encoded.names
        record = lease.record or lease.key_id
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=record)
        return self._encode_names(key, bucket)

    def _encode(self, key: Candidate, bucket: bytes) -> _EncodedCandidate:
        if len(self._encoded) >= MAX_ENCODED:
            self._encoded.clear()
        encoded = _EncodedCandidate(key, _encode_limits(key), self._encode_names(key, bucket))
        self._encoded[(key.key_id, bucket)] = encoded
        return encoded

    def _encode_names(self, key: Candidate, bucket: bytes) -> tuple[bytes, ...]:
        account, project, record = map(encode_text, (key.billing_account, key.project, key.record))
        names = (
            b"cooldown:billing:%b" % account,
            b"cooldown:project:%b" % project,
            b"cooldown:key:%b" % record,
            b"quota:%d:%b:%b" % (len(project), project, bucket),
            b"health:%b" % encode_text(key.key_id),
        )
        return tuple(b"%b:%b" % (self._base, name) for name in names)


def _same_owners(key: Candidate, lease: Lease) -> bool:
    mine = (key.project, key.billing_account, key.record)
    return mine == (lease.project, lease.billing_account, lease.record or lease.key_id)


def _encode_limits(key: Candidate) -> bytes:
    """Return weight, limits, record and budget of a key as JSON; empty for the defaults."""
    if key.limits == NO_LIMITS and key.weight == 1.0 and key.usd_per_day is None:
        return b""
    words = [key.weight, *(-1 if limit is None else limit for limit in key.limits), key.record]
    if key.usd_per_day is not None:
        words += [nano_usd(key.usd_per_day), key.project]
    return encode_text(json.dumps(words, ensure_ascii=False))


def quota_name(base: str, project: str, bucket: str) -> str:
    """Return the name of a quota record; the length separates `a:b`, `c` from `a`, `b:c`."""
    return f"{base}:quota:{len(project.encode())}:{project}:{bucket}"
