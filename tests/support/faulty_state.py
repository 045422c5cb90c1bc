"""A shared state that fails on command: a memory state behind a connection that can be cut."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest

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
from keyrot_middleware.state import FallbackState, MemoryState
from keyrot_middleware.state.base import Holder, KeyHealth, SharedState
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows

__all__ = ["ConnectionLostError", "Faulty", "degrading", "warnings_of"]

ALL = frozenset(
    {
        "acquire",
        "settle",
        "get_owner",
        "reset",
        "configure",
        "get_blocks",
        "snapshot",
        "record_spending",
        "record_usage",
        "check",
    }
)


class ConnectionLostError(Exception):
    """The connection is cut."""


class Faulty(SharedState):
    """A state whose methods fail or hang on command."""

    is_local: ClassVar[bool] = False

    def __init__(self, inner: MemoryState) -> None:
        self.inner = inner
        self.failing: frozenset[str] = frozenset()
        """Methods that fail."""
        self.hangs_s = 0.0
        """How long a failing method takes to fail."""
        self.applies = False
        """A failing method has done its work: only its answer is lost."""
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def cut(self, *methods: str, hangs_s: float = 0.0) -> None:
        """Let these methods fail; all of them if none is named."""
        self.failing, self.hangs_s = frozenset(methods) or ALL, hangs_s

    def restore(self) -> None:
        """Restore the connection."""
        self.failing = frozenset()

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Reserve, or fail."""
        return self._do("acquire", info, candidates, spread=spread, holder=holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle, or fail."""
        return self._do("settle", lease, outcome, names)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner, or fail."""
        return self._do("get_owner", names)

    def reset(self, key: Candidate) -> None:
        """Reset, or fail."""
        self._do("reset", key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Configure, or fail."""
        self._do("configure", candidates)

    def record_usage(self, *args: Any, **more: Any) -> None:
        """Record, or fail."""
        self._do("record_usage", *args, **more)

    def record_spending(self, project: str, amount: int) -> None:
        """Record, or fail."""
        self._do("record_spending", project, amount)

    def check(self) -> None:
        """Answer, or fail."""
        self._do("check")

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return the blocks, or fail."""
        return self._do("get_blocks", info, candidates)

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return the snapshot, or fail."""
        return self._do("snapshot", candidates)

    def claim(self, name: str, seconds: float) -> float:
        """Claim a name, or fail."""
        return self._do("claim", name, seconds)

    async def aacquire(self, *args: Any, **more: Any) -> Any:
        """Reserve, or fail."""
        return await self._ado("acquire", *args, **more)

    async def asettle(self, *args: Any) -> Any:
        """Settle, or fail."""
        return await self._ado("settle", *args)

    async def aget_owner(self, *args: Any) -> Any:
        """Return the owner, or fail."""
        return await self._ado("get_owner", *args)

    def _do(self, method: str, *args: Any, **more: Any) -> Any:
        if self._fails(method, args, more):
            time.sleep(self.hangs_s)
            raise ConnectionLostError
        return getattr(self.inner, method)(*args, **more)

    async def _ado(self, method: str, *args: Any, **more: Any) -> Any:
        if self._fails(method, args, more):
            await asyncio.sleep(self.hangs_s)
            raise ConnectionLostError
        return getattr(self.inner, method)(*args, **more)

    def _fails(self, method: str, args: Any, more: Any) -> bool:
        with self._lock:
            self.calls.append(method)
        if method not in self.failing:
            return False
        if self.applies:
            getattr(self.inner, method)(*args, **more)
        return True


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
    shared = Faulty(inner or MemoryState(policy, clock))
    breaker = CircuitBreaker(breaker_clock or clock)
    state = FallbackState(shared, LocalWindows(policy, clock, share), breaker, "test")
    return state, shared


_CLOSED = "the outcomes of the last calls may not have been recorded"


def warnings_of(caplog: pytest.LogCaptureFixture, about: str = "") -> list[str]:
    """List the warnings that name *about*; those of other tests' states may come late.

    That of a state which was closed while its server was gone always does: it is left out.
    """
    texts = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    return [text for text in texts if about in text and _CLOSED not in text]
