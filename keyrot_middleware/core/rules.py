"""What one row of the failure table is: the signs to match, and what follows from them.

The rows themselves, and the theory of how they work together, are in failures.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

from .bodies import Told
from .model import Backoff, CallInfo, Scope
from .windows import DAY_S, next_minute, next_pacific_midnight, next_pacific_month

__all__ = [
    "DAILY",
    "LONG_S",
    "SLOWLY",
    "Facts",
    "Rule",
    "Transport",
    "Until",
    "a_day",
    "an_hour",
    "as_told",
    "cap_end",
    "day_end",
    "minute_end",
    "strikes",
    "ten_minutes",
]

LONG_S = 300.0
"""A delay beyond this is no pace but a spent day (Google's own clients draw the same line)."""
HOUR_S = 3_600.0

DAY_GRACE_S = 600.0
"""A day that is exhausted for a request of its first ten minutes is taken for the day before."""

SLOWLY = Backoff(900.0, 21_600.0)
"""How a rejected value is tried again: Google is wrong for a minute, a restriction is lifted. After
15 minutes, then after twice as long each time, up to 6 hours: some eight requests on the first day.
"""
DAILY = Backoff(DAY_S, DAY_S)
"""For a value that is reported as leaked, or whose project is suspended: that takes somebody's
appeal."""

Transport = Literal["", "connect", "reset", "timeout", "other"]
Until = Callable[[Told, float], float | None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a failed request: all that `classify` looks at."""

    code: int | None = None
    """The HTTP code; None for a transport error, None or 0 inside a stream."""
    body: object = None
    """Parsed JSON or text, in any of the shapes of bodies.py."""
    retry_after: str | None = None
    """The header Retry-After: seconds or an HTTP date."""
    transport: Transport = ""
    """`connect`: refused, no such host, nothing sent; `reset`: dropped before any response;
    `timeout`: the caller's own deadline."""


def strikes(_told: Told, _now: float) -> None:
    """For the exponential cooldown: nobody knows."""


def ten_minutes(_told: Told, now: float) -> float:
    """For as long as an API takes to be enabled."""
    return now + 600.0


def an_hour(_told: Told, now: float) -> float:
    """For an hour: money may have been paid in, or Google was wrong (A4)."""
    return now + HOUR_S


def cap_end(_told: Told, now: float) -> float:
    """For an hour, or until the month of a spending cap ends: the cap may be raised."""
    return min(now + HOUR_S, next_pacific_month(now))


def a_day(_told: Told, now: float) -> float:
    """For 24 hours: somebody has to change something."""
    return now + DAY_S


def day_end(told: Told, now: float) -> float | None:
    """Until midnight Pacific time; only a paid day's RetryInfo is true, and it is long.

    Around midnight it is the day before that is exhausted: clocks differ, Google's reset may come
    late, and a request may be answered on the next day. Nobody knows for how long, so the key is
    tried again soon.
    """
    sent = now if told.sent_at is None else told.sent_at
    if next_pacific_midnight(sent - DAY_GRACE_S) <= now:
        return None
    if told.delay is not None and told.delay > LONG_S:
        return now + told.delay
    return next_pacific_midnight(now)


def minute_end(told: Told, now: float) -> float:
    """Until the time that the server named, else the next minute."""
    return next_minute(now) if told.delay is None else now + told.delay


def as_told(told: Told, now: float) -> float | None:
    """Until the time that the server named, else unknown."""
    return None if told.delay is None else now + told.delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One failure class: what it looks like, and what follows.

    It matches where `transport`, `codes` and `model_only` all fit and any one of the signals
    `words`, `text`, `quota`, `zero`, `delay` is there; a rule without signals goes by its code.
    What blames somebody has to be an error of Google's, unless it is `any_body`.
    """

    name: str
    transport: Transport = ""
    codes: Container[int | None] | None = None
    """None: any code, and no code."""
    model_only: bool = False
    """Only for a request that names a model and no stored thing."""
    words: frozenset[str] = frozenset()
    """ErrorInfo reasons and Interactions' codes, upper case."""
    text: re.Pattern[str] | None = None
    quota: str = ""
    """A part of the quotaId or metric name, lower-case letters only."""
    zero: bool = False
    """A limit of 0."""
    delay: bool = False
    """The server named a time."""

    scope: Scope = Scope.NONE
    until: Until = strikes
    backoff: Backoff | None = None
    """Of the exponential cooldown; None: as the settings say."""
    rejected: bool = False
    """Google refuses the key's value."""
    named: bool = False
    of_minute: bool = False
    """It tells how the server counts a minute."""
    rotate: bool = False
    """Another key may serve although nobody is blamed; with a scope it may anyway."""
    retry: bool = False
    max_retries: int | None = None
    max_rotations: int | None = None
    wait: bool = True
    sent: bool = True
    same_tier: bool = True
    any_body: bool = False
    """It is about a pace, so that it counts where a proxy tells it as well."""

    def matches(self, facts: Facts, told: Told, info: CallInfo) -> bool:
        """Tell whether the failure is of this class."""
        if self.transport != facts.transport:
            return False
        if self.codes is not None and told.code not in self.codes:
            return False
        alone = self._by_code_alone()
        believed = self.any_body or (told.google if alone else told.shaped)
        if self.scope is not Scope.NONE and not believed:
            return False
        if self.model_only and (info.pinned or info.resources or not info.model):
            return False
        return alone or self._signalled(told)

    def _by_code_alone(self) -> bool:
        return not (self.words or self.text or self.quota or self.zero or self.delay)

    def _signalled(self, told: Told) -> bool:
        return (
            not self.words.isdisjoint(told.words)
            or (self.text is not None and self.text.search(told.message) is not None)
            or (self.quota != "" and any(self.quota in quota.name for quota in told.quotas))
            or (self.zero and any(quota.limit == 0 for quota in told.quotas))
            or (self.delay and told.delay is not None)
        )
