"""Minutes, Pacific days and cooldowns as arithmetic; the oracle for every state backend.

Google counts requests and input tokens in fixed windows: the wall-clock minute for RPM and
TPM, the day of America/Los_Angeles for RPD (GEMINI.md B4). Three consequences:

- A clock may differ from Google's by a second, so near a full minute nobody can tell which
  minute a request will be counted in. Within `GUARD_S` of the edge it is booked in both.
- A minute needs two counters at most: the current one and, near its end, the next.
- A request larger than the whole limit would never fit. It is let through when the window is
  empty, since the estimate may be wrong, and Google's own answer then decides.

A cooldown without a time from the server doubles with each failure of its scope in a row.
When one ends, a single request (the probe) goes first; a success forgets the cooldown.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from .model import NO_LIMITS, Block, Candidate, Lease, Limits, Scope

__all__ = [
    "DAY_S",
    "GUARD_S",
    "Cooldown",
    "Quota",
    "ladder",
    "next_minute",
    "next_pacific_midnight",
    "next_pacific_month",
    "own_names",
    "scope_key",
    "scope_keys",
]

GUARD_S = 1.0
DAY_S = 86_400.0
PROBE_POLL_S = 0.1
"""How soon to look again while a key is busy or being probed: its end has no known time."""

_PACIFIC = ZoneInfo("America/Los_Angeles")


def next_minute(now: float) -> float:
    """Tell when the next minute surely has begun for Google, epoch seconds."""
    return (now // 60 + 1) * 60 + GUARD_S


def next_pacific_midnight(now: float) -> float:
    """Tell when the day of Los Angeles ends (23, 24 or 25 hours long), epoch seconds."""
    return _midnight_after(int(now // 3600))


@lru_cache(maxsize=8)
def _midnight_after(hour: int) -> float:
    """Give the midnight after a full hour since the epoch: it is one itself, so all share it."""
    local = datetime.fromtimestamp(hour * 3600, _PACIFIC)
    tomorrow = local.date() + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=_PACIFIC)
    return midnight.astimezone(UTC).timestamp()


def next_pacific_month(now: float) -> float:
    """Tell when the month of Los Angeles ends, epoch seconds."""
    local = datetime.fromtimestamp(now, _PACIFIC)
    first = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=_PACIFIC)
    return first.astimezone(UTC).timestamp()


def ladder(strikes: int, base_s: float, max_s: float) -> float:
    """Give the length of the cooldown after *strikes* failures in a row, seconds."""
    return min(base_s * 2.0 ** min(strikes - 1, 60), max_s)


def scope_key(
    scope: Scope, *, key_id: str, project: str, billing_account: str, bucket: str, verb: str
) -> tuple[str, ...]:
    """Name what a cooldown of *scope* stands for."""
    match scope:
        case Scope.KEY_VERB:
            return (scope.value, key_id, verb)
        case Scope.KEY_MODEL:
            return (scope.value, key_id, bucket)
        case Scope.PROJECT_MODEL:
            return (scope.value, project, bucket)
        case Scope.PROJECT | Scope.PROJECT_CACHE:
            return (scope.value, project)
        case Scope.BILLING:
            return (scope.value, billing_account)
        case _:
            return (scope.value, key_id)


def own_names(key_id: str) -> tuple[str, ...]:
    """Name what a key is alone: itself, and the project and account it has for want of others."""
    return (key_id, f"key:{key_id}", f"project:key:{key_id}")


def scope_keys(key: Candidate | Lease, bucket: str, verb: str) -> tuple[tuple[str, ...], ...]:
    """Name every cooldown that would keep *key* from serving, the widest first."""
    key_id, project = key.key_id, key.project
    keys: tuple[tuple[str, ...], ...] = (
        ("billing", key.billing_account),
        ("project", project),
        ("key", key_id),
        ("project_model", project, bucket),
        ("key_model", key_id, bucket),
        ("key_verb", key_id, verb),
    )
    return (*keys, ("project_cache", project)) if verb == "cachedContents" else keys


class Cooldown:
    """A scope that must not be used until a time, and the one probe after it."""

    __slots__ = ("failure", "probe", "strikes", "until", "waitable")

    def __init__(self) -> None:
        self.until = 0.0
        self.strikes = 0
        self.failure = ""
        self.waitable = False
        self.probe: object | None = None

    def step(self, at: float, base_s: float, max_s: float) -> float:
        """Climb the ladder for a request granted *at*, and give its length, seconds.

        Requests that were under way together and fail together are one step, not many.
        """
        if at >= self.until or not self.strikes:
            self.strikes += 1
        return ladder(self.strikes, base_s, max_s)

    def strike(self, failure: str, until: float, *, waitable: bool) -> None:
        """Record a failure; a cooldown that runs never ends sooner by it."""
        if until >= self.until:
            self.until, self.failure, self.waitable = until, failure, waitable
        self.probe = None

    def block(self, now: float) -> Block | None:
        """Say why the scope cannot serve *now*, or None when it can (as the probe)."""
        if now < self.until:
            return Block(self.failure, self.until, self.waitable)
        if self.probe is not None:
            return Block("probe", now + PROBE_POLL_S, waitable=True)
        return None


class Quota:
    """What one project has used of one model bucket, and the limits learned for it."""

    __slots__ = (
        "calm_until",
        "day_end",
        "day_requests",
        "learned",
        "learned_until",
        "minute",
        "requests",
        "requests_next",
        "tokens",
        "tokens_next",
    )

    def __init__(self) -> None:
        self.minute = -1
        self.calm_until = 0.0
        """Until then no window opens or ends, and no edge is near: `roll` need not be asked."""
        self.requests = self.requests_next = 0
        self.tokens = self.tokens_next = 0
        self.day_end = 0.0
        self.day_requests = 0
        self.learned = NO_LIMITS
        self.learned_until = 0.0

    def roll(self, now: float) -> bool:
        """Open the windows of *now*; True where it falls within the guard of a minute's edge."""
        first = int((now - GUARD_S) // 60)
        if first > self.minute:
            kept = first == self.minute + 1
            self.requests, self.requests_next = (self.requests_next if kept else 0), 0
            self.tokens, self.tokens_next = (self.tokens_next if kept else 0), 0
            self.minute = first
        if now >= self.day_end:
            self.day_end, self.day_requests = next_pacific_midnight(now), 0
        if now >= self.learned_until:
            self.learned = NO_LIMITS
        self.calm_until = min((self.minute + 1) * 60 - GUARD_S, self.day_end)
        if self.learned is not NO_LIMITS:
            self.calm_until = min(self.calm_until, self.learned_until)
        return int((now + GUARD_S) // 60) > self.minute

    def limits(self, configured: Limits) -> Limits:
        """Give the limits in force: what Google told beats what was configured."""
        learned = self.learned
        if learned is NO_LIMITS:
            return configured
        return Limits(
            configured.rpm if learned.rpm is None else learned.rpm,
            configured.tpm if learned.tpm is None else learned.tpm,
            configured.rpd if learned.rpd is None else learned.rpd,
            configured.max_concurrency,
        )

    def learn(self, told: Limits, now: float) -> None:
        """Keep the limits that a failure told, for a day."""
        have = self.learned if now < self.learned_until else NO_LIMITS
        pairs = zip(told, have, strict=True)
        self.learned = Limits(*(old if new is None else new for new, old in pairs))
        self.learned_until = now + DAY_S

    def block(self, limits: Limits, requests: int, tokens: int, *, edge: bool) -> Block | None:
        """Say which window has no room for a request, after `roll` told *edge*."""
        if limits.rpd is not None and _full(self.day_requests, requests, limits.rpd):
            return Block("rpd", self.day_end)
        for name, limit, cost, used, used_next in (
            ("rpm", limits.rpm, requests, self.requests, self.requests_next),
            ("tpm", limits.tpm, tokens, self.tokens, self.tokens_next),
        ):
            if limit is None:
                continue
            if edge and _full(used_next, cost, limit):
                return Block(name, (self.minute + 2) * 60 + GUARD_S, waitable=True)
            if _full(used, cost, limit):
                return Block(name, (self.minute + 1) * 60 + GUARD_S, waitable=True)
        return None

    def share(self, limits: Limits, weight: float) -> float:
        """Tell how much of the scarcest limit is used; of *weight* where none is known."""
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

    def book(self, requests: int, tokens: int, *, edge: bool) -> tuple[int, bool, float]:
        """Reserve, and return where: what `correct` needs to find the booking again."""
        self.requests += requests
        self.tokens += tokens
        self.day_requests += requests
        if edge:
            self.requests_next += requests
            self.tokens_next += tokens
        return (self.minute, edge, self.day_end)

    def correct(self, where: tuple[int, bool, float], requests: int, tokens: int) -> None:
        """Add to the windows of an earlier booking, as far as they still count."""
        minute, edge, day_end = where
        if minute == self.minute:
            self.requests += requests
            self.tokens += tokens
            if edge:
                self.requests_next += requests
                self.tokens_next += tokens
        elif edge and minute + 1 == self.minute:
            self.requests += requests
            self.tokens += tokens
        if day_end == self.day_end:
            self.day_requests += requests

    def idle(self, now: float) -> bool:
        """Tell whether the record says nothing any more and may be forgotten."""
        # A request in the day's last second may count in the minute after it as well.
        return now >= self.day_end + 60.0 + GUARD_S and now >= self.learned_until


def _full(used: int, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)
