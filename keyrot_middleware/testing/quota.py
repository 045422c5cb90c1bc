"""Quotas as Google counts them: per project and model bucket, in minutes and Pacific days.

Source: docs/gemini-api.md#quota. The minute starts at :00, unless another kind of window is chosen;
the day starts at midnight Pacific time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

__all__ = [
    "LimitName",
    "Limits",
    "QuotaCounter",
    "QuotaUsage",
    "Window",
    "seconds_to_midnight",
    "seconds_to_minute",
]

LimitName = Literal["rpm", "tpm", "rpd"]
Window = Literal["minute", "sliding", "bucket"]
"""How requests and tokens a minute are counted: in minutes of the clock; within the last 60 s; or
by a bucket that holds one limit and is refilled evenly within 60 s."""
PACIFIC = ZoneInfo("America/Los_Angeles")


Sent = list[tuple[float, float, float]]
"""Time, requests and tokens of each send; for a bucket, the amount missing at that time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a project for one model: requests and input tokens a minute, requests a day.

    None: no limit; 0: the model is not offered to the project.
    """

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None

    def over(self, other: Limits) -> Limits:
        """Return these limits, with those of `other` where none is set here."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in given.items() if value is not None})


@dataclass(slots=True)
class QuotaUsage:
    """What a project has used in the current minute and day."""

    minute: int
    day: str
    requests: int = 0
    tokens: int = 0
    day_requests: int = 0
    sent: Sent = field(default_factory=list, repr=False, compare=False)
    """The sends that a `sliding` or `bucket` window counts."""


def seconds_to_minute(now: float) -> float:
    """Return the seconds from epoch `now` to the next :00; 60 at :00 itself."""
    return 60.0 - now % 60.0


def seconds_to_midnight(now: float) -> float:
    """Return the seconds from epoch `now` to the next midnight Pacific time."""
    local = datetime.fromtimestamp(now, PACIFIC)
    midnight = datetime.combine(local.date() + timedelta(days=1), time(), PACIFIC)
    return midnight.timestamp() - now


def _window(now: float) -> tuple[int, str]:
    return int(now // 60), datetime.fromtimestamp(now, PACIFIC).date().isoformat()


class QuotaCounter:
    """Counts the usage of every project and bucket; thread-safe.

    Args:
        window: How minutes are counted.

    Raises:
        ValueError: If there is no such kind of window.
    """

    def __init__(self, window: Window = "minute") -> None:
        if window not in ("minute", "sliding", "bucket"):
            raise ValueError(f"window={window!r} is none of 'minute', 'sliding', 'bucket'")
        self._window = window
        self._lock = threading.Lock()
        self._limits: dict[tuple[str, str | None], Limits] = {}
        self._used: dict[tuple[str, str], QuotaUsage] = {}

    def limit(self, project: str, limits: Limits, model: str | None = None) -> None:
        """Set limits of a project, for one bucket or for all; None: no change."""
        with self._lock:
            before = self._limits.get((project, model), Limits())
            self._limits[project, model] = limits.over(before)

    def limits(self, project: str, bucket: str) -> Limits:
        """Return the limits of a project for a bucket: the bucket's own over those for all."""
        with self._lock:
            general = self._limits.get((project, None), Limits())
            return self._limits.get((project, bucket), Limits()).over(general)

    def used(self, project: str, bucket: str, now: float) -> QuotaUsage:
        """Return a copy of the usage in the current windows."""
        with self._lock:
            current = self._current(project, bucket, now)
            return replace(current, sent=list(current.sent))

    def charge(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> list[LimitName]:
        """Count a request if it fits, atomically.

        Returns:
            The limits it would exceed, in which case nothing was counted; empty if it fits.
        """
        limits = self.limits(project, bucket)
        with self._lock:
            used = self._current(project, bucket, now)
            exceeded = _exceeded(limits, used, requests, tokens)
            if not exceeded:
                self._add(used, now, requests, tokens)
            return exceeded

    def count(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> None:
        """Count a request whether it fits or not."""
        with self._lock:
            self._add(self._current(project, bucket, now), now, requests, tokens)

    def wait_s(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> float:
        """Return the seconds until a request fits into its minute, if nothing else is sent.

        For a request that never fits: until the window is empty.
        """
        if self._window == "minute":
            return seconds_to_minute(now)
        limits = self.limits(project, bucket)
        with self._lock:
            sent = self._current(project, bucket, now).sent
            waits = [
                _wait_s(self._window, [(at, event[index]) for at, *event in sent], limit, cost, now)
                for index, limit, cost in ((0, limits.rpm, requests), (1, limits.tpm, tokens))
                if limit is not None
            ]
        return max(waits, default=0.0)

    def _add(self, used: QuotaUsage, now: float, requests: int, tokens: int) -> None:
        if self._window != "minute":
            used.sent.append((now, requests, tokens))
        used.requests += requests
        used.tokens += tokens
        used.day_requests += requests

    def _current(self, project: str, bucket: str, now: float) -> QuotaUsage:
        minute, day = _window(now)
        used = self._used.setdefault((project, bucket), QuotaUsage(minute, day))
        if self._window != "minute":
            limits = self._limits.get((project, None), Limits())
            limits = self._limits.get((project, bucket), Limits()).over(limits)
            used.minute = minute
            used.sent, used.requests, used.tokens = _counted(self._window, used.sent, limits, now)
        elif used.minute != minute:
            used.minute, used.requests, used.tokens = minute, 0, 0
        if used.day != day:
            used.day, used.day_requests = day, 0
        return used


def _exceeded(limits: Limits, used: QuotaUsage, requests: int, tokens: int) -> list[LimitName]:
    checks: dict[LimitName, tuple[int | None, int]] = {
        "rpd": (limits.rpd, used.day_requests + requests),
        "rpm": (limits.rpm, used.requests + requests),
        "tpm": (limits.tpm, used.tokens + tokens),
    }
    return [kind for kind, (limit, total) in checks.items() if limit is not None and total > limit]


def _counted(window: Window, sent: Sent, limits: Limits, now: float) -> tuple[Sent, int, int]:
    """Return the sends that still count, and their requests and tokens."""
    if window == "sliding":
        kept = [event for event in sent if now - event[0] < 60.0]
        return kept, int(sum(event[1] for event in kept)), int(sum(event[2] for event in kept))
    requests = _level([(at, count) for at, count, _ in sent], limits.rpm, now)
    tokens = _level([(at, count) for at, _, count in sent], limits.tpm, now)
    return [(now, requests, tokens)], math.ceil(requests - 1e-9), math.ceil(tokens - 1e-9)


def _level(sent: Iterable[tuple[float, float]], limit: int | None, now: float) -> float:
    """Return the amount missing from a bucket; without a limit it is refilled in 60 s."""
    level, last = 0.0, now
    for at, count in sent:
        level = _refilled(level, limit, at - last) + count
        last = at
    return _refilled(level, limit, now - last)


def _refilled(level: float, limit: int | None, seconds: float) -> float:
    back = (level if limit is None else limit) * max(seconds, 0.0) / 60.0
    return max(level - back, 0.0)


def _wait_s(
    window: Window, sent: list[tuple[float, float]], limit: int, cost: int, now: float
) -> float:
    if window == "bucket":
        level = _level(sent, limit, now)
        return min(max(level + cost - limit, 0.0), level) * 60.0 / limit if limit else 60.0
    used, wait_s = sum(count for _, count in sent), 0.0
    for at, count in sent:
        if used + cost <= limit:
            break
        used, wait_s = used - count, at + 60.0 - now
    return wait_s
