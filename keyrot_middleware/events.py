"""What happens to a pool that an operator wants to know: values for `install(on_event=…)`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

EventName = Literal[
    "pool_exhausted",
    "key_rejected",
    "key_available_again",
    "quota_80_percent",
    "state_degraded",
    "state_recovered",
    "budget_reached",
    "workload_degraded",
]
EVENTS: tuple[EventName, ...] = get_args(EventName)


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """One event of a pool. No value of a key, prompt or answer is in it."""

    event: EventName
    """What happened, such as `key_rejected`."""
    pool: str
    """The name of the pool."""
    key_id: str | None
    """The key; None if the event affects the whole pool."""
    at: datetime
    """When it was found, an aware datetime in UTC."""
    reason: str | None
    """Why: a failure class such as `key_invalid`, or a window: `rpm`, `tpm`, `rpd`, `usd`."""
    sentence: str
    """The event in one sentence, for people."""
    available_at: datetime | None = None
    """When the key, or the first key of the pool, is tried again, in UTC; None: not known."""
