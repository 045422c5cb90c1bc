"""Quotas as Google counts them: per project and model bucket, in minutes and Pacific days.

Sources: GEMINI.md B1 to B5. The minute is fixed to :00, the day begins at midnight in Los Angeles.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace
from datetime import datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

__all__ = ["Kind", "Limits", "QuotaBook", "Used", "seconds_to_midnight", "seconds_to_minute"]

Kind = Literal["rpm", "tpm", "rpd"]
PACIFIC = ZoneInfo("America/Los_Angeles")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a project may use of one model: requests and input tokens a minute, requests a day.

    None is no limit; 0 means that the model is not offered to the project.
    """

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None

    def over(self, other: Limits) -> Limits:
        """Return `other` with every limit that is set here put over it."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in given.items() if value is not None})


@dataclass(slots=True)
class Used:
    """What was counted in the minute and the day that hold `now`."""

    minute: int
    day: str
    requests: int = 0
    tokens: int = 0
    day_requests: int = 0


def seconds_to_minute(now: float) -> float:
    """Return the seconds from epoch `now` to the next :00; 60 at :00 itself."""
    return 60.0 - now % 60.0


def seconds_to_midnight(now: float) -> float:
    """Return the seconds from epoch `now` to the next midnight in Los Angeles."""
    local = datetime.fromtimestamp(now, PACIFIC)
    midnight = datetime.combine(local.date() + timedelta(days=1), time(), PACIFIC)
    return midnight.timestamp() - now


def _window(now: float) -> tuple[int, str]:
    return int(now // 60), datetime.fromtimestamp(now, PACIFIC).date().isoformat()


class QuotaBook:
    """Counts what every project used of every bucket; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[tuple[str, str | None], Limits] = {}
        self._used: dict[tuple[str, str], Used] = {}

    def limit(self, project: str, limits: Limits, model: str | None = None) -> None:
        """Set limits of a project, for one bucket or for all; a None leaves what was set before."""
        with self._lock:
            before = self._limits.get((project, model), Limits())
            self._limits[project, model] = limits.over(before)

    def limits(self, project: str, bucket: str) -> Limits:
        """Return the limits of a project for a bucket: the bucket's own over those for all."""
        with self._lock:
            general = self._limits.get((project, None), Limits())
            return self._limits.get((project, bucket), Limits()).over(general)

    def used(self, project: str, bucket: str, now: float) -> Used:
        """Return a copy of what was counted in the windows that hold `now`."""
        with self._lock:
            return replace(self._current(project, bucket, now))

    def charge(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> list[Kind]:
        """Count a request if it fits, in one step.

        Returns:
            The limits that it would overrun, and then nothing was counted; empty if it fits.
        """
        limits = self.limits(project, bucket)
        with self._lock:
            used = self._current(project, bucket, now)
            broken = _broken(limits, used, requests, tokens)
            if not broken:
                _count(used, requests, tokens)
            return broken

    def count(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> None:
        """Count a request whether it fits or not."""
        with self._lock:
            _count(self._current(project, bucket, now), requests, tokens)

    def _current(self, project: str, bucket: str, now: float) -> Used:
        minute, day = _window(now)
        used = self._used.setdefault((project, bucket), Used(minute, day))
        if used.minute != minute:
            used.minute, used.requests, used.tokens = minute, 0, 0
        if used.day != day:
            used.day, used.day_requests = day, 0
        return used


def _broken(limits: Limits, used: Used, requests: int, tokens: int) -> list[Kind]:
    wanted: dict[Kind, tuple[int | None, int]] = {
        "rpd": (limits.rpd, used.day_requests + requests),
        "rpm": (limits.rpm, used.requests + requests),
        "tpm": (limits.tpm, used.tokens + tokens),
    }
    return [kind for kind, (limit, sum_) in wanted.items() if limit is not None and sum_ > limit]


def _count(used: Used, requests: int, tokens: int) -> None:
    used.requests += requests
    used.tokens += tokens
    used.day_requests += requests
