"""A fallback state, the shared state behind it, whose connection can be cut, and keys for them."""

from __future__ import annotations

from typing import Any

from keyrot_middleware.core.model import Limits
from keyrot_middleware.state.memory import PAUSE_S
from keyrot_middleware.testing import FakeClock
from support.faulty_state import degrading
from support.pool import key
from support.sync_async import StateClient

__all__ = ["FIVE", "A", "B", "C", "FallbackSetup"]

A, B = key("a", project="p"), key("b", project="p")
C = key("c")
FIVE = key("f", Limits(rpm=5))


class FallbackSetup:
    """A client of the state that a program uses, and the shared state behind it."""

    def __init__(self, kind: type[StateClient], clock: FakeClock, **more: Any) -> None:
        self.kind, self.clock = kind, clock
        self.state, self.shared = degrading(clock.time, **more)
        self.client = kind(self.state)
        self.other = kind(self.shared.inner)
        """How another process sees the shared state; its connection is never cut."""

    def restore(self) -> None:
        """Restore the connection, and let the pause pass."""
        self.shared.restore()
        self.clock.advance(PAUSE_S)
