"""A pool: the parts that every call through it shares."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..core.commands import Acquire
from ..core.model import Lease
from ..core.policy import RetryPolicy
from ..core.roster import Roster
from ..core.tokens import TokenScale
from ..secrets.ring import Ring
from ..state.base import State
from ..telemetry.base import Observer
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

    time = staticmethod(time.time)
    sleep = staticmethod(time.sleep)
    asleep = staticmethod(asyncio.sleep)


@dataclass(slots=True)
class Pool:
    """Keys, what is known of them, and how calls use them."""

    name: str
    roster: Roster
    state: State
    ring: Ring
    policy: RetryPolicy
    observers: Sequence[Observer] = ()
    clock: Clock = field(default_factory=SystemClock)
    scale: TokenScale = field(default_factory=TokenScale)
    draw: Callable[[], float] = random.random

    def refresh(self, key_id: str) -> bool:
        """Look a retired key's secret up again; True where a new value is in service."""
        try:
            changed = self.ring.refresh(key_id)
            if changed:
                self.state.revive(key_id)
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
