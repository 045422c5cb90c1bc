"""Record what calls did lately; see core/activity.py for what is kept.

A pool with a state of its own keeps its activity in this process, from the moment when a page or
an alert asks for it. Where the state is shared, every process records, and the refresher sends
what is new about once a second, so that a page shows the calls of all processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from ..core.activity import (
    ActivityBatch,
    ActivityLog,
    ActivityView,
    Attempt,
    CallOutcome,
    CallRecord,
)
from ..core.commands import Command, Send, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, project_label
from ..forks import after_fork
from ..state.base import State

__all__ = ["Activity"]


class Activity:
    """The activity of one pool; an `Observer` of its calls."""

    def __init__(self, state: State, now: Callable[[], float]) -> None:
        """Record nothing yet, unless *state* is shared.

        Args:
            state: What a shared one has in common is sent there.
            now: Returns epoch seconds.
        """
        self.enabled = not state.is_local
        self._state, self._now = state, now
        self._lock = threading.Lock()
        self._log = ActivityLog() if state.is_local else None
        self._batch = ActivityBatch()
        after_fork(self, Activity._in_child)

    def observe(self, info: CallInfo) -> CallRecorder | None:
        """Record a call; None while nobody asks for it."""
        return CallRecorder(self, info.model, self._now) if self.enabled else None

    def add(self, record: CallRecord) -> None:
        """Count a call that ended."""
        if self.enabled:
            with self._lock:
                (self._log or self._batch).add(record)

    def send(self) -> None:
        """Send what is new to the shared state; what it does not take is dropped."""
        with self._lock:
            batch, self._batch = self._batch, ActivityBatch()
        if batch:
            self._state.record_activity(batch)

    def view(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of *key_ids* and of the pool as of *now*, epoch seconds.

        From the first time on, calls are recorded.
        """
        self.enabled = True
        if self._log is not None:
            with self._lock:
                return self._log.view(key_ids, now)
        self.send()
        return self._state.activity(key_ids, now)

    def _in_child(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self._batch = ActivityBatch()  # the parent sends it


class CallRecorder:
    """The `CallObserver` that makes a `CallRecord` of one call."""

    __slots__ = (
        "_activity",
        "_attempts",
        "_began",
        "_model",
        "_now",
        "_project",
        "_sent_at",
        "_usage",
        "_waited",
    )

    def __init__(self, activity: Activity, model: str, now: Callable[[], float]) -> None:
        """Begin with the call."""
        self._activity, self._model, self._now = activity, model, now
        self._began = self._sent_at = perf_counter()
        self._attempts: list[Attempt] = []
        self._usage, self._project = NO_USAGE, ""
        self._waited = False

    def before(self, command: Command) -> None:
        """Note when a request is sent, and that the call waits for a key."""
        kind = type(command)
        if kind is Send:
            self._sent_at = perf_counter()
        elif kind is Sleep and command.reason == "key":  # type: ignore[union-attr]  # narrowed above
            self._waited = True

    def after(self, command: Command, reply: Any) -> None:
        """Note what came of a request."""
        del reply
        if type(command) is Settle:
            verdict, seconds = command.outcome.verdict, perf_counter() - self._sent_at
            failure, code = (None, None) if verdict is None else (verdict.failure, verdict.code)
            self._attempts.append(Attempt(command.lease.key_id, failure, code, seconds))
            self._usage = command.outcome.usage
            self._project = project_label(command.lease.project)

    def attach(self) -> None:
        """Do nothing: a record makes nothing current."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Add the call to the pool's activity."""
        outcome: CallOutcome = "ok"
        if isinstance(error, Exhausted):
            outcome = "exhausted"
        elif isinstance(error, Exception):
            outcome = "failed"
        elif error is not None:  # closed, cancelled, interrupted
            outcome = "abandoned"
        seconds, attempts = perf_counter() - self._began, tuple(self._attempts)
        self._activity.add(
            CallRecord(
                self._now(),
                self._model,
                seconds,
                outcome,
                attempts,
                self._usage,
                self._waited,
                self._project,
            )
        )
