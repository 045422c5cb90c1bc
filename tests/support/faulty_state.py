"""A shared state that fails on command: a memory state behind a connection that can be cut."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import pytest

from keyrot_middleware.core.ledger import KeyHealth
from keyrot_middleware.core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from keyrot_middleware.core.selection import RankedCandidates
from keyrot_middleware.state import FallbackState, MemoryState, State
from keyrot_middleware.state.memory import Breaker

__all__ = ["ConnectionLostError", "Faulty", "degrading", "warnings_of"]


class ConnectionLostError(Exception):
    """The connection is cut."""


class Faulty(State):
    """A state whose methods fail or hang on command."""

    is_local: ClassVar[bool] = False

    def __init__(self, inner: MemoryState, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self.inner = inner
        self.failing: frozenset[str] | None = frozenset()
        """Methods that fail; None: all."""
        self.hangs_s = 0.0
        """How long a failing method takes to fail."""
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def cut(self, *methods: str, hangs_s: float = 0.0) -> None:
        """Let these methods fail; all of them if none is named."""
        self.failing, self.hangs_s = frozenset(methods) or None, hangs_s

    def restore(self) -> None:
        """Restore the connection."""
        self.failing = frozenset()

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, spread: bool
    ) -> Lease | Unavailable:
        return self._do("acquire", info, candidates, spread=spread)

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        return self._do("settle", lease, outcome, names)

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        return self._do("get_blocks", info, keys)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner, or fail."""
        return self._do("get_owner", names)

    def reset(self, key: Candidate) -> None:
        """Reset, or fail."""
        self._do("reset", key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Configure, or fail."""
        self._do("configure", candidates)

    def check(self) -> None:
        """Answer, or fail."""
        self._do("check")

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return the snapshot, or fail."""
        return self._do("snapshot", candidates)

    def add_activity(self, rows: Any) -> None:
        """Add."""
        self.inner.add_activity(rows)

    def activity(self, names: Any, fields: Any) -> Any:
        """Read."""
        return self.inner.activity(names, fields)

    def activity_log(self, name: str) -> list[str]:
        """Read."""
        return self.inner.activity_log(name)

    def _do(self, method: str, *args: Any, **more: Any) -> Any:
        with self._lock:
            self.calls.append(method)
        if self.failing is None or method in self.failing:
            time.sleep(self.hangs_s)
            raise ConnectionLostError
        return getattr(self.inner, method)(*args, **more)


def degrading(
    clock: Callable[[], float],
    policy: RetryPolicy | None = None,
    *,
    share: float = 1.0,
    breaker_clock: Callable[[], float] | None = None,
    inner: MemoryState | None = None,
) -> tuple[FallbackState, Faulty]:
    """Make a state over one that can be cut off; both keep the time of *clock*."""
    policy = policy or RetryPolicy()
    shared = Faulty(inner or MemoryState(policy, clock), clock)
    local, breaker = MemoryState(policy, clock, share), Breaker(breaker_clock or clock)
    return FallbackState(shared, local, "test", clock, breaker), shared


def warnings_of(caplog: pytest.LogCaptureFixture, about: str = "") -> list[str]:
    """List the warnings that name *about*; those of other tests' states may come late."""
    texts = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    return [text for text in texts if about in text]
