"""Minutes, Pacific days and cooldowns as arithmetic; the oracle for every state backend.

Google is seen to count requests and input tokens in fixed windows: the wall-clock minute for RPM
and TPM, the day of America/Los_Angeles for RPD (GEMINI.md B4). Where a refusal contradicts the
minute, another model is taken (window_models.py). Three consequences of fixed windows:

- A clock may differ from Google's by a second, so near a full minute nobody can tell which
  minute a request will be counted in. Within `GUARD_S` of the edge it is booked in both.
- A minute needs two counters at most: the current one and, near its end, the next.
- A request larger than the whole limit would never fit. It is let through when the window is
  empty, since the estimate may be wrong, and Google's own answer then decides.

A cooldown without a time from the server doubles with each failure of its scope in a row.
When one ends, a single request (the probe) goes first; a success forgets the cooldown. A probe
that is slow holds up nobody for long: every `PROBE_S` one more request may go.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple
from zoneinfo import ZoneInfo

from .model import NO_LIMITS, Block, Candidate, Lease, Limits, Scope

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
    "exponential_cooldown",
    "next_minute",
    "next_pacific_midnight",
    "next_pacific_month",
    "pacific_day",
    "scope_key",
    "scope_keys",
]

# How a server may count a minute: three models, each a few numbers and pure arithmetic ---------
#
# Google is seen to count in minutes of the clock, but documents nothing, and gateways count as they
# like. So `QuotaWindows` (windows.py) counts in minutes of the clock until a refusal contradicts
# that, and
# then by the model that the refusal speaks for (ADR 0020):
#
# - `ClockMinute`: a window opens at :00 and is empty then.
# - `SlidingWindow`: a request counts for 60 s after it was sent.
# - `TokenBucket`: what was used comes back evenly, a whole limit in 60 s.
#
# All three have the same face: `book`, `correct`, and `full`, which says until when a window has no
# room. A request larger than a whole limit would never fit; it is let through when nothing is used,
# since the estimate may be wrong, and the server's own answer then decides. The scripts in
# state/lua
# have the same arithmetic.


GUARD_S = 1.0
MINUTE_S = 60.0
AHEAD_S = 60.0
"""What was booked later than this from now was booked by a clock that has stepped back since."""
CELL_S = 2
"""Requests sent within the same two seconds share a record, and leave the window with the last of
them: at most 32 records for any limit, for at most 2 s of 60 in which there is room unknown to us.
"""
MAX_PIECES = 8
"""In how many records a past minute, of which only begin, end and sums are known, is put."""
LATER_S = 0.001
"""Added to a time at which something evenly refilled is enough: a double is exact to 0.2 µs."""
NO_MARK = -1


class ClockMinute:
    """What is counted in the clock's minute; two seconds around an edge count in both minutes.

    Of the minute before it knows when its first and last request were booked, and the sums, so
    that another model can begin with something.
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
        """Seconds of the minute at which the first and the last request were booked; -1: none."""
        self.previous_first_second = self.previous_last_second = -1
        self.previous_requests = self.previous_tokens = 0

    def advance_minute(self, now: float) -> bool:
        """Open the minute of *now*; True where it falls within the guard of a minute's edge.

        A minute that lies in the future is dropped: the clock has stepped back.
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
        """Say which window has no room, and until when."""
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
        """Book a request."""
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
        """Add to the windows of an earlier booking, as far as they still count."""
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
        """Tell when the oldest request was booked that a window of 60 s may still count."""
        before = (self.minute - 1) * 60
        if self.previous_last_second >= 0 and before + self.previous_last_second > now - MINUTE_S:
            return max(before + self.previous_first_second, now - MINUTE_S)
        return now if self.first_second < 0 else self.minute * 60 + self.first_second


class SlidingWindow:
    """What was sent within the last 60 s, and a second more: a request counts when it arrives."""

    __slots__ = ("_cells", "now", "requests", "tokens")

    def __init__(self, cells: Iterable[tuple[float, int, int]] = ()) -> None:
        self._cells = array("d")
        """When the last of them was sent, requests, tokens; and so on, the oldest first."""
        for cell in cells:
            self._cells.extend(cell)
        self.now = 0.0
        self.requests = self.tokens = 0

    @classmethod
    def after(cls, clock: ClockMinute) -> SlidingWindow:
        """Begin with what is known of the minute and the one before: spread evenly in each."""
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
        """List what is counted."""
        cells = self._cells
        return [(cells[i], int(cells[i + 1]), int(cells[i + 2])) for i in range(0, len(cells), 3)]

    def advance(self, now: float) -> None:
        """Count as of *now*: forget what has left the window, and what lies in the future."""
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
        """Say which window has no room, and until when; after `open`."""
        for name, limit, cost, place, used in (
            ("rpm", limits.rpm, requests, 1, self.requests),
            ("tpm", limits.tpm, tokens, 2, self.tokens),
        ):
            if limit is not None and _exceeds(used, cost, limit):
                return name, self._until(place, used, cost, limit)
        return None

    def reserve(self, requests: int, tokens: int, _limits: Limits) -> int:
        """Book a request as of `open`; give what `correct` needs to find it again."""
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
        """Add to an earlier booking, as far as it still counts."""
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
        return self.now + MINUTE_S + GUARD_S  # of a limit of 0 nothing ever comes free


class TokenBucket:
    """What was used and has not come back yet: a limit's worth comes back evenly in 60 s."""

    __slots__ = ("at", "now", "requests_used", "rpm", "tokens_used", "tpm")

    def __init__(
        self, at: float, requests_used: float, tokens_used: float, rpm: int = 0, tpm: int = 0
    ) -> None:
        self.at = at
        """When it was last booked in; what has come back since follows from that alone."""
        self.requests_used = requests_used
        self.tokens_used = tokens_used
        self.rpm = rpm
        """By which it comes back; 0 where nobody knows: then all of it within a minute."""
        self.tpm = tpm
        self.now = at

    @property
    def requests(self) -> int:
        """Tell how many requests have not come back."""
        return ceil(self._remaining(self.requests_used, self.rpm) - 1e-6)

    @property
    def tokens(self) -> int:
        """Tell how many tokens have not come back."""
        return ceil(self._remaining(self.tokens_used, self.tpm) - 1e-6)

    def advance(self, now: float) -> None:
        """Count as of *now*; what lies in the future is dropped."""
        self.now = now
        if self.at > now + AHEAD_S:
            self.at, self.requests_used, self.tokens_used = now, 0.0, 0.0

    def blocked_until(self, limits: Limits, requests: int, tokens: int) -> tuple[str, float] | None:
        """Say what has no room, and until when; after `open`.

        A second's worth of the limit stays free: of a bucket that is full nothing comes back
        before a request has arrived.
        """
        for name, limit, cost, used in (
            ("rpm", limits.rpm, requests, self._remaining(self.requests_used, self.rpm)),
            ("tpm", limits.tpm, tokens, self._remaining(self.tokens_used, self.tpm)),
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
        """Book a request as of `open`, and go on with the *limits* that are in force."""
        self.requests_used = self._remaining(self.requests_used, self.rpm) + requests
        self.tokens_used = self._remaining(self.tokens_used, self.tpm) + tokens
        self.at = self.now
        self.rpm = self.rpm if limits.rpm is None else limits.rpm
        self.tpm = self.tpm if limits.tpm is None else limits.tpm
        return NO_MARK - 1

    def adjust(self, mark: int, requests: int, tokens: int) -> None:
        """Add to what is used, where it was booked in a bucket."""
        if mark != NO_MARK - 1:
            return  # of a sliding window that was before
        self.requests_used = max(self.requests_used + requests, 0.0)
        self.tokens_used = max(self.tokens_used + tokens, 0.0)

    def _remaining(self, used: float, limit: int) -> float:
        back = max(self.now - self.at, 0.0) * (limit if limit > 0 else used) / MINUTE_S
        return max(used - back, 0.0)


def burst_capacity(limit: int) -> float:
    """Tell how much of *limit* a bucket gives at once."""
    return limit - limit * GUARD_S / MINUTE_S


def _exceeds(used: int, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)


def _split_evenly(
    minute: int, began: int, last: int, requests: int, tokens: int
) -> Iterator[tuple[float, int, int]]:
    """Put sums of a part of a minute into a few records between its begin and its end."""
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
"""By how much a time that a server names may be off: it cuts to whole seconds, and clocks differ.
"""
_SHORT_DAY_S = 23 * HOUR_S
PROBE_S = 2.0
"""So long a probe goes alone; after that one more may go, which is then the probe."""
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


def pacific_day(now: float) -> str:
    """Return the date in Los Angeles at *now*, such as `2026-11-26`."""
    return _pacific_day(int(now // 3600))


@lru_cache(maxsize=8)
def _pacific_day(hour: int) -> str:
    return datetime.fromtimestamp(hour * 3600, _PACIFIC).date().isoformat()


def next_pacific_month(now: float) -> float:
    """Tell when the month of Los Angeles ends, epoch seconds."""
    local = datetime.fromtimestamp(now, _PACIFIC)
    first = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=_PACIFIC)
    return first.astimezone(UTC).timestamp()


def exponential_cooldown(failure_count: int, base_s: float, max_s: float) -> float:
    """Give the length of the cooldown after *strikes* failures in a row, seconds."""
    return min(base_s * 2.0 ** min(failure_count - 1, 60), max_s)


def scope_key(
    scope: Scope, *, record: str, project: str, billing_account: str, bucket: str, verb: str
) -> tuple[str, ...]:
    """Name what a cooldown of *scope* stands for."""
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
    """Name every cooldown that would keep *key* from serving, the widest first."""
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
"""Of a booking: its minute, whether it is near an edge, its day's end, and its pace's mark."""


class RefusedRequest(NamedTuple):
    """A request that the server refused because a window of a minute is full."""

    at: float
    """When it was granted."""
    minute: int
    """In which it was booked."""
    requests: int
    tokens: int
    reported: Limits
    """Of the limits that were overrun those that the server named."""
    retry_delay_s: float | None
    """After how many seconds there is room, where the server named it."""

    def delay_ends_at_minute(self, now: float) -> bool:
        """Tell whether the end of the clock's minute is named.

        The time may be counted from any moment between the request and the answer.
        """
        assert self.retry_delay_s is not None  # noqa: S101 - narrows the type; the only caller has asked
        first = self.at + self.retry_delay_s - DELAY_TOLERANCE_S
        last = now + self.retry_delay_s + DELAY_TOLERANCE_S
        ends = ((int((self.at + skew) // 60) + 1) * 60 for skew in (-GUARD_S, GUARD_S))
        return any(first <= end <= last for end in ends)


class Cooldown:
    """A scope that must not be used until a time, and the one probe after it."""

    __slots__ = ("failure", "failure_count", "length", "probe", "probe_until", "until", "waitable")

    def __init__(self) -> None:
        self.until = 0.0
        self.length = inf
        """How long it was to last when it was recorded, seconds."""
        self.failure_count = 0
        self.failure = ""
        self.waitable = False
        self.probe: object | None = None
        """What tells the latest probe from others, while it goes alone."""
        self.probe_until = 0.0

    def escalate(self, at: float, base_s: float, max_s: float) -> float:
        """Climb the ladder for a request granted *at*, and give its length, seconds.

        Requests that were under way together and fail together are one step, not many.
        """
        if at >= self.until or not self.failure_count:
            self.failure_count += 1
        return exponential_cooldown(self.failure_count, base_s, max_s)

    def extend(
        self, failure: str, until: float, *, waitable: bool, now: float | None = None
    ) -> None:
        """Record a failure as of *now*; a cooldown that runs never ends sooner by it."""
        if until >= self.until or (now is not None and self.is_in_future(now)):
            self.until, self.failure, self.waitable = until, failure, waitable
            self.length = inf if now is None else until - now
        self.probe = None

    def is_in_future(self, now: float) -> bool:
        """Tell whether it lies in the future: the clock has stepped back since it was recorded."""
        return self.until > now + self.length + AHEAD_S

    def is_active(self, now: float) -> bool:
        """Tell whether it keeps its scope from serving *now*."""
        return now < self.until and not self.is_in_future(now)

    def blocked_by(self, now: float) -> Block | None:
        """Say why the scope cannot serve *now*, or None when it can (as the probe)."""
        if now < self.until and not self.is_in_future(now):
            return Block(self.failure, self.until, self.waitable)
        # A clock that was set back must not make the time of a probe longer.
        if self.probe is not None and now < self.probe_until <= now + PROBE_S:
            return Block("probe", min(now + PROBE_POLL_S, self.probe_until), waitable=True)
        return None

    def begin_probe(self, probe: object, now: float) -> None:
        """Let *probe* go alone for a while."""
        self.probe, self.probe_until = probe, now + PROBE_S

    def end_probe(self, probe: object) -> None:
        """Let the next one go, if *probe* is the latest."""
        if self.probe is probe:
            self.probe = None


class QuotaWindows(ClockMinute):
    """What one project has used of one model bucket, and the limits learned for it.

    It counts in minutes of the clock always, and beside that as `pace` says, where there is one.
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
        """Until then, and from `CALM_S` before, no window opens or ends, and no edge is near:
        `roll` need not be asked."""
        self.day_end = 0.0
        self.day_requests = 0
        self.learned = NO_LIMITS
        self.learned_until = 0.0
        self.window: SlidingWindow | TokenBucket | None = None
        """How the server counts, where a refusal has contradicted the clock's minute."""
        self.window_until = 0.0

    @property
    def used(self) -> tuple[int, int]:
        """Tell the requests and tokens that count now, after `roll`."""
        counted = self.window or self
        return counted.requests, counted.tokens

    def advance(self, now: float) -> bool:
        """Open the windows of *now*; True where it falls within the guard of a minute's edge.

        Whatever lies further ahead than it can by itself comes of a clock that has stepped back.
        """
        near_boundary = self.advance_minute(now)
        if now >= self.day_end or self.day_end - now > _SHORT_DAY_S:
            midnight = next_pacific_midnight(now)
            if now >= self.day_end or self.day_end - midnight > _SHORT_DAY_S - HOUR_S:
                self.day_end, self.day_requests = midnight, 0
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
        """Give the limits in force: what Google reported beats what was configured."""
        learned = self.learned
        if learned is NO_LIMITS:
            return configured
        return Limits(
            configured.rpm if learned.rpm is None else learned.rpm,
            configured.tpm if learned.tpm is None else learned.tpm,
            configured.rpd if learned.rpd is None else learned.rpd,
            configured.max_concurrency,
        )

    def learn(self, reported: Limits, now: float) -> None:
        """Keep the limits that a failure reported, for a day."""
        have = self.learned if now < self.learned_until else NO_LIMITS
        pairs = zip(reported, have, strict=True)
        self.learned = Limits(*(old if new is None else new for new, old in pairs))
        self.learned_until = now + DAY_S

    def drop_exceeded_limits(self, requests: int, tokens: int) -> None:
        """Forget the learned limits that a request which was served exceeds by itself.

        Of several that were under way together the server's order is not known, so that their sum
        says nothing.
        """
        sizes = zip(self.learned, (requests, tokens, requests, 0), strict=True)
        left = Limits(*(None if limit is not None and n > limit else limit for limit, n in sizes))
        self.learned = NO_LIMITS if left == NO_LIMITS else left

    def forget_learned(self) -> None:
        """Forget what failures reported: limits, and how the server counts."""
        self.learned, self.learned_until = NO_LIMITS, 0.0
        self.window, self.window_until = None, 0.0

    def blocked_by(
        self, limits: Limits, requests: int, tokens: int, *, near_boundary: bool
    ) -> Block | None:
        """Say which window has no room for a request, after `roll` returned *edge*."""
        if limits.rpd is not None and _exceeds(self.day_requests, requests, limits.rpd):
            return Block("rpd", self.day_end)
        if self.window is None:
            found = self.blocked_until(limits, requests, tokens, near_boundary=near_boundary)
        else:
            found = self.window.blocked_until(limits, requests, tokens)
        return Block(*found, waitable=True) if found is not None else None

    def utilization(self, limits: Limits, weight: float) -> float:
        """Tell how much of the scarcest limit is used; of *weight* where none is known."""
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
        """Reserve, and return where: what `correct` needs to find the booking again."""
        self.add(requests, tokens, now, near_boundary=near_boundary)
        self.day_requests += requests
        mark = NO_MARK
        if self.window is not None:
            mark = self.window.reserve(requests, tokens, self.limits(configured))
        return (self.minute, near_boundary, self.day_end, mark)

    def adjust(self, slot: Slot, requests: int, tokens: int) -> None:
        """Add to the windows of an earlier booking, as far as they still count."""
        minute, near_boundary, day_end, mark = slot
        self.adjust_counts(minute, requests, tokens, near_boundary=near_boundary)
        if day_end == self.day_end:
            self.day_requests += requests
        if self.window is not None and mark != NO_MARK:
            self.window.adjust(mark, requests, tokens)

    def learn_window(self, refused: RefusedRequest, now: float) -> None:
        """Choose by what model to count, after a request was refused for a full minute.

        The rules are those of ADR 0020. What the refusal reported of limits is learned before.
        """
        self.advance(now)
        window, delay = self.window, refused.retry_delay_s
        if delay is None:
            if window is None and self._had_room(refused):
                self._set_window(SlidingWindow.after(self), now)
            return
        if delay > MINUTE_S + DELAY_TOLERANCE_S:
            return
        # Others may have used up the clock's minute; but not where our own requests of the last
        # 60 s say the same of a sliding window, while the minute had room.
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
        """Tell whether the record says nothing any more and may be forgotten."""
        # A request in the day's last second may count in the minute after it as well.
        ends = max(self.day_end + 60.0 + GUARD_S, self.learned_until)
        return now >= ends and (self.window is None or now >= self.window_until)

    def _set_window(self, window: SlidingWindow | TokenBucket, now: float) -> None:
        window.advance(now)
        self.window, self.window_until, self.valid_until = window, now + DAY_S, 0.0

    def _had_room(self, refused: RefusedRequest) -> bool:
        """Tell whether a limit that was overrun was not reached in the minute by our count."""
        if refused.minute != self.minute:
            return False
        reported = refused.reported
        return (reported.rpm is not None and self.requests <= reported.rpm) or (
            reported.tpm is not None and self.tokens <= reported.tpm
        )

    def _fits_token_bucket(self, refused: RefusedRequest, delay: float) -> bool:
        """Tell whether *delay* is no longer than an evenly refilled bucket needs at its worst.

        Of tokens twice as long: what we have reserved is an estimate.
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
        """Tell whether so much was sent within 60 s, by our count, that a limit is used up."""
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
        """Tell whether more was let through within 60 s than a sliding window of it would hold."""
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
        """Make a bucket that has room for the refused request after *delay*."""
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
