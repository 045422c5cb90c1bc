"""Counts that one thread is sending are waited for by whoever reads them."""

from __future__ import annotations

import threading
from typing import Any

from keyrot_middleware.core.activity import Attempt, CallRecord, Pair
from keyrot_middleware.core.model import DEFAULT_PLATFORM, RetryPolicy
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder
from keyrot_middleware.state import MemoryState

NOW = 1_000.0
PATIENCE_S = 20.0


class Slow(MemoryState):
    """Takes what it is given only when it may."""

    def __init__(self) -> None:
        super().__init__(RetryPolicy(), lambda: NOW)
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()

    def add_activity(self, rows: Any) -> None:
        self.is_asked.set()
        assert self.may_go_on.wait(PATIENCE_S)
        super().add_activity(rows)


def test_a_reader_sees_what_another_thread_has_taken() -> None:
    """A page that is asked in that moment would say that nothing was called."""
    state = Slow()
    activity, found = ActivityRecorder(state, lambda: NOW), list[Any]()
    activity.add(CallRecord(NOW, "m", 0.1, "ok", (Attempt("a", None, None, 0.1),)))
    threads = [
        threading.Thread(target=activity.send, daemon=True),
        threading.Thread(target=lambda: found.append(activity.read().pairs(NOW)), daemon=True),
    ]
    threads[0].start()
    assert state.is_asked.wait(PATIENCE_S)
    threads[1].start()
    threads[1].join(0.05)
    assert found == []
    state.may_go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == [{Pair(DEFAULT_PLATFORM, "m", ""): 1}]
