"""The state of a key for users: one of six words, and when it is available again."""

from __future__ import annotations

from math import isfinite
from typing import Literal, NamedTuple, get_args

from .failures import KEY_REJECTIONS
from .model import IN_USE, LIMITED, Block

KeyState = Literal["available", "limited", "cooling_down", "rejected", "unresolved", "disabled"]
KEY_STATES: tuple[KeyState, ...] = get_args(KeyState)
"""The state of a key, in the words of status(), the CLI, metrics and the docs."""

DISABLED_BY_HAND = "disabled"
"""The reason of a cooldown that an operator began, to keep a key from being used."""


class Availability(NamedTuple):
    """Whether a key can be leased now."""

    state: KeyState
    at: float | None = None
    """When it is available again, epoch seconds; None: it is, or the time is unknown."""
    reason: str | None = None
    """That of the `Block`."""
    note: str = ""
    """Likewise."""
    ends_by: str | None = None
    """What ends it; see judgement.py."""


AVAILABLE = Availability("available")


def availability(block: Block | None) -> Availability:
    """Return what a block means; None stands for none."""
    if block is None:
        return AVAILABLE
    known = isfinite(block.until) and block.reason not in IN_USE
    state: KeyState = "cooling_down"
    if block.reason in LIMITED:
        state = "limited"
    elif block.reason == DISABLED_BY_HAND:
        state = "disabled"
    elif block.reason in KEY_REJECTIONS:
        state = "rejected"
    return Availability(state, block.until if known else None, block.reason, block.note)
