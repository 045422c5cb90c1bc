"""How the keys are at the moment in which metrics are collected: what is told, and how it is read.

A shared state is asked over the network, and nobody who collects may be held up by that. So it
is read in a thread of its own, and waited for a while only; where it takes longer, this
collection tells nothing of the keys.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..core.availability import KeyState
from .base import Fault

__all__ = ["KeyLevel", "QuotaLevel", "Reading"]

PATIENCE_S = 2.0
"""How long a collection waits; Prometheus gives a scrape ten seconds."""
FRESH_S = 0.25
"""One reading serves all metrics of a collection, which follow upon each other."""


class QuotaLevel(NamedTuple):
    """How much of one limit is used."""

    model: str
    """The model, or Google's name for several that are counted as one."""
    quota: str
    """`rpm`, `tpm` or `rpd`."""
    ratio: float
    """0 for nothing, 1 for all of it."""


class KeyLevel(NamedTuple):
    """How a key is."""

    key_id: str
    state: KeyState
    used: tuple[QuotaLevel, ...] = ()
    """Of limits that are known, for models that were asked for."""


class Reading:
    """The latest levels, read anew where they are not those of this moment."""

    def __init__(
        self, read: Callable[[], Iterable[KeyLevel]], fault: Fault, *, instant: bool
    ) -> None:
        """Read nothing yet.

        Args:
            read: Gives the level of each key; may be slow and may raise, unless *instant*.
            fault: Told of what it raises.
            instant: It does no I/O, and so is called as it is.
        """
        self._read = read
        self._fault = fault
        self._instant = instant
        self._thread: threading.Thread | None = None
        self._last: tuple[float, Sequence[KeyLevel]] = (float("-inf"), ())

    def __call__(self, patience_s: float) -> Sequence[KeyLevel]:
        """Give the levels; nothing where they are not there within *patience_s* seconds.

        No lock is held, since a process may fork meanwhile: two who collect at once read twice.
        """
        begin = time.monotonic()
        if begin - self._last[0] > FRESH_S:
            if self._instant:
                self._take()
            elif (reader := self._reader()) is not None:
                reader.join(min(patience_s, PATIENCE_S))
        at, levels = self._last
        return levels if at >= begin - FRESH_S else ()

    def _reader(self) -> threading.Thread | None:
        """Give the thread that reads; None where the interpreter is about to end."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._take, name="keyrot-metrics", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return None
            self._thread = thread
        return thread

    def _take(self) -> None:
        try:
            levels = tuple(self._read())
        except Exception:
            levels = ()
            self._fault("telemetry")
        self._last = (time.monotonic(), levels)
