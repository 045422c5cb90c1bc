"""Minutes, Pacific days and cooldowns as arithmetic; the oracle for every state backend.

Google counts requests and input tokens in fixed windows: the wall-clock minute for RPM and TPM,
the day of America/Los_Angeles for RPD (GEMINI.md B4). Fixed windows have three consequences:

- A clock may differ from Google's by a second. Within `GUARD_S` of a minute's boundary it is
  unknown in which minute Google counts a request, so it is counted in both.
- A minute needs at most two counters: the current minute's and, near its end, the next one's.
- A request larger than the whole limit never fits. It is allowed when the window is empty, since
  the estimate may be wrong; Google's response decides.

When a refusal contradicts the wall-clock minute, another kind of window is used (see below).

A cooldown without a time from the server doubles with each consecutive failure of its scope.
When it ends, a single request (the probe) goes first; a success clears the cooldown. A slow probe
does not block others for long: every `PROBE_S` seconds one more request may go.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple
from zoneinfo import ZoneInfo

from .model import NO_LIMITS, Block, Candidate, Lease, Limits, Scope, smaller_limit

__all__ = [
    "AHEAD_S",
    "DAY_S",
    "GUARD_S",
    "LATER_S",
    "MINUTE_S",
    "NO_MARK",
    "PROBE_POLL_S",
    "PROBE_S",
    "VALID_S",
    "ClockMinute",
    "Cooldown",
    "QuotaWindows",
    "RefusedRequest",
    "SlidingWindow",
    "Slot",
    "TokenBucket",
    "burst_capacity",
    "current_day_end",
    "exponential_cooldown",
    "next_minute",
    "next_pacific_midnight",
    "next_pacific_month",
    "pacific_day",
    "scope_key",
    "scope_keys",
]

# Three kinds of window for a minute -------------------------------------------------------------
#
# Google counts in wall-clock minutes but does not document it, and gateways count differently.
# `QuotaWindows` counts in wall-clock minutes until a refusal contradicts that, and then also in the
# kind of window that explains the refusal (ADR 0020):
#
# - `ClockMinute`: a window starts empty at :00.
# - `SlidingWindow`: a request counts for 60 s after it was sent.
# - `TokenBucket`: capacity refills evenly, a whole limit in 60 s.
#
# `SlidingWindow` and `TokenBucket` have the same interface: `advance`, `blocked_until`, `reserve`,
# `adjust`. The scripts in state/lua do the same arithmetic.


GUARD_S = 1.0
MINUTE_S = 60.0
AHEAD_S = 60.0
"""A record further in the future than this comes from a clock that was set back since."""
CELL_S = 2
"""Requests sent within the same two seconds share a record, which expires with the last of them.

A window has at most 32 records for any limit; capacity is reported up to 2 s late.
"""
MAX_PIECES = 8
"""How many records represent a past minute of which only start, end and sums are known."""
LATER_S = 0.001
"""Added to the time at which a bucket has refilled enough; covers rounding of doubles."""
NO_MARK = -1


class ClockMinute:
    """Counts in the wall-clock minute; the two seconds around a boundary count in both minutes.

    Of the previous minute it keeps the sums and when the first and last request were counted, so
    that another kind of window can start from them.
    """

    __slots__ = (
        "first_second",
        "last_second",
        "minute",
        "previous_first_second",
        "previous_last_second",
        "previous_requests",
        "previous_tokens",
        "requests",
        "requests_next",
        "tokens",
        "tokens_next",
    )

    def __init__(self) -> None:
        self.minute = -1
        self.requests = self.requests_next = 0
        self.tokens = self.tokens_next = 0
        self.first_second = self.last_second = -1
        """Seconds of the minute at which the first and the last request were counted; -1: none."""
        self.previous_first_second = self.previous_last_second = -1
        self.previous_requests = self.previous_tokens = 0

    def advance_minute(self, now: float) -> bool:
        """Start the minute of *now*; return whether *now* is within the guard of a boundary.

        A minute in the future is dropped: the clock was set back.
        """
        first = int((now - GUARD_S) // 60)
        if first > self.minute or first < self.minute - 1:
            kept = first == self.minute + 1
            self.previous_first_second, self.previous_last_second = (
                (self.first_second, self.last_second) if kept else (-1, -1)
            )
            self.previous_requests = self.requests - self.requests_next if kept else 0
            self.previous_tokens = self.tokens - self.tokens_next if kept else 0
            self.requests, self.requests_next = (self.requests_next if kept else 0), 0
            self.tokens, self.tokens_next = (self.tokens_next if kept else 0), 0
            self.first_second = self.last_second = 0 if self.requests or self.tokens else -1
            self.minute = first
        return int((now + GUARD_S) // 60) > self.minute

    def blocked_until(
        self, limits: Limits, requests: int, tokens: int, *, near_boundary: bool
    ) -> tuple[str, float] | None:
        """Return which window is full, and until when; None if the request fits."""
        for name, limit, cost, used, used_next in (
            ("rpm", limits.rpm, requests, self.requests, self.requests_next),
            ("tpm", limits.tpm, tokens, self.tokens, self.tokens_next),
        ):
            if limit is None:
                continue
            if near_boundary and _exceeds(used_next, cost, limit):
                return name, (self.minute + 2) * 60 + GUARD_S
            if _exceeds(used, cost, limit):
                return name, (self.minute + 1) * 60 + GUARD_S
        return None

    def add(self, requests: int, tokens: int, now: float, *, near_boundary: bool) -> None:
        """Count a request."""
        self.requests += requests
        self.tokens += tokens
        if near_boundary:
            self.requests_next += requests
            self.tokens_next += tokens
        self.last_second = int(now) - self.minute * 60
        if self.first_second < 0:
            self.first_second = self.last_second

    def adjust_counts(
        self, minute: int, requests: int, tokens: int, *, near_boundary: bool
    ) -> None:
        """Change the counts of the minutes of an earlier request, if they are still kept."""
        if minute == self.minute:
            self.requests += requests
            self.tokens += tokens
            if near_boundary:
                self.requests_next += requests
                self.tokens_next += tokens
        elif near_boundary and minute + 1 == self.minute:
            self.requests += requests
            self.tokens += tokens
        elif minute + 1 == self.minute and self.previous_first_second >= 0:
            self.previous_requests = max(self.previous_requests + requests, 0)
            self.previous_tokens = max(self.previous_tokens + tokens, 0)

    def oldest_request_at(self, now: float) -> float:
        """Return when the oldest request of the last 60 s was counted, epoch seconds."""
        before = (self.minute - 1) * 60
        if self.previous_last_second >= 0 and before + self.previous_last_second > now - MINUTE_S:
            return max(before + self.previous_first_second, now - MINUTE_S)
        return now if self.first_second < 0 else self.minute * 60 + self.first_second


class SlidingWindow:
    """Counts what was sent within the last 60 s, plus a second for the way to the server."""

    __slots__ = ("_cells", "now", "requests", "tokens")

    def __init__(self, cells: Iterable[tuple[float, int, int]] = ()) -> None:
        self._cells = array("d")
        """Triples, oldest first: when the last request of the cell was sent, requests, tokens."""
        for cell in cells:
            self._cells.extend(cell)
        self.now = 0.0
        self.requests = self.tokens = 0

    @classmethod
    def after(cls, clock: ClockMinute) -> SlidingWindow:
        """Return a window with the counts of the current and previous minute, spread evenly."""
        return cls(
            cell
            for minute, began, last, requests, tokens in (
                (
                    clock.minute - 1,
                    clock.previous_first_second,
                    clock.previous_last_second,
                    clock.previous_requests,
                    clock.previous_tokens,
                ),
                (clock.minute, clock.first_second, clock.last_second, clock.requests, clock.tokens),
            )
            for cell in _split_evenly(minute * 60, began, last, requests, tokens)
        )

    @property
    def cells(self) -> list[tuple[float, int, int]]:
        """Return the records as (sent at, requests, tokens)."""
        cells = self._cells
        return [(cells[i], int(cells[i + 1]), int(cells[i + 2])) for i in range(0, len(cells), 3)]

    def advance(self, now: float) -> None:
        """Drop records that have left the window as of *now*, and those in the future."""
        cells = self._cells
        if any(
            not now - MINUTE_S - GUARD_S < cells[i] <= now + AHEAD_S
            for i in range(0, len(cells), 3)
        ):
            self._cells = cells = array(
                "d",
                (
                    number
                    for cell in self.cells
                    if now - MINUTE_S - GUARD_S < cell[0] <= now + AHEAD_S
                    for number in cell
                ),
            )
        self.now = now
        self.requests, self.tokens = int(sum(cells[1::3])), int(sum(cells[2::3]))

    def blocked_until(self, limits: Limits, requests: int, tokens: int) -> tuple[str, float] | None:
        """Return which limit is exhausted, and until when; call `advance` first."""
        for name, limit, cost, place, used in (
            ("rpm", limits.rpm, requests, 1, self.requests),
            ("tpm", limits.tpm, tokens, 2, self.tokens),
        ):
            if limit is not None and _exceeds(used, cost, limit):
                return name, self._until(place, used, cost, limit)
        return None

    def reserve(self, requests: int, tokens: int, _limits: Limits) -> int:
        """Count a request at the time of `advance`; return the mark by which `adjust` finds it."""
        if not requests and not tokens:
            return NO_MARK
        cells, sent = self._cells, self.now
        if cells and cells[-3] > sent:
            sent = cells[-3]
        if cells and cells[-3] // CELL_S == sent // CELL_S:
            cells[-3] = sent
            cells[-2] += requests
            cells[-1] += tokens
        else:
            cells.extend((sent, requests, tokens))
        self.requests += requests
        self.tokens += tokens
        return int(sent // CELL_S)

    def adjust(self, mark: int, requests: int, tokens: int) -> None:
        """Change the record of an earlier request, if it is still kept."""
        cells = self._cells
        for i in range(0, len(cells), 3):
            if cells[i] // CELL_S == mark:
                cells[i + 1] = max(cells[i + 1] + requests, 0)
                cells[i + 2] = max(cells[i + 2] + tokens, 0)
                return

    def _until(self, place: int, used: int, cost: int, limit: int) -> float:
        for i in range(0, len(self._cells), 3):
            used -= int(self._cells[i + place])
            if not _exceeds(used, cost, limit):
                return self._cells[i] + MINUTE_S + GUARD_S
        return self.now + MINUTE_S + GUARD_S  # a limit of 0 never has capacity


class TokenBucket:
    """Counts what was used and has not refilled yet; a whole limit refills evenly in 60 s."""

    __slots__ = ("at", "now", "requests_used", "rpm", "tokens_used", "tpm")

    def __init__(
        self, at: float, requests_used: float, tokens_used: float, rpm: int = 0, tpm: int = 0
    ) -> None:
        self.at = at
        """When the last request was counted; the refill since then is computed from it."""
        self.requests_used = requests_used
        self.tokens_used = tokens_used
        self.rpm = rpm
        """The rate of the refill; 0 if unknown: then everything refills within a minute."""
        self.tpm = tpm
        self.now = at

    @property
    def requests(self) -> int:
        """Return how many requests have not refilled."""
        return ceil(self._not_refilled(self.requests_used, self.rpm) - 1e-6)

    @property
    def tokens(self) -> int:
        """Return how many tokens have not refilled."""
        return ceil(self._not_refilled(self.tokens_used, self.tpm) - 1e-6)

    def advance(self, now: float) -> None:
        """Set the time to *now*; counts from the future are dropped."""
        self.now = now
        if self.at > now + AHEAD_S:
            self.at, self.requests_used, self.tokens_used = now, 0.0, 0.0

    def blocked_until(self, limits: Limits, requests: int, tokens: int) -> tuple[str, float] | None:
        """Return which limit is exhausted, and until when; call `advance` first.

        A second's worth of the limit stays unused: a full bucket does not refill until a request
        has arrived.
        """
        for name, limit, cost, used in (
            ("rpm", limits.rpm, requests, self._not_refilled(self.requests_used, self.rpm)),
            ("tpm", limits.tpm, tokens, self._not_refilled(self.tokens_used, self.tpm)),
        ):
            if limit is None:
                continue
            if limit <= 0:
                if used + cost > 0:
                    return name, self.now + MINUTE_S
                continue
            over = used + cost - burst_capacity(limit)
            if over > 0 and used > 0:
                return name, max(self.now, self.at) + min(over, used) * MINUTE_S / limit + LATER_S
        return None

    def reserve(self, requests: int, tokens: int, limits: Limits) -> int:
        """Count a request at the time of `advance`; refill by *limits* from now on."""
        self.requests_used = self._not_refilled(self.requests_used, self.rpm) + requests
        self.tokens_used = self._not_refilled(self.tokens_used, self.tpm) + tokens
        self.at = self.now
        self.rpm = self.rpm if limits.rpm is None else limits.rpm
        self.tpm = self.tpm if limits.tpm is None else limits.tpm
        return NO_MARK - 1

    def adjust(self, mark: int, requests: int, tokens: int) -> None:
        """Change what is used, if *mark* is that of a bucket."""
        if mark != NO_MARK - 1:
            return  # it was counted in an earlier sliding window
        self.requests_used = max(self.requests_used + requests, 0.0)
        self.tokens_used = max(self.tokens_used + tokens, 0.0)

    def _not_refilled(self, used: float, limit: int) -> float:
        back = max(self.now - self.at, 0.0) * (limit if limit > 0 else used) / MINUTE_S
        return max(used - back, 0.0)


def burst_capacity(limit: int) -> float:
    """Return how much of *limit* a full bucket allows at once."""
    return limit - limit * GUARD_S / MINUTE_S


def _exceeds(used: int, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)


def _split_evenly(
    minute: int, began: int, last: int, requests: int, tokens: int
) -> Iterator[tuple[float, int, int]]:
    """Yield records that spread the sums evenly between the first and the last request."""
    if began < 0 or (requests <= 0 and tokens <= 0):
        return
    pieces = max(1, min(MAX_PIECES, max(requests, 1), (last - began) // CELL_S + 1))
    for i in range(pieces):
        sent = minute + began + ((last - began) * (i + 1)) // pieces + 1
        yield (
            float(sent),
            requests * (i + 1) // pieces - requests * i // pieces,
            tokens * (i + 1) // pieces - tokens * i // pieces,
        )


DAY_S = 86_400.0
HOUR_S = 3_600.0
VALID_S = 58.0
DELAY_TOLERANCE_S = 2.0
"""How far a time from the server may be off: servers truncate to seconds, and clocks differ."""
_SHORT_DAY_S = 23 * HOUR_S
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
    if now >= day_end or day_end - now > _SHORT_DAY_S:
        midnight = next_pacific_midnight(now)
        if now >= day_end or day_end - midnight > _SHORT_DAY_S - HOUR_S:
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
) -> tuple[str, ...]:
    """Return the key under which a cooldown of *scope* is stored."""
    match scope:
        case Scope.KEY_VERB:
            return (scope.value, record, verb)
        case Scope.KEY_MODEL:
            return (scope.value, record, bucket)
        case Scope.PROJECT_MODEL:
            return (scope.value, project, bucket)
        case Scope.PROJECT | Scope.PROJECT_CACHE:
            return (scope.value, project)
        case Scope.BILLING:
            return (scope.value, billing_account)
        case _:
            return (scope.value, record)


def scope_keys(key: Candidate | Lease, bucket: str, verb: str) -> tuple[tuple[str, ...], ...]:
    """Return the keys of all cooldowns that block *key*, the widest scope first."""
    record, project = key.record or key.key_id, key.project
    keys: tuple[tuple[str, ...], ...] = (
        ("billing", key.billing_account),
        ("project", project),
        ("key", record),
        ("project_model", project, bucket),
        ("key_model", record, bucket),
        ("key_verb", record, verb),
    )
    return (*keys, ("project_cache", project)) if verb == "cachedContents" else keys


Slot = tuple[int, bool, float, int]
"""Where a request was counted: minute, near a boundary?, end of the day, mark of its window."""


class RefusedRequest(NamedTuple):
    """A request that the server refused because a limit per minute is exhausted."""

    at: float
    """When it was granted."""
    minute: int
    """In which it was counted."""
    requests: int
    tokens: int
    reported: Limits
    """The exceeded limits that the server reported."""
    retry_delay_s: float | None
    """Seconds until there is capacity, if the server reported them."""

    def delay_ends_at_minute(self, now: float) -> bool:
        """Return whether the reported delay ends with the wall-clock minute.

        The server may count it from any moment between the request and the response.
        """
        assert self.retry_delay_s is not None  # noqa: S101 - narrows the type; the only caller has checked
        first = self.at + self.retry_delay_s - DELAY_TOLERANCE_S
        last = now + self.retry_delay_s + DELAY_TOLERANCE_S
        ends = ((int((self.at + skew) // 60) + 1) * 60 for skew in (-GUARD_S, GUARD_S))
        return any(first <= end <= last for end in ends)


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
        self.probe: object | None = None
        """Identifies the latest probe while it is the only request."""
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

    def begin_probe(self, probe: object, now: float) -> None:
        """Make *probe* the only request for `PROBE_S`."""
        self.probe, self.probe_until = probe, now + PROBE_S

    def end_probe(self, probe: object) -> None:
        """Allow the next request, if *probe* is the latest probe."""
        if self.probe is probe:
            self.probe = None


class QuotaWindows(ClockMinute):
    """What one project has used of one model bucket, and the limits learned for it.

    It always counts in wall-clock minutes, and also in `window` if there is one.
    """

    __slots__ = (
        "day_end",
        "day_requests",
        "learned",
        "learned_until",
        "valid_until",
        "window",
        "window_until",
    )

    def __init__(self) -> None:
        super().__init__()
        self.valid_until = 0.0
        """From `VALID_S` before this time until it, no window starts or ends and no boundary is
        near, so that `advance` need not be called."""
        self.day_end = 0.0
        self.day_requests = 0
        self.learned = NO_LIMITS
        self.learned_until = 0.0
        self.window: SlidingWindow | TokenBucket | None = None
        """The server's kind of window, if a refusal contradicted the wall-clock minute."""
        self.window_until = 0.0

    @property
    def used(self) -> tuple[int, int]:
        """Return the requests and tokens that count now; call `advance` first."""
        counted = self.window or self
        return counted.requests, counted.tokens

    def advance(self, now: float) -> bool:
        """Start the windows of *now*; return whether *now* is within the guard of a boundary.

        Times further in the future than possible come from a clock that was set back.
        """
        near_boundary = self.advance_minute(now)
        day_end = current_day_end(self.day_end, now)
        if day_end != self.day_end:
            self.day_end, self.day_requests = day_end, 0
        self.learned_until = min(self.learned_until, now + DAY_S)
        self.window_until = min(self.window_until, now + DAY_S)
        if now >= self.learned_until:
            self.learned = NO_LIMITS
        self.valid_until = min((self.minute + 1) * 60 - GUARD_S, self.day_end)
        if self.learned is not NO_LIMITS:
            self.valid_until = min(self.valid_until, self.learned_until)
        if self.window is not None:
            self.valid_until = 0.0
            if now >= self.window_until:
                self.window = None
            else:
                self.window.advance(now)
        return near_boundary

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
        """Forget what failures reported: limits, and the server's kind of window."""
        self.learned, self.learned_until = NO_LIMITS, 0.0
        self.window, self.window_until = None, 0.0

    def blocked_by(
        self, limits: Limits, requests: int, tokens: int, *, near_boundary: bool
    ) -> Block | None:
        """Return which window is full; *near_boundary* is what `advance` returned."""
        if limits.rpd is not None and _exceeds(self.day_requests, requests, limits.rpd):
            return Block("rpd", self.day_end)
        if self.window is None:
            found = self.blocked_until(limits, requests, tokens, near_boundary=near_boundary)
        else:
            found = self.window.blocked_until(limits, requests, tokens)
        return Block(*found, waitable=True) if found is not None else None

    def utilization(self, limits: Limits, weight: float) -> float:
        """Return the used fraction of the scarcest limit; requests per *weight* without limits."""
        if limits is NO_LIMITS:
            return self.requests / weight
        requests, tokens = self.used
        known = [
            used / limit
            for used, limit in (
                (requests, limits.rpm),
                (tokens, limits.tpm),
                (self.day_requests, limits.rpd),
            )
            if limit
        ]
        return max(known) if known else self.requests / weight

    def reserve(
        self,
        requests: int,
        tokens: int,
        now: float,
        configured: Limits = NO_LIMITS,
        *,
        near_boundary: bool,
    ) -> Slot:
        """Count a request in all windows; return the slot that `adjust` needs."""
        self.add(requests, tokens, now, near_boundary=near_boundary)
        self.day_requests += requests
        mark = NO_MARK
        if self.window is not None:
            mark = self.window.reserve(requests, tokens, self.limits(configured))
        return (self.minute, near_boundary, self.day_end, mark)

    def adjust(self, slot: Slot, requests: int, tokens: int) -> None:
        """Change the counts of an earlier request, in the windows that are still kept."""
        minute, near_boundary, day_end, mark = slot
        self.adjust_counts(minute, requests, tokens, near_boundary=near_boundary)
        if day_end == self.day_end:
            self.day_requests += requests
        if self.window is not None and mark != NO_MARK:
            self.window.adjust(mark, requests, tokens)

    def learn_window(self, refused: RefusedRequest, now: float) -> None:
        """Choose the kind of window after a request was refused for a limit per minute.

        ADR 0020 has the rules. Call `learn` with the reported limits first.
        """
        self.advance(now)
        window, delay = self.window, refused.retry_delay_s
        if delay is None:
            if window is None and self._had_room(refused):
                self._set_window(SlidingWindow.after(self), now)
            return
        if delay > MINUTE_S + DELAY_TOLERANCE_S:
            return
        # The delay ends with the minute: others may have exhausted it. Unless our own requests of
        # the last 60 s explain a full sliding window while the minute had capacity.
        ours = window is None and self._had_room(refused) and self._used_up_a_limit(refused, now)
        if refused.delay_ends_at_minute(now) and not ours:
            return
        even = self._fits_token_bucket(refused, delay)
        if window is None:
            ahead = self.oldest_request_at(now) + MINUTE_S - now
            short = 2 * (delay + DELAY_TOLERANCE_S) < ahead or self._exceeds_sliding_window(
                refused, now
            )
            if even and short and self._used_up_a_limit(refused, now):
                self._set_window(self._make_bucket(refused, delay, now), now)
            else:
                self._set_window(SlidingWindow.after(self), now)
        elif isinstance(window, SlidingWindow):
            found = window.blocked_until(self.learned, refused.requests, refused.tokens)
            ahead = found[1] - now if found is not None else 0.0
            if even and 2 * (delay + DELAY_TOLERANCE_S) < ahead:
                self._set_window(self._make_bucket(refused, delay, now), now)
            else:
                self._set_window(window, now)
        elif even:
            self._set_window(self._make_bucket(refused, delay, now), now)
        else:
            full = (refused.reported.rpm or window.requests, refused.reported.tpm or window.tokens)
            self._set_window(SlidingWindow([(now + delay - MINUTE_S - GUARD_S, *full)]), now)

    def is_expired(self, now: float) -> bool:
        """Return whether all windows are over, so that the record may be dropped."""
        # A request in the day's last second may count in the minute after it as well.
        ends = max(self.day_end + 60.0 + GUARD_S, self.learned_until)
        return now >= ends and (self.window is None or now >= self.window_until)

    def _set_window(self, window: SlidingWindow | TokenBucket, now: float) -> None:
        window.advance(now)
        self.window, self.window_until, self.valid_until = window, now + DAY_S, 0.0

    def _had_room(self, refused: RefusedRequest) -> bool:
        """Return whether the wall-clock minute had capacity left by our count."""
        if refused.minute != self.minute:
            return False
        reported = refused.reported
        return (reported.rpm is not None and self.requests <= reported.rpm) or (
            reported.tpm is not None and self.tokens <= reported.tpm
        )

    def _fits_token_bucket(self, refused: RefusedRequest, delay: float) -> bool:
        """Return whether *delay* is at most the time in which a bucket refills for the request.

        For tokens twice that time: the reserved number is an estimate.
        """
        reported = refused.reported
        return any(
            limit is not None and delay <= cost * MINUTE_S / limit + DELAY_TOLERANCE_S
            for limit, cost in (
                (reported.rpm, refused.requests),
                (reported.tpm, 2 * refused.tokens),
            )
        )

    def _used_up_a_limit(self, refused: RefusedRequest, now: float) -> bool:
        """Return whether our own requests of the last 60 s exhaust a limit."""
        recent = (
            self.previous_last_second >= 0
            and (self.minute - 1) * 60 + self.previous_last_second > now - 60
        )
        requests = self.requests + (self.previous_requests if recent else 0)
        tokens = self.tokens + (self.previous_tokens if recent else 0)
        reported = refused.reported
        return (reported.rpm is not None and requests >= reported.rpm) or (
            reported.tpm is not None and 2 * tokens >= reported.tpm
        )

    def _exceeds_sliding_window(self, refused: RefusedRequest, now: float) -> bool:
        """Return whether the server accepted more within 60 s than a sliding window would."""
        if (
            self.previous_first_second < 0
            or (self.minute - 1) * 60 + self.previous_first_second <= now - 59
        ):
            return False
        reported = refused.reported
        return any(
            limit is not None and before + passed > limit and 2 * passed >= limit
            for limit, before, passed in (
                (reported.rpm, self.previous_requests, self.requests - refused.requests),
                (reported.tpm, self.previous_tokens, self.tokens - refused.tokens),
            )
        )

    def _make_bucket(self, refused: RefusedRequest, delay: float, now: float) -> TokenBucket:
        """Return a bucket that has capacity for the refused request after *delay*."""
        delay = max(delay - LATER_S, 0.0)
        requests, tokens = (float(used) for used in self.used)
        reported, rpm, tpm = refused.reported, self.learned.rpm or 0, self.learned.tpm or 0
        if reported.rpm is not None:
            room = max(burst_capacity(reported.rpm) - refused.requests, 0.0)
            requests = room + delay * reported.rpm / MINUTE_S
        if reported.tpm is not None:
            room = max(burst_capacity(reported.tpm) - refused.tokens, 0.0)
            tokens = room + delay * reported.tpm / MINUTE_S
        return TokenBucket(now, requests, tokens, rpm, tpm)
