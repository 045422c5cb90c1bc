"""What calls did lately, as values: for status pages and alerts, never for a decision.

Everything here is bounded: minutes by the hour, days by two, calls by their number.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, NamedTuple

from .model import NO_USAGE, Usage
from .spending import NANO, nano_usd
from .windows import pacific_day

__all__ = [
    "CALLS_KEPT",
    "MINUTES",
    "POOL",
    "ActivityBatch",
    "ActivityLog",
    "ActivityView",
    "Attempt",
    "CallOutcome",
    "CallRecord",
    "DayUsage",
    "History",
    "dump_call",
    "load_call",
    "project_entry",
]

MINUTES = 60
"""How many minutes of history are kept, the current one included."""
CALLS_KEPT = 100
POOL = ""
"""Stands in place of a key id for the sums over all keys."""

CallOutcome = Literal["ok", "failed", "exhausted", "abandoned"]


class Attempt(NamedTuple):
    """One request of a call."""

    key_id: str
    failure: str | None
    """The failure class; None where the request succeeded or was abandoned."""
    code: int | None
    """The HTTP status of a failure."""
    seconds: float


class CallRecord(NamedTuple):
    """One call that ended."""

    at: float
    """When it ended, epoch seconds."""
    model: str
    seconds: float
    outcome: CallOutcome
    attempts: tuple[Attempt, ...]
    usage: Usage = NO_USAGE
    """Of the last attempt."""
    waited: bool = False
    """It waited for a key."""
    project: str = ""
    """Of the key of the last attempt."""


@dataclass(slots=True)
class DayUsage:
    """Tokens and cost of one Pacific day."""

    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0

    def add(self, input_tokens: int, output_tokens: int, nano_usd: int) -> None:
        """Add the usage of one request."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.nano_usd += nano_usd

    @property
    def cost_usd(self) -> float:
        """Return the cost in dollars."""
        return self.nano_usd / NANO


class History(NamedTuple):
    """Counts per minute, the oldest first, `MINUTES` of each."""

    requests: Sequence[int]
    failures: Sequence[int]


class ActivityView(NamedTuple):
    """What is shown of the activity of a pool."""

    histories: dict[str, History]
    """By key id, and under `POOL` the sums; keys without a request are missing."""
    waits: int
    """Calls of the last hour that waited for a key."""
    today: dict[str, DayUsage]
    """By key id or `project_entry`, and under `POOL` the sums."""
    calls: list[CallRecord]
    """The latest first."""


def _failures(record: CallRecord) -> int:
    return sum(attempt.failure is not None for attempt in record.attempts)


def dump_call(record: CallRecord) -> str:
    """Return a call as text, for a shared state."""
    fields = (record.at, record.model, record.seconds, record.outcome, record.attempts)
    return json.dumps([*fields, int(record.waited)], separators=(",", ":"))


def load_call(text: str | bytes) -> CallRecord | None:
    """Read a call; None where something else wrote into the list."""
    try:
        at, model, seconds, outcome, attempts, *more = json.loads(text)
        found = tuple(
            Attempt(
                str(key_id),
                failure if failure is None else str(failure),
                code if code is None else int(code),
                float(lasted),
            )
            for key_id, failure, code, lasted in attempts
        )
        times = (float(at), float(seconds), *(attempt.seconds for attempt in found))
        if not all(map(isfinite, times)):
            return None
        if outcome not in ("ok", "failed", "exhausted", "abandoned"):
            return None
        waited = more[:1] == [1]  # missing where an earlier version wrote it
        return CallRecord(times[0], str(model), times[1], outcome, found, waited=waited)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def project_entry(project: str) -> str:
    """Return under which name the usage of a project is counted; no key has such an id."""
    return f"project:{project}"


def _entries(record: CallRecord) -> tuple[str, ...]:
    """Return under which names the usage of a call is counted."""
    return record.attempts[-1].key_id, project_entry(record.project), POOL


def _usage(record: CallRecord) -> tuple[int, int, int]:
    usage = record.usage
    return (
        usage.input_tokens or 0,
        usage.output_tokens or 0,
        nano_usd(usage.cost_usd or 0.0),
    )


class _Minutes:
    """A ring of counts per minute."""

    __slots__ = ("_counts", "_minute")

    def __init__(self) -> None:
        self._counts = array("I", bytes(2 * MINUTES * array("I").itemsize))
        """Requests and failures of each minute, by its number modulo `MINUTES`."""
        self._minute = 0

    def add(self, minute: int, requests: int, failures: int) -> None:
        """Count in *minute*."""
        if minute != self._minute:
            self._advance(minute)
        place = 2 * (minute % MINUTES)
        self._counts[place] += requests
        self._counts[place + 1] += failures

    def history(self, minute: int) -> History:
        """Return the counts up to *minute*."""
        self._advance(minute)
        first = self._minute - MINUTES + 1  # later than that of *minute* if the clock stepped back
        places = [
            2 * (m % MINUTES) if m >= first else None
            for m in range(minute - MINUTES + 1, minute + 1)
        ]
        return History(
            [0 if p is None else self._counts[p] for p in places],
            [0 if p is None else self._counts[p + 1] for p in places],
        )

    def _advance(self, minute: int) -> None:
        if minute <= self._minute - MINUTES:  # the clock stepped back: start again
            self._counts = array("I", bytes(2 * MINUTES * array("I").itemsize))
            self._minute = minute
        for skipped in range(max(self._minute + 1, minute - MINUTES + 1), minute + 1):
            place = 2 * (skipped % MINUTES)
            self._counts[place] = self._counts[place + 1] = 0
        self._minute = max(self._minute, minute)


class ActivityLog:
    """The activity of one process, in memory. Not locked."""

    def __init__(self) -> None:
        """Start empty."""
        self._minutes: dict[str, _Minutes] = {}
        self._waits = _Minutes()
        self._day = ""
        self._today: dict[str, DayUsage] = {}
        self._calls: deque[CallRecord] = deque(maxlen=CALLS_KEPT)

    def add(self, record: CallRecord) -> None:
        """Count a call that ended."""
        minute = int(record.at // 60)
        for attempt in record.attempts:
            self._of(attempt.key_id).add(minute, 1, int(attempt.failure is not None))
        self._of(POOL).add(minute, len(record.attempts), _failures(record))
        if record.waited:
            self._waits.add(minute, 1, 0)
        if record.attempts and record.usage is not NO_USAGE:
            self._open_day(record.at)
            usage = _usage(record)
            for name in _entries(record):
                today = self._today.get(name)
                if today is None:
                    today = self._today[name] = DayUsage()
                today.add(*usage)
        self._calls.append(record)

    def view(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return what is known of *key_ids* and of the pool as of *now*, epoch seconds."""
        self._open_day(now)
        minute, wanted = int(now // 60), (*key_ids, POOL)
        return ActivityView(
            {key: self._minutes[key].history(minute) for key in wanted if key in self._minutes},
            sum(self._waits.history(minute).requests),
            {key: self._today[key] for key in wanted if key in self._today},
            list(reversed(self._calls)),
        )

    def _of(self, key_id: str) -> _Minutes:
        minutes = self._minutes.get(key_id)
        if minutes is None:
            minutes = self._minutes[key_id] = _Minutes()
        return minutes

    def _open_day(self, now: float) -> None:
        day = pacific_day(now)
        if day != self._day:
            self._day, self._today = day, {}


@dataclass(slots=True)
class ActivityBatch:
    """What one process adds to the activity of a shared pool. Not locked."""

    minutes: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    """By minute and key id: requests and failures."""
    waits: dict[int, int] = field(default_factory=dict)
    days: dict[tuple[str, str], DayUsage] = field(default_factory=dict)
    """By Pacific day and key id."""
    calls: deque[CallRecord] = field(default_factory=lambda: deque(maxlen=CALLS_KEPT))

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.calls)

    def add(self, record: CallRecord) -> None:
        """Count a call that ended."""
        minute = int(record.at // 60)
        for attempt in record.attempts:
            self._count(minute, attempt.key_id, 1, int(attempt.failure is not None))
        self._count(minute, POOL, len(record.attempts), _failures(record))
        if record.waited:
            self.waits[minute] = self.waits.get(minute, 0) + 1
        if record.attempts and record.usage is not NO_USAGE:
            day, usage = pacific_day(record.at), _usage(record)
            for key_id in _entries(record):
                self.days.setdefault((day, key_id), DayUsage()).add(*usage)
        self.calls.append(record)

    def _count(self, minute: int, key_id: str, requests: int, failures: int) -> None:
        counts = self.minutes.get((minute, key_id))
        if counts is None:
            counts = self.minutes[(minute, key_id)] = [0, 0]
        counts[0] += requests
        counts[1] += failures
