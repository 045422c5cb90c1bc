"""Deadlines of first tokens: how long they may take, and how many calls may be cut off."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf

from ..core.model import CallInfo
from ..settings import AUTO
from ..state.memory import BoundedDict

SHARE = 0.05
"""Of the calls of a minute to a model, at most so many are cut off, and at least one may be."""
TIMES, LEAST_S = 3, 5.0
"""`AUTO` is so many times the median, and so many seconds at least."""
KEPT, LEAST_KEPT = 100, 5
"""The last first tokens of which the median is, and the fewest."""
HOUR_S = 3_600.0
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
        self._taken: BoundedDict[deque[tuple[float, float]]] = BoundedDict(MODELS)
        """By model and whether it is a stream: when first tokens came, and after how long."""
        self._minutes: BoundedDict[list[int]] = BoundedDict(MODELS)
        """By model: the minute, calls and cuts in it, and calls in the minute before."""
        self.watched: set[Deadline] = set()
        """Those of bodies that threads read."""

    def begin(self, info: CallInfo) -> float:
        """Count a call; return how long it may show nothing, or `inf`."""
        self._minute(info.model)[1] += 1
        limit = first_token_s.get()
        if limit is None:
            limit = self.limits.get(info.workload, self.limits[None])
        if limit != AUTO:
            return limit or inf
        since, known = self._now() - HOUR_S, tuple(self._taken.get(_name(info)) or ())
        times = sorted(seconds for at, seconds in known if at > since)
        return max(TIMES * times[len(times) // 2], LEAST_S) if len(times) >= LEAST_KEPT else inf

    def measure(self, info: CallInfo, seconds: float) -> None:
        """Note how long a first token took."""
        self._taken.setdefault(_name(info), deque(maxlen=KEPT)).append((self._now(), seconds))

    def take(self, model: str, number: int = 1) -> bool:
        """Return whether one more call may be cut off in this minute, and count it.

        Args:
            model: The model.
            number: -1: one that was counted was not cut off.
        """
        found = self._minute(model)
        if found[2] + number > max(1, SHARE * max(found[1], found[3])):
            return False
        found[2] = max(found[2] + number, 0)
        return True

    def cut_late(self) -> float:
        """Cut off the bodies that are late; return in how many seconds the next one is."""
        now = time.monotonic()
        for one in [one for one in tuple(self.watched) if one.at <= now]:
            one.cut()
        return min([one.at - now for one in tuple(self.watched)], default=inf)

    def _minute(self, model: str) -> list[int]:
        minute, found = int(self._now() // 60), self._minutes.get(model)
        if found is None or found[0] != minute:
            before = found[1] if found is not None and found[0] == minute - 1 else 0
            found = self._minutes[model] = [minute, 0, 0, before]
        return found


NO_DEADLINES = FirstTokens({}, time.time)


def _name(info: CallInfo) -> str:
    return f"{info.model}{':' * info.stream}"


class Deadline:
    """That of one attempt in a thread.

    A read that times out is over, so one of the cuts of this minute is held for the head. The body
    is cut off by another thread.
    """

    def __init__(self, seconds: float, tokens: FirstTokens, model: str) -> None:
        self._tokens, self._model = tokens, model
        self._holds = tokens.take(model)
        self.head_s, self.at = seconds if self._holds else inf, time.monotonic() + seconds
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None
        self._is_cut = False

    @property
    def was_missed(self) -> bool:
        """Whether it has ended the attempt, if that has timed out."""
        return self._is_cut or (self._holds and time.monotonic() >= self.at)

    def cancel(self) -> None:
        """End it: something has come."""
        self.at = inf
        self._give_back()

    @contextmanager
    def over(self, end: Callable[[], object] | None) -> Iterator[None]:
        """Cut off what a thread reads inside, if *end* can end its connection.

        Raises:
            TimeoutError: It was cut off.
        """
        self._end = end
        self._give_back()
        self._tokens.watched.add(self)
        try:
            yield
        except Exception:
            if not self._is_cut:
                raise
        finally:
            self._leave()
        if self._is_cut:
            raise TimeoutError

    def cut(self) -> None:
        """End the connection, unless the first event was read."""
        with self._lock:
            self._tokens.watched.discard(self)
            if self._end is not None and self._tokens.take(self._model):
                self._is_cut = True
                with suppress(Exception):  # it is closed already
                    self._end()

    def _give_back(self) -> None:
        if self._holds:
            self._holds = False
            self._tokens.take(self._model, -1)

    def _leave(self) -> None:
        with self._lock:
            self._tokens.watched.discard(self)
            self._end = None
