"""Minutes, days, budgets and cooldowns as arithmetic; state/ledger.lua has the same in Lua.

Requests and input tokens are counted in fixed windows: the wall-clock minute for RPM and TPM, the
day of a time zone for RPD (docs/gemini-api.md#windows). `QuotaWindows` says why that keeps limits.

A cooldown without a time from the server doubles with each consecutive failure of its scope.
When it ends, a single request (the probe) goes first; a success clears the cooldown. A slow probe
does not block others for long: every `PROBE_S` seconds one more request may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil, sqrt
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from .model import (
    NO_LIMITS,
    Block,
    Budget,
    Candidate,
    Lease,
    Limits,
    Reported,
    Scope,
    smaller_limit,
)

GUARD_S = 1.0
DAY_S = 86_400.0
HOUR_S = 3_600.0
LONGEST_DAY_S, LONGEST_MONTH_S = 25 * HOUR_S, 31 * DAY_S + HOUR_S
"""An end that is further away is not believed: it was set while the clock was wrong."""
PROBE_S = 2.0
"""How long a probe is the only request; then one more may go, which becomes the probe."""
PROBE_POLL_S = 0.1
"""When to look again while a key is at max_concurrency or probed: the end is unknown."""
RESERVED_S = 300.0
"""Between one and two of these a reservation of money lasts that is never settled."""
SLOT_S = 30.0
SLOTS = 21
"""Ten minutes slide in twenty slots; one more, since the latest is not over."""
FADE = 0.9
"""What a minute counts in a mean, of what the next one does: the last ten minutes count most."""
MINUTES_KNOWN = 4.0
"""The sum of five such minutes, from which on their mean says something."""
PEAKS_FOLLOW = -1
"""Before the peaks of a record. Versions of November 2026 read no record that is longer than one
with a past, and write a past of their own, never below 0, over peaks (ADR 0043)."""


def later(one: Block | None, other: Block | None) -> Block | None:
    """Return the block that ends last, since the key is blocked until then."""
    if one is None or (other is not None and other.until > one.until):
        return other
    return one


def next_minute(now: float) -> float:
    """Return when the next minute has started by the service's clock too, epoch seconds."""
    return (now // 60 + 1) * 60 + GUARD_S


def next_midnight(now: float, zone: str) -> float:
    """Return when the day of a time zone ends (it has 23, 24 or 25 hours), epoch seconds."""
    return _midnight_after(int(now // 3600), zone)


@lru_cache(maxsize=8)
def _midnight_after(hour: int, zone: str) -> float:
    """Return the midnight after *hour*, counted in full hours since the epoch."""
    local = datetime.fromtimestamp(hour * 3600, ZoneInfo(zone))
    tomorrow = local.date() + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=local.tzinfo)
    return midnight.astimezone(UTC).timestamp()


def day_of(now: float, zone: str) -> str:
    """Return the date in a time zone at *now*, such as `2026-11-26`."""
    return datetime.fromtimestamp(now, ZoneInfo(zone)).date().isoformat()


def next_month(now: float, zone: str) -> float:
    """Return when the month of a time zone ends, epoch seconds."""
    return _month_after(int(now // 3600), zone)


@lru_cache(maxsize=8)
def _month_after(hour: int, zone: str) -> float:
    """Return the end of the month of *hour*, counted in full hours since the epoch."""
    local = datetime.fromtimestamp(hour * 3600, ZoneInfo(zone))
    year, month = local.year + local.month // 12, local.month % 12 + 1
    return datetime(year, month, 1, tzinfo=local.tzinfo).astimezone(UTC).timestamp()


def scope_key(
    scope: Scope, *, record: str, project: str, billing_account: str, bucket: str, verb: str
) -> tuple[str, str]:
    """Return where a cooldown of *scope* is stored: the name of a record, and one in it."""
    match scope:
        case Scope.KEY_VERB:
            return f"key:{record}", f"key_verb:{verb}"
        case Scope.KEY_MODEL:
            return f"key:{record}", f"key_model:{bucket}"
        case Scope.PROJECT_MODEL:
            return f"project:{project}", f"project_model:{bucket}"
        case Scope.PROJECT | Scope.PROJECT_CACHE:
            return f"project:{project}", scope.value
        case Scope.BILLING:
            return f"billing:{billing_account}", scope.value
        case _:
            return f"key:{record}", scope.value


def cooldown_names(key: Candidate | Lease) -> tuple[str, str, str]:
    """Return the names of the records of all cooldowns that can block *key*."""
    return (
        f"billing:{key.billing_account}",
        f"project:{key.project}",
        f"key:{key.record or key.key_id}",
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


NO_PAST = (0.0, 0.0, 0.0)

Slot = tuple[int, bool, float]
"""Where a request was counted: minute, in its last two seconds?, end of the day."""


@dataclass(slots=True)
class Cooldown:
    """A scope that must not be used until a time, and the probe after it."""

    until: float = 0.0
    failure_count: int = 0
    failure: str = ""
    waitable: bool = False
    probe_until: float = 0.0
    """Until when the latest probe is the only request."""
    rest: Sequence[Any] = ()
    """What another version of this package keeps with it; see `QuotaWindows.rest`."""

    def escalate(self, at: float, base_s: float, max_s: float) -> float:
        """Count a failure of a request leased *at*; return the length of the cooldown, seconds.

        Requests that were in flight together and fail together count as one failure.
        """
        if at >= self.until or not self.failure_count:
            self.failure_count += 1
        return min(base_s * 2.0 ** min(self.failure_count - 1, 60), max_s)

    def extend(self, failure: str, until: float, *, waitable: bool) -> None:
        """Record a failure; it never shortens an active cooldown."""
        if until >= self.until:
            self.until, self.failure, self.waitable = until, failure, waitable
        self.probe_until = 0.0

    def blocked_by(self, now: float) -> Block | None:
        """Return what blocks the scope *now*; None if a request may go (as the probe)."""
        if now < self.until:
            return Block(self.failure, self.until, self.waitable)
        if now < self.probe_until:
            return Block("probe", min(now + PROBE_POLL_S, self.probe_until), waitable=True)
        return None

    def is_probed_by(self, at: float) -> bool:
        """Return whether the latest probe began not later than *at*, to the millisecond."""
        return self.probe_until < at + PROBE_S + 0.001


class Learned(NamedTuple):
    """The limits of a project and model bucket that the provider has named."""

    until: float
    limits: Limits
    """In force: the smaller ones of what responses reported and what was read."""
    steady: bool = False
    """Those of a minute refill all the time, and not when the minute ends."""
    read: Limits = NO_LIMITS
    """As read from the provider's list. That of a day is shown, and in force from its first 429 on:
    if it were too low, no call could be sent until midnight."""
    rest: Sequence[Any] = ()
    """See `QuotaWindows.rest`."""

    def with_reported(self, new: Limits, now: float, *, steady: bool) -> Learned:
        """Return the record with limits that a response has reported."""
        limits = (
            old if limit is None else smaller_limit(limit, read)
            for limit, old, read in zip(new, self.limits, self.read._replace(rpd=None), strict=True)
        )
        return self._replace(
            until=now + DAY_S, limits=Limits(*limits), steady=steady or self.steady
        )

    def with_read(self, read: Limits, now: float) -> Learned:
        """Return the record with limits that were read; smaller reported ones hold for a day."""
        own = NO_LIMITS
        if now < self.until - HOUR_S:  # else they end before the next reading
            pairs = zip(self.limits, self.read, strict=True)
            own = Limits(*(None if old == before else old for old, before in pairs))
        until = now + DAY_S if own == NO_LIMITS else self.until
        limits = self._replace(limits=own).smaller(read._replace(rpd=None))
        return self._replace(until=until, limits=limits, read=read)

    def smaller(self, configured: Limits) -> Limits:
        """Return the limits in force: of *configured* and learned limits the smaller ones."""
        return Limits(*map(smaller_limit, configured, self.limits))


class Kept(NamedTuple):
    """What other workloads leave free in a window for those that are `first`."""

    reason: str
    limit: int
    amount: int
    own: int
    """What the first ones have used of it."""
    size: float
    """Of one of their calls."""
    rate: float
    """Of their calls, a minute."""
    end: float


@dataclass(slots=True)
class QuotaWindows:
    """What one project has used of one model bucket, in this minute and on this day.

    Two things are hard: the service counts by a clock of its own, and what a request uses is known
    only when it has ended.

    The clock: it may differ from ours by `GUARD_S`, so our minute m begins that much late, at
    60 m + 1 s, and ends at 60 m + 61 s. By the service's clock that is between 60 m and 60 m + 62:
    in minute m, but for what we send in the last two seconds, which may be in minute m + 1. Such
    requests are late, and count in both: the next minute does not begin with 0, but with
    `late_requests` and `late_tokens`. So a request counts here in each minute in which the service
    may count it, and what is within the limit here is so there. A day has no guard: at midnight a
    request may fall into the other day, and after a 429 another key is tried.

    The use: `reserve` counts a request before it is sent, with an estimate of its tokens, so that
    requests under way do not exceed a limit together. It returns the slot: where it has counted.
    When the request has ended, `adjust` corrects the tokens, or takes all back if nothing was sent,
    in the windows of that slot that are not over. A call may be longer than its minute: nothing is
    left there to correct, and a later minute is not touched. One that is never settled stays
    counted, and ends with its windows. So a count is too high at times, and too low only if an
    estimate was; then the window is full until it ends. A request larger than the whole limit may
    go if its window is empty: the estimate may be wrong, and the response decides.

    No timer ends a window. Each decision begins with `advance`, which compares the windows with the
    time, however long nobody looked. So after a restart the records of a file or a Redis count on;
    those in memory begin with 0, and the service says what it has counted (`sync`), or answers 429.
    If our clock is set back by a minute, the counts go on; if by two or more, they begin anew.

    Some limits of a minute refill all the time, and not at its end. For these every request is
    late, and what the minute before has used drains evenly in this one (`_drained`).
    """

    minute: int = -1
    requests: int = 0
    tokens: int = 0
    late_requests: int = 0
    """Those of them that count in the next minute too."""
    late_tokens: int = 0
    day_end: float = 0.0
    day_requests: int = 0
    rest: Sequence[Any] = ()
    """`past` or `peaks`, three numbers, then what another version of this package keeps with it:
    that is written back as it was, so that two versions may run on one state."""

    @property
    def past(self) -> Sequence[float]:
        """Return the minutes of the day that are over, their requests and tokens, as `FADE` says.

        Only of the calls that are `first`.
        """
        found = (n if isinstance(n, int | float) else 0.0 for n in self.rest[:3])
        return [*found, *NO_PAST][:3]

    @property
    def peaks(self) -> tuple[float, float]:
        """Return the most requests, and the most tokens, that a minute of the day has counted.

        Not of the calls that are `first`, which have a past in the same place.
        """
        mark, requests, tokens = self.past
        if mark != PEAKS_FOLLOW:
            requests = tokens = 0
        return max(requests, self.requests), max(tokens, self.tokens)

    def advance(self, now: float, zone: str, *, first: bool = False) -> None:
        """Start the windows of *now*; *first*: they are of the calls that are `first`."""
        minute = int((now - GUARD_S) // 60)
        if not self.minute - 1 <= minute <= self.minute:
            kept = minute == self.minute + 1
            if first and 0 <= self.minute < minute:
                fade = FADE ** (minute - self.minute)
                minutes, requests, tokens = self.past
                self._set_past(
                    minutes * fade + (1 - fade) / (1 - FADE),
                    (requests + self.requests / FADE) * fade,
                    (tokens + self.tokens / FADE) * fade,
                )
            elif not first and any(peaks := self.peaks):
                self._set_past(PEAKS_FOLLOW, *peaks)
            self.requests, self.tokens = (self.late_requests, self.late_tokens) if kept else (0, 0)
            self.late_requests = self.late_tokens = 0
            self.minute = minute
        if not 0 < self.day_end - now <= LONGEST_DAY_S:
            self.day_end, self.day_requests = next_midnight(now, zone), 0
            if self.rest:
                self._set_past(*NO_PAST)

    def _set_past(self, *past: float) -> None:
        self.rest = (*past, *self.rest[3:])

    def blocked_by(
        self, limits: Limits, requests: int, tokens: int, steady_at: float | None = None
    ) -> Block | None:
        """Return which full window ends last; call `advance` first.

        Args:
            limits: Those in force.
            requests: How many there are to be.
            tokens: Input tokens of them.
            steady_at: The time, if the limits of a minute refill all the time.
        """
        found = None
        if limits.rpd is not None and _exceeds(self.day_requests, requests, limits.rpd):
            found = Block("rpd", self.day_end)
        for reason, limit, used, late, cost in (
            ("rpm", limits.rpm, self.requests, self.late_requests, requests),
            ("tpm", limits.tpm, self.tokens, self.late_tokens, tokens),
        ):
            if limit is None:
                continue
            now_used = used if steady_at is None else self._drained(used, late, limit, steady_at)
            if not _exceeds(now_used, cost, limit):
                continue
            until, needed = (self.minute + 1) * 60 + GUARD_S, min(cost, limit)
            if steady_at is not None and limit > 0 and needed <= limit - late:
                until = steady_at + (now_used + needed - limit) * 60 / limit
            elif steady_at is not None and limit > 0:  # what this minute uses drains in the next
                until += (late + needed - limit) * 60 / limit
            found = later(found, Block(reason, until, waitable=True))
        return found

    def _drained(self, used: int, late: int, limit: int, now: float) -> float:
        """Return what is used of a limit that refills all the time.

        All requests of a minute count in the next one too, and drain there.
        """
        seconds = max(now - self.minute * 60 - GUARD_S, 0.0)
        return late + max(used - late - limit * seconds / 60, 0.0)

    def sync(self, reported: Reported, now: float) -> None:
        """Count what the service has counted, if that is more: of others, or before our time."""
        if reported.of is None or reported.left is None:
            return
        used = reported.of - reported.left
        if reported.limit == "rpd":
            self.day_requests = max(self.day_requests, used)
        elif reported.limit == "tpm":
            before = self._drained(self.tokens, self.late_tokens, reported.of, now)
            more = max(ceil(used - before), 0)
            self.tokens, self.late_tokens = self.tokens + more, self.late_tokens + more
        else:
            before = self._drained(self.requests, self.late_requests, reported.of, now)
            more = max(ceil(used - before), 0)
            self.requests, self.late_requests = self.requests + more, self.late_requests + more

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

    def reserve(self, requests: int, tokens: int, now: float, *, steady: bool = False) -> Slot:
        """Count a request in all windows; return the slot that `adjust` needs."""
        late = steady or now >= (self.minute + 1) * 60 - GUARD_S
        slot = self.minute, late, self.day_end
        self.adjust(slot, requests, tokens)
        return slot

    def adjust(self, slot: Slot, requests: int, tokens: int) -> None:
        """Change the counts of a request, in those of its windows that are still kept."""
        minute, late, day_end = slot
        if minute == self.minute or (late and minute + 1 == self.minute):
            self.requests = max(self.requests + requests, 0)
            self.tokens = max(self.tokens + tokens, 0)
        if late and minute == self.minute:
            self.late_requests = max(self.late_requests + requests, 0)
            self.late_tokens = max(self.late_tokens + tokens, 0)
        if day_end == self.day_end:
            self.day_requests = max(self.day_requests + requests, 0)

    def kept(self, limits: Limits, now: float) -> Iterator[Kept]:
        """Yield what others leave free of each limit for the calls that are `first`.

        These are the counts of the first calls. If r of them are expected until the window ends,
        r + 3√r are kept: calls that come at random are more than that in one of seven hundred
        minutes. Nothing is reserved. The amount is computed from the rate of the last minutes
        (`past`) at each decision, so it needs no release: it falls with the time that is left, is
        rounded to nothing at the end, and others use the rest of the window then.

        Before the rate is known, the first calls are expected to use half of a minute, and nothing
        of a day. Others may always use a twentieth of a limit.
        """
        rate, of_day = (limits.rpm or 0) / 2, 0.0
        minutes, calls, tokens = self.past
        if minutes > MINUTES_KNOWN:
            rate = of_day = calls / minutes
        size = tokens / (calls or 1.0)
        end = (self.minute + 1) * 60 + GUARD_S
        for reason, limit, own, one, of, until in (
            ("rpd", limits.rpd, self.day_requests, 1.0, of_day, self.day_end),
            ("rpm", limits.rpm, self.requests, 1.0, rate, end),
            ("tpm", limits.tpm, self.tokens, size, rate, end),
        ):
            if limit is not None:
                expected = of * max(until - now, 0.0) / 60
                most = min((expected + 3 * sqrt(expected)) * one, 0.95 * limit - own)
                yield Kept(reason, limit, int(max(most, 0.0) + 0.5), own, one, of, until)

    def held_back(
        self, whole: QuotaWindows, limits: Limits, requests: int, tokens: int, now: float
    ) -> Iterator[tuple[float, Kept]]:
        """Yield which windows have no room for a call of others, and until when.

        *whole* counts all calls, the first ones too. While others have used nothing of a window,
        one of their calls may go. Else it waits until so little is kept that it fits: until
        r + 3√r, with the r that are expected then, is the room that it leaves.
        """
        used = {
            "rpd": (whole.day_requests, requests),
            "rpm": (whole.requests, requests),
            "tpm": (whole.tokens, tokens),
        }
        for kept in self.kept(limits, now):
            total, cost = used[kept.reason]
            room = kept.limit - total - cost
            if 0 < kept.amount > room and total > kept.own:
                root = (sqrt(9 + 4 * (max(room, 0) + 0.5) / kept.size) - 3) / 2
                yield kept.end - root * root / kept.rate * 60, kept


def _exceeds(used: float, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)


@dataclass(slots=True)
class Spending:
    """What was spent of a budget in each window, and what requests under way may spend.

    A request that does not fit waits until another has ended. With none under way, one is let
    through as long as anything is left of the budget: only it can exceed it. Amounts are
    billionths of a dollar, so that sums are exact in every store.
    """

    day_end: float = 0.0
    day: int = 0
    month_end: float = 0.0
    month: int = 0
    highest: int = 0
    """The most that a request has cost today."""
    period: int = 0
    reserved: int = 0
    """Reserved in this period of `RESERVED_S`, and in the one before."""
    reserved_before: int = 0
    slot: int = 0
    """The number of the last of the twenty slots of ten minutes, and the one before them."""
    recent: list[int] = field(default_factory=lambda: [0] * SLOTS)
    rest: Sequence[Any] = ()
    """See `QuotaWindows.rest`."""

    @property
    def spent(self) -> Budget:
        """Return what was spent in each window; call `advance` first."""
        return Budget(sum(self.recent), self.day, self.month)

    def advance(self, now: float, zone: str) -> None:
        """Start the windows of *now*, and let old reservations end."""
        if not 0 < self.month_end - now <= LONGEST_MONTH_S:
            self.month_end, self.month = next_month(now, zone), 0
        if not 0 < self.day_end - now <= LONGEST_DAY_S:
            self.day_end, self.day, self.highest = next_midnight(now, zone), 0, 0
        period, slot = int(now // RESERVED_S), int(now // SLOT_S)
        if period != self.period:
            self.reserved_before = self.reserved if period == self.period + 1 else 0
            self.period, self.reserved = period, 0
        if not -SLOTS <= slot - self.slot <= 0:  # a clock that was set back keeps them
            moved = min(abs(slot - self.slot), SLOTS)
            self.slot, self.recent = slot, self.recent[moved:] + [0] * moved

    def expected(self, input_cost: int, longest_cost: int) -> int:
        """Return what a request may cost: of its input alone, and with the longest answer."""
        return min(max(self.highest, input_cost), longest_cost) if self.highest else longest_cost

    def blocked_by(self, budget: Budget, expected: int, now: float) -> Block | None:
        """Return why a request that may cost *expected* must not be sent; call `advance` first."""
        recent, room_at = 0, 0
        for moved in range(SLOTS, 0, -1):  # the latest first
            recent += self.recent[moved - 1]
            if budget.ten_minutes is not None and recent >= budget.ten_minutes:
                room_at = room_at or self.slot + moved
        windows = (
            ("usd_month", self.month, budget.month, self.month_end),
            ("usd", self.day, budget.day, self.day_end),
            ("usd_10m", recent, budget.ten_minutes, room_at * SLOT_S),
        )
        found = None
        for reason, spent, limit, end in windows:
            if limit is not None and spent >= limit:
                found = later(found, Block(reason, end, waitable=reason == "usd_10m"))
        reserved = self.reserved + self.reserved_before
        more = reserved + expected
        full = (limit is not None and spent + more > limit for _, spent, limit, _ in windows)
        if not found and reserved and any(full):
            found = Block("usd_reserved", now + PROBE_POLL_S, waitable=True)
        return found

    def book(self, amount: int) -> None:
        """Count what a request has cost."""
        self.recent[-1] += amount
        self.day, self.month = self.day + amount, self.month + amount
        self.highest = max(self.highest, amount)

    def release(self, period: int, amount: int) -> None:
        """End a reservation."""
        if period == self.period:
            self.reserved = max(self.reserved - amount, 0)
        elif period + 1 == self.period:
            self.reserved_before = max(self.reserved_before - amount, 0)
