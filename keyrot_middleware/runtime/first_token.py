"""Deadlines of first tokens: how long they may take, and how many calls may be cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from math import inf
from typing import Any

from ..core.model import CallInfo
from ..state.memory import BoundedDict

SHARE = 0.05
"""Of the calls of a minute to a model, at most so many are cut off, and at least one may be."""
MODELS = 256


first_token_s: ContextVar[float | None] = ContextVar("keyrot_first_token_s", default=None)
"""What `workload()` names; None: as the settings say."""


class FirstTokens:
    """What a process knows of a pool's models. Not locked: at worst one more call is cut off."""

    def __init__(self, limits: Mapping[str | None, float], now: Callable[[], float]) -> None:
        """Start empty.

        Args:
            limits: Seconds by workload, by None of all others; 0: none. Empty: no call has any.
            now: Returns epoch seconds.
        """
        self.limits, self._now = limits, now
        self._minutes: BoundedDict[list[int]] = BoundedDict(MODELS)
        """By model: the minute, calls and cuts in it, and calls in the minute before."""
        self.shared: dict[str, bool] = {}
        """By host: whether a connection to it had several calls at once, as those of HTTP/2 have.
        The end of one could end the others."""

    def begin(self, info: CallInfo, may_share: bool = False) -> float:
        """Count a call; return how long it may show nothing, or `inf`.

        Args:
            info: The call.
            may_share: Its connection may have other calls, while nothing is known of its host.
        """
        self._minute(info.model)[1] += 1
        if self.shared.get(info.host, may_share):
            return inf
        limit = first_token_s.get()
        if limit is None:
            limit = self.limits.get(info.workload, self.limits[None])
        return limit or inf

    def take(self, model: str, number: int = 1) -> bool:
        """Return whether one more call may be cut off in this minute, and count it.

        Args:
            model: The model.
            number: -1: one that was counted was not cut off.
        """
        counts = self._minute(model)
        if counts[2] + number > max(1, SHARE * max(counts[1], counts[3])):
            return False
        counts[2] = max(counts[2] + number, 0)
        return True

    def _minute(self, model: str) -> list[int]:
        minute, counts = int(self._now() // 60), self._minutes.get(model)
        if counts is None or counts[0] != minute:
            before = counts[1] if counts is not None and counts[0] == minute - 1 else 0
            counts = self._minutes[model] = [minute, 0, 0, before]
        return counts


NO_DEADLINES = FirstTokens({}, time.time)


class Deadline:
    """That of the head for which a thread waits: the read timeout of its request."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._at = seconds, time.monotonic() + seconds
        self._timeouts: dict[str, Any] = {}
        self._own: float | None = None

    @property
    def was_missed(self) -> bool:
        """Whether it has ended the attempt, if that has timed out."""
        return time.monotonic() >= self._at

    def over(self, timeouts: Any) -> dict[str, Any]:
        """Return the timeouts of a request that has this deadline; *timeouts*: the program's."""
        self._timeouts = dict(timeouts or {})
        self._own = self._timeouts.get("read")
        self._timeouts["read"] = min(self._seconds, inf if self._own is None else self._own)
        return self._timeouts

    def cancel(self) -> None:
        """End it: the head is here. Who reads the body looks at its timeout then."""
        self._at, self._timeouts["read"] = inf, self._own
