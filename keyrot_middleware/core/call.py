"""One call on its way: what was asked, and what was tried so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from .attempt import Attempt
from .commands import Failed
from .model import CallInfo, Candidate, Unavailable
from .overload import Overload
from .policy import RetryPolicy
from .roster import Roster
from .tokens import TokenScale
from .waiting import Ticket, WaitingLines

__all__ = ["Call", "Exhausted"]


class Exhausted(Exception):  # noqa: N818 - never reaches a caller; becomes KeyPoolExhausted
    """Nothing could be sent: no key is free, and none will be soon enough."""

    def __init__(self, unavailable: Unavailable) -> None:
        super().__init__("no key can serve")
        self.unavailable = unavailable


@dataclass(slots=True)
class Call:
    """One call on its way: what was asked, and what was tried so far."""

    info: CallInfo
    roster: Roster
    policy: RetryPolicy
    scale: TokenScale
    home: Candidate | None = None
    """The client's own key, for calls that touch stored things."""
    moment: tuple[float, float] | None = None
    """The time when it was asked for, epoch seconds, and a random number in [0, 1)."""
    overload: Overload = field(default_factory=Overload)
    lines: WaitingLines = field(default_factory=WaitingLines)
    """Of the pool: who waits for a key."""
    max_wait_s: float = inf
    """The call's own bound, beside the policy's."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Of the pool: what may be behind the rejection of a key, for the notes."""
    excluded: dict[str, float] = field(default_factory=dict)
    """Keys that failed this call, and until when (`inf`: for the rest of it)."""
    attempts: list[Attempt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Rejected keys whose store was asked for another value."""
    refreshed: set[str] = field(default_factory=set)
    """Keys whose value was replaced during this call; once each."""
    outgrown: set[str | None] = field(default_factory=set)
    """Tiers of which a key's whole limit was smaller than the request."""
    failed_at: float = 0.0
    """When the last send failed, epoch seconds."""
    looked_up: bool = False
    """The values of all keys were looked up, since each of them is rejected."""
    retries: int = 0
    waited_s: float = 0.0
    """Real seconds from the beginning of each wait to its end."""
    waited_until: float = 0.0
    """When the last sleep of a wait ended, by the driver's monotonic clock."""
    ticket: Ticket | None = None
    """Its place in line, once it had to wait."""
    seen: int = 0
    """The version of the lines when the call last began to look for a key."""
    sends: int = 0
    last: Failed | None = None

    @property
    def budget_s(self) -> float:
        """Tell how long the call may wait for keys, in all."""
        return min(self.policy.max_wait_s, self.max_wait_s)

    def leave_line(self) -> None:
        """Wait no more: a key was found, or the call is over."""
        if self.ticket is not None:
            self.lines.leave(self.ticket)

    def drop_ticket(self) -> None:
        """Wait no more, without a lock: the garbage collector may be what closes the flow."""
        if self.ticket is not None:
            self.ticket.gone = True
