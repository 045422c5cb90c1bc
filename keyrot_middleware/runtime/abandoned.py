"""Whether the garbage collector is running in this thread.

The collector may run at any line of a thread, also at one that holds a lock of the state, of a
tracer or of logging. To settle a call takes all of these and would wait for itself. So a call that
the collector closes is only queued in `Pool.abandoned`; the next call of the pool settles it.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, Literal

__all__ = ["in_gc", "unwatch_gc", "watch_gc"]

_gc_threads: Final[set[int]] = set()
"""The threads in which the collector is running."""


def in_gc() -> bool:
    """Return whether the caller runs inside the collector; False before `watch_gc`."""
    return get_ident() in _gc_threads


def watch_gc() -> None:
    """Register with the collector, which then reports when it starts and stops."""
    if _on_gc not in gc.callbacks:
        gc.callbacks.append(_on_gc)


def unwatch_gc() -> None:
    """Undo `watch_gc`."""
    with suppress(ValueError):
        gc.callbacks.remove(_on_gc)
    _gc_threads.clear()


def _on_gc(phase: Literal["start", "stop"], _counts: Any) -> None:
    (_gc_threads.add if phase == "start" else _gc_threads.discard)(get_ident())
