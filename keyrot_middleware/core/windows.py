"""Minutes, Pacific days and cooldowns as arithmetic; the oracle for every state backend.

Google counts requests and input tokens in fixed windows: the wall-clock minute for RPM and TPM,
the day of America/Los_Angeles for RPD (docs/gemini-api.md#windows). Fixed windows have three
consequences:

- A clock may differ from Google's by a second. Within `GUARD_S` of a minute's boundary it is
  unknown in which minute Google counts a request, so it is counted in both.
- A minute needs at most two counters: the current minute's and, near its end, the next one's.
- A request larger than the whole limit never fits. It is allowed when the window is empty, since
  the estimate may be wrong; Google's response decides.

A cooldown without a time from the server doubles with each consecutive failure of its scope.
When it ends, a single request (the probe) goes first; a success clears the cooldown. A slow probe
does not block others for long: every `PROBE_S` seconds one more request may go.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import inf
from zoneinfo import ZoneInfo

from .model import NO_LIMITS, Block, Candidate, Lease, Limits, Scope, smaller_limit

__all__ = [
    "AHEAD_S",
    "DAY_S",
    "GUARD_S",
    "HOUR_S",
    "PROBE_POLL_S",
    "PROBE_S",
    "SHORT_DAY_S",
    "VALID_S",
    "Cooldown",
    "QuotaWindows",
    "Slot",
    "cooldown_names",
    "current_day_end",
    "exponential_cooldown",
    "next_minute",
    "next_pacific_midnight",
    "next_pacific_month",
    "pacific_day",
    "scope_key",
    "scope_keys",
]

GUARD_S = 1.0
AHEAD_S = 60.0
"""A record further in the future than this comes from a clock that was set back since."""
DAY_S = 86_400.0
HOUR_S = 3_600.0
VALID_S = 58.0
SHORT_DAY_S = 23 * HOUR_S
"""The length of the day on which summer time begins."""
PROBE_S = 2.0
"""How long a probe is the only request; then one more may go, which becomes the probe."""
PROBE_POLL_S = 0.1
"""When to look again while a key is at max_concurrency or probed: the end is unknown."""

_PACIFIC = ZoneInfo("America/Los_Angeles")


def next_minute(now: float) -> float:
    """Return when the next minute has started by Google's clock too, epoch seconds."""
    return (now // 60 + 1) * 60 + GUARD_S


def next_pacific_midnight(now: float) -> float:
    """Return when the Pacific day ends (it has 23, 24 or 25 hours), epoch seconds."""
    return _midnight_after(int(now // 3600))


def current_day_end(day_end: float, now: float) -> float:
    """Return when the Pacific day ends; *day_end* while the day that ends then has not ended.

    One that is further in the future than a day is long comes from a clock that was set back.
    """
    if now >= day_end or day_end - now > SHORT_DAY_S:
        midnight = next_pacific_midnight(now)
        if now >= day_end or day_end - midnight > SHORT_DAY_S - HOUR_S:
            return midnight
    return day_end


@lru_cache(maxsize=8)
def _midnight_after(hour: int) -> float:
    """Return the Pacific midnight after *hour*, counted in full hours since the epoch."""
    local = datetime.fromtimestamp(hour * 3600, _PACIFIC)
    tomorrow = local.date() + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=_PACIFIC)
    return midnight.astimezone(UTC).timestamp()


def pacific_day(now: float) -> str:
    """Return the date in Los Angeles at *now*, such as `2026-11-26`."""
    return _pacific_day(int(now // 3600))


@lru_cache(maxsize=8)
def _pacific_day(hour: int) -> str:
    return datetime.fromtimestamp(hour * 3600, _PACIFIC).date().isoformat()


def next_pacific_month(now: float) -> float:
    """Return when the Pacific month ends, epoch seconds."""
    local = datetime.fromtimestamp(now, _PACIFIC)
    first = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=_PACIFIC)
    return first.astimezone(UTC).timestamp()


def exponential_cooldown(failure_count: int, base_s: float, max_s: float) -> float:
    """Return the length of the cooldown after so many consecutive failures, seconds."""
    return min(base_s * 2.0 ** min(failure_count - 1, 60), max_s)


def scope_key(
    scope: Scope, *, record: str, project: str, billing_account: str, bucket: str, verb: str
) -> tuple[str, str]:
    """Return where a cooldown of *scope* is stored: the name of a record, and one in it."""
    match scope:
        case Scope.KEY_VERB:
            return f"cooldown:key:{record}", f"key_verb:{verb}"
        case Scope.KEY_MODEL:
            return f"cooldown:key:{record}", f"key_model:{bucket}"
        case Scope.PROJECT_MODEL:
            return f"cooldown:project:{project}", f"project_model:{bucket}"
        case Scope.PROJECT | Scope.PROJECT_CACHE:
            return f"cooldown:project:{project}", scope.value
        case Scope.BILLING:
            return f"cooldown:billing:{billing_account}", scope.value
        case _:
            return f"cooldown:key:{record}", scope.value


def cooldown_names(key: Candidate | Lease) -> tuple[str, str, str]:
    """Return the names of the records of all cooldowns that can block *key*."""
    return (
        f"cooldown:billing:{key.billing_account}",
        f"cooldown:project:{key.project}",
        f"cooldown:key:{key.record or key.key_id}",
    )


def scope_keys(key: Candidate | Lease, bucket: str, verb: str) -> tuple[tuple[str, str], ...]:
    """Return where all cooldowns that block *key* are stored, the widest scope first."""
    of_account, of_project, of_key = cooldown_names(key)
    keys = (
        (of_account, "billing"),
        (of_project, "project"),
        (of_key, "key"),
        (of_project, f"project_model:{bucket}"),
        (of_key, f"key_model:{bucket}"),
        (of_key, f"key_verb:{verb}"),
    )
    return (*keys, (of_project, "project_cache")) if verb == "cachedContents" else keys


Slot = tuple[int, bool, float]
"""Where a request was counted: minute, near a boundary?, end of the day."""


class Cooldown:
    """A scope that must not be used until a time, and the probe after it."""

    __slots__ = ("failure", "failure_count", "length", "probe", "probe_until", "until", "waitable")

    def __init__(self) -> None:
        self.until = 0.0
        self.length = inf
        """Its length when it was recorded, seconds."""
        self.failure_count = 0
        self.failure = ""
        self.waitable = False
        self.probe: str | None = None
        """The lease of the latest probe while it is the only request."""
        self.probe_until = 0.0

    def escalate(self, at: float, base_s: float, max_s: float) -> float:
        """Count a failure of a request leased *at*; return the length of the cooldown, seconds.

        Requests that were in flight together and fail together count as one failure.
        """
        if at >= self.until or not self.failure_count:
            self.failure_count += 1
        return exponential_cooldown(self.failure_count, base_s, max_s)

    def extend(
        self, failure: str, until: float, *, waitable: bool, now: float | None = None
    ) -> None:
        """Record a failure as of *now*; it never shortens an active cooldown."""
        if until >= self.until or (now is not None and self.is_in_future(now)):
            self.until, self.failure, self.waitable = until, failure, waitable
            self.length = inf if now is None else until - now
        self.probe = None

    def is_in_future(self, now: float) -> bool:
        """Return whether the clock was set back since the cooldown was recorded."""
        return self.until > now + self.length + AHEAD_S

    def is_active(self, now: float) -> bool:
        """Return whether it blocks its scope *now*."""
        return now < self.until and not self.is_in_future(now)

    def blocked_by(self, now: float) -> Block | None:
        """Return what blocks the scope *now*; None if a request may go (as the probe)."""
        if now < self.until and not self.is_in_future(now):
            return Block(self.failure, self.until, self.waitable)
        # A clock that was set back must not make the time of a probe longer.
        if self.probe is not None and now < self.probe_until <= now + PROBE_S:
            return Block("probe", min(now + PROBE_POLL_S, self.probe_until), waitable=True)
        return None

    def begin_probe(self, probe: str, now: float) -> None:
        """Make *probe* the only request for `PROBE_S`."""
        self.probe, self.probe_until = probe, now + PROBE_S

    def end_probe(self, probe: str) -> None:
        """Allow the next request, if *probe* is the latest probe."""
        if self.probe == probe:
            self.probe = None


class QuotaWindows:
    """What one project has used of one model bucket, and the limits learned for it."""

    __slots__ = (
        "day_end",
        "day_requests",
        "learned",
        "learned_until",
        "minute",
        "requests",
        "requests_next",
        "tokens",
        "tokens_next",
        "valid_until",
    )

    def __init__(self) -> None:
        self.valid_until = 0.0
        """From `VALID_S` before this time until it, no window starts or ends and no boundary is
        near, so that `advance` need not be called."""
        self.minute = -1
        self.requests = self.requests_next = 0
        self.tokens = self.tokens_next = 0
        self.day_end = 0.0
        self.day_requests = 0
        self.learned = NO_LIMITS
        self.learned_until = 0.0

    def advance(self, now: float) -> bool:
        """Start the windows of *now*; return whether *now* is within the guard of a boundary.

        Times further in the future than possible come from a clock that was set back.
        """
        first = int((now - GUARD_S) // 60)
        if first > self.minute or first < self.minute - 1:
            kept = first == self.minute + 1
            self.requests, self.requests_next = (self.requests_next if kept else 0), 0
            self.tokens, self.tokens_next = (self.tokens_next if kept else 0), 0
            self.minute = first
        day_end = current_day_end(self.day_end, now)
        if day_end != self.day_end:
            self.day_end, self.day_requests = day_end, 0
        self.learned_until = min(self.learned_until, now + DAY_S)
        if now >= self.learned_until:
            self.learned = NO_LIMITS
        self.valid_until = min((self.minute + 1) * 60 - GUARD_S, self.day_end)
        if self.learned is not NO_LIMITS:
            self.valid_until = min(self.valid_until, self.learned_until)
        return int((now + GUARD_S) // 60) > self.minute

    def limits(self, configured: Limits) -> Limits:
        """Return the limits in force: of *configured* and learned limits the smaller ones."""
        learned = self.learned
        if learned is NO_LIMITS:
            return configured
        return Limits(
            smaller_limit(configured.rpm, learned.rpm),
            smaller_limit(configured.tpm, learned.tpm),
            smaller_limit(configured.rpd, learned.rpd),
            configured.max_concurrency,
        )

    def learn(self, reported: Limits, now: float) -> None:
        """Store the limits that a failure reported, for a day."""
        have = self.learned if now < self.learned_until else NO_LIMITS
        pairs = zip(reported, have, strict=True)
        self.learned = Limits(*(old if new is None else new for new, old in pairs))
        self.learned_until = now + DAY_S

    def drop_exceeded_limits(self, requests: int, tokens: int) -> None:
        """Forget the learned limits that a single successful request exceeds.

        The sum of several proves nothing: the order in which the server counted them is unknown.
        """
        sizes = zip(self.learned, (requests, tokens, requests, 0), strict=True)
        left = Limits(*(None if limit is not None and n > limit else limit for limit, n in sizes))
        self.learned = NO_LIMITS if left == NO_LIMITS else left

    def forget_learned(self) -> None:
        """Forget the limits that failures reported."""
        self.learned, self.learned_until = NO_LIMITS, 0.0

    def blocked_by(
        self, limits: Limits, requests: int, tokens: int, *, near_boundary: bool
    ) -> Block | None:
        """Return which window is full; *near_boundary* is what `advance` returned."""
        if limits.rpd is not None and _exceeds(self.day_requests, requests, limits.rpd):
            return Block("rpd", self.day_end)
        for name, limit, cost, used, used_next in (
            ("rpm", limits.rpm, requests, self.requests, self.requests_next),
            ("tpm", limits.tpm, tokens, self.tokens, self.tokens_next),
        ):
            if limit is None:
                continue
            if near_boundary and _exceeds(used_next, cost, limit):
                return Block(name, (self.minute + 2) * 60 + GUARD_S, waitable=True)
            if _exceeds(used, cost, limit):
                return Block(name, (self.minute + 1) * 60 + GUARD_S, waitable=True)
        return None

    def utilization(self, limits: Limits, weight: float) -> float:
        """Return the used fraction of the scarcest limit; requests per *weight* without limits."""
        if limits is NO_LIMITS:
            return self.requests / weight
        known = [
            used / limit
            for used, limit in (
                (self.requests, limits.rpm),
                (self.tokens, limits.tpm),
                (self.day_requests, limits.rpd),
            )
            if limit
        ]
        return max(known) if known else self.requests / weight

    def reserve(self, requests: int, tokens: int, *, near_boundary: bool) -> Slot:
        """Count a request in all windows; return the slot that `adjust` needs."""
        self._add(requests, tokens, near_boundary=near_boundary)
        self.day_requests += requests
        return (self.minute, near_boundary, self.day_end)

    def adjust(self, slot: Slot, requests: int, tokens: int) -> None:
        """Change the counts of an earlier request, in the windows that are still kept.

        No count falls below 0: a clock that was set back may have begun its window anew.
        """
        minute, near_boundary, day_end = slot
        if minute == self.minute:
            self._add(requests, tokens, near_boundary=near_boundary)
        elif near_boundary and minute + 1 == self.minute:
            self._add(requests, tokens, near_boundary=False)
        if day_end == self.day_end:
            self.day_requests = max(self.day_requests + requests, 0)

    @property
    def expires_at(self) -> float:
        """Return when all windows are over, so that the record may be dropped, epoch seconds."""
        # A request in the day's last second may count in the minute after it as well.
        return max(self.day_end + 60.0 + GUARD_S, self.learned_until)

    def _add(self, requests: int, tokens: int, *, near_boundary: bool) -> None:
        self.requests = max(self.requests + requests, 0)
        self.tokens = max(self.tokens + tokens, 0)
        if near_boundary:
            self.requests_next = max(self.requests_next + requests, 0)
            self.tokens_next = max(self.tokens_next + tokens, 0)


def _exceeds(used: int, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)
