"""A pool: the parts that every call through it shares."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from ..core.commands import Acquire, Settle
from ..core.model import Lease
from ..core.policy import RetryPolicy
from ..core.roster import Roster
from ..core.tokens import TokenScale
from ..secrets.ring import Ring
from ..state.base import State
from ..telemetry.base import Chronicle, Observer
from .guard import fault

__all__ = ["Clock", "Pool", "SystemClock", "unbooked"]


class Clock(Protocol):
    """Where time comes from; `keyrot_middleware.testing.FakeClock` is another."""

    def time(self) -> float:
        """Tell the time, epoch seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread."""

    async def asleep(self, seconds: float) -> None:
        """Wait, blocking the task only."""


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Tell the time, epoch seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait, blocking the task only."""
        await asyncio.sleep(seconds)


@dataclass(slots=True)
class Pool:
    """Keys, what is known of them, and how calls use them."""

    name: str
    roster: Roster
    state: State
    ring: Ring
    policy: RetryPolicy
    observers: Sequence[Observer] = ()
    chronicles: Sequence[Chronicle] = ()
    clock: Clock = field(default_factory=SystemClock)
    scale: TokenScale = field(default_factory=TokenScale)
    draw: Callable[[], float] = random.random
    last_resort: str | None = None
    """The id of the single key, where there is one."""
    _said: dict[str, tuple[int, str | None, Any]] = field(default_factory=dict, repr=False)

    @property
    def home_id(self) -> str:
        """Tell whose key serves as home key of a client without one of its own."""
        single = self.ring.same_as.get(self.last_resort or "", self.last_resort)
        return single if single in self.roster.keys else next(iter(self.roster.keys))

    def witness(self, settle: Settle) -> None:
        """Keep what Google said when it retired a key, for the time when all are retired."""
        verdict, error = settle.outcome.verdict, settle.error
        if verdict is None or verdict.until != inf or verdict.code is None:
            return
        self._said.pop(settle.lease.key_id, None)
        self._said[settle.lease.key_id] = (
            verdict.code,
            getattr(error, "status", None),
            getattr(error, "details", None),
        )

    def last_words(self, key_ids: Iterable[str]) -> tuple[int, str | None, Any] | None:
        """Give what Google said to the one of *key_ids* that was retired last."""
        said = [key_id for key_id in self._said if key_id in set(key_ids)]
        return self._said[said[-1]] if said else None

    def refresh(self, key_id: str) -> bool:
        """Look a retired key's secret up again; True where a new value is in service."""
        try:
            changed = self.ring.refresh(key_id)
            if changed:
                self.state.revive(key_id)
                self._said.pop(key_id, None)
                self.roster.forget()
        except Exception:
            fault("secrets")
            return False
        return changed


def unbooked(command: Acquire, now: float) -> Lease:
    """Lend the first key on offer without a booking: the state is down, the call goes on."""
    key, info = command.candidates[0][1], command.info
    return Lease(
        key_id=key.key_id,
        project=key.project,
        billing_account=key.billing_account,
        bucket=info.model,
        verb=info.verb,
        tokens=info.tokens,
        requests=info.requests,
        at=now,
        tier=key.tier,
    )
