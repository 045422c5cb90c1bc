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
from .scripts import QUOTA, Packer, pack_texts, unpack_quota

__all__ = [
    "DRY_RUN",
    "AcquireEncoder",
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
    "parse_health",
    "parse_lease",
    "parse_owner",
    "parse_quota",
    "parse_refusal",
    "parse_spending",
    "quota_name",
    "readable",
    "resource_digest",
    "shift_times",
]

DRY_RUN = ""
"""The lease id with which acquire.lua decides but reserves nothing."""

MAX_CANDIDATES = 50_000
Arg = str | int | float | bytes
_T = TypeVar("_T")
_R = TypeVar("_R")


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
    reply: bytes,
    info: CallInfo,
    candidates: RankedCandidates,
    lease_id: str,
    now: float,
) -> tuple[Lease, str, int]:
    """Parse a granted lease; return it with the epoch and its number of changes.

    Args:
        reply: Of acquire.lua.
        info: The call.
        candidates: What was offered.
        lease_id: The id of the lease.
        now: This host's clock, by which its times are returned.
    """
    words, refusals, bucket = reply.decode(errors="replace").split("\n", 2)
    epoch, changes, position, at, probe, minute, near_boundary, day_end, counted = words.split(" ")
    key = candidates[int(position) - 1][1]
    skew = clock_skew(float(at), now)
    lease = Lease(
        key_id=key.key_id,
        project=key.project,
        billing_account=key.billing_account,
        bucket=bucket,
        verb=info.verb,
        tokens=info.tokens,
        requests=info.requests,
        at=float(at) - skew,
        probe=probe == "1",
        tier=key.tier,
        reservation=RedisReservation(
            lease_id,
            at,
            int(minute),
            int(near_boundary),
            int(day_end),
            int(counted),
            info.quota_model,
        ),
        record=key.record,
        has_budget=key.usd_per_day is not None,
        refused={} if refusals == "[]" else _parse_refusals(json.loads(refusals), candidates, skew),
    )
    return lease, epoch, int(changes)


def parse_refusal(reply: Sequence[Any], candidates: RankedCandidates, skew: float) -> Unavailable:
    """Parse a refusal: why *candidates* are not available; in a dry run only some of them."""
    refusals = ((place, why.decode(), until, wait) for place, why, until, wait in reply[3])
    return Unavailable(float(reply[2]) - skew, _parse_refusals(refusals, candidates, skew))


def _parse_refusals(
    refusals: Iterable[Any], candidates: RankedCandidates, skew: float
) -> dict[str, Block]:
    return {
        candidates[position - 1][1].key_id: Block(reason, float(until) - skew, bool(waitable))
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
        lease.billing_account,
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
    reservation = lease.reservation
    return (
        isinstance(reservation, RedisReservation)
        and outcome.kind is LeaseOutcome.SUCCESS
        and outcome.verdict is None
        and not (names or lease.probe or reservation.counted or lease.has_budget)
    )


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


def readable(parse: Callable[[_R], _T | None], record: _R | None) -> _T | None:
    """Parse a record; None if there is none, or if it cannot be read.

    The script that writes it next drops what cannot be read, and says so.
    """
    try:
        return None if record is None else parse(record)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def lease_ids() -> Iterator[str]:
    """Return an iterator of ids that are unique across processes.

    An id is `<process>.<minute>:<number>`; shared.lua names the records of replies by its first
    part. Threads share the iterator, so it is
    no generator.
    """
    process = secrets.token_hex(6)
    return map(lambda number: f"{process}.{monotonic() // 60:.0f}:{number}", count())


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


def parse_health(record: Sequence[bytes | None]) -> KeyHealth | None:
    """Parse a health record, as read_health.lua returns it; None if there is none."""
    if not any(record):
        return None
    last_used, successes, errors, _, last_error = record
    return KeyHealth(
        float(last_used) if last_used else None,
        int(successes or 0),
        int(errors or 0),
        last_error=last_error.decode() if last_error else None,
    )


def parse_quota(record: bytes) -> QuotaWindows:
    """Parse a quota record; scripts.py names its fields."""
    values = unpack_quota(record)
    quota = QuotaWindows()
    for field, value in zip(QUOTA, values, strict=False):
        setattr(quota, field, int(value))
    if len(values) > len(QUOTA):
        quota.learned_until, *learned = values[len(QUOTA) :]
        limits = (None if limit < 0 else int(limit) for limit in learned)
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


# Arguments of acquire.lua: see scripts.py ------------------------------------------------------


class AcquireEncoder:
    """Packs the arguments of acquire.lua."""

    def __init__(self, lease_s: float) -> None:
        """Start empty; *lease_s* is how long a lease is valid without renewal, seconds."""
        self._lease_s = lease_s
        self._pack_call, self._pack_candidate, self._pack_settle = (
            Packer(),
            Packer(),
            Packer(),
        )
        self._candidates: dict[tuple[str, int], tuple[Candidate, bytes]] = {}

    def call(self, info: CallInfo, bucket: str, midnights: str, *, spread: bool) -> bytes:
        """Pack a call whose model is in *bucket*: CALL."""
        costs = info.input_cost, info.longest_cost
        return self._pack_call(
            (info.requests, info.tokens, spread, self._lease_s, *costs),
            *(
                midnights,
                info.quota_model,
                info.verb,
                bucket,
                price_suffix(info.service_tier),
            ),
        )

    def candidates(self, candidates: RankedCandidates) -> bytes:
        """Pack candidates: CANDIDATE. Each is packed once and kept."""
        known = self._candidates
        texts = []
        for group, key in candidates:
            packed = known.get((key.key_id, group))
            if packed is None or packed[0] is not key:
                if len(known) >= MAX_CANDIDATES:
                    known.clear()
                packed = known[key.key_id, group] = (key, self._candidate(group, key))
            texts.append(packed[1])
        return b"".join(texts)

    def _candidate(self, group: int, key: Candidate) -> bytes:
        limits = (-1 if limit is None else limit for limit in key.limits)
        budget = -1 if key.usd_per_day is None else nano_usd(key.usd_per_day)
        names = pack_texts(key.billing_account, key.record, key.key_id)
        return self._pack_candidate((group, key.weight, *limits, budget), key.project, names)

    def settle(self, lease: Lease, outcome: Outcome) -> bytes:
        """Pack a lease that `can_defer_reply`: SETTLE."""
        reservation = lease.reservation
        assert isinstance(reservation, RedisReservation)  # noqa: S101 - narrows the type
        used = outcome.usage.input_tokens
        numbers = (
            *(reservation.minute, reservation.near_boundary, reservation.day_end),
            *(
                lease.requests,
                lease.tokens,
                -1 if used is None else used,
                float(reservation.at),
            ),
        )
        record = lease.record or lease.key_id
        texts = (
            lease.key_id,
            lease.project,
            lease.billing_account,
            record,
            lease.bucket,
            lease.verb,
        )
        return self._pack_settle(numbers, *texts) + pack_texts(reservation.lease_id)


def quota_name(base: str, project: str, bucket: str) -> str:
    """Return the name of a quota record; the length separates `a:b`, `c` from `a`, `b:c`."""
    return f"{base}:quota:{len(project.encode())}:{project}:{bucket}"
