"""Record what calls did lately; see core/activity.py for what is kept.

A pool with a state of its own keeps its activity in this process. Where the state is shared, the
refresher sends what is new there about once a second, so that a page shows the calls of all
processes. A call only adds to a dictionary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..core.activity import ActivityBatch, ActivityLog, ActivityView, CallRecord
from ..forks import after_fork
from ..state.base import State

__all__ = ["Activity"]


class Activity:
    """The activity of one pool."""

    def __init__(self, state: State) -> None:
        """Keep it in this process where *state* is its own, else send it there."""
        self._state = state
        self._lock = threading.Lock()
        self._log = ActivityLog() if state.is_local else None
        self._batch = ActivityBatch()
        after_fork(self, Activity._in_child)

    def add(self, record: CallRecord) -> None:
        """Count a call that ended."""
        with self._lock:
            (self._log or self._batch).add(record)

    @property
    def pending(self) -> bool:
        """Whether there is something to send to the shared state."""
        return bool(self._batch)

    def send(self) -> None:
        """Send what is new to the shared state; what it does not take is dropped."""
        with self._lock:
            batch, self._batch = self._batch, ActivityBatch()
        if batch:
            self._state.record_activity(batch)

    def view(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of *key_ids* and of the pool as of *now*, epoch seconds."""
        if self._log is not None:
            with self._lock:
                return self._log.view(key_ids, now)
        self.send()
        return self._state.activity(key_ids, now)

    def _in_child(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self._batch = ActivityBatch()  # the parent sends it
