"""The commands that a call's flow yields to its driver, and the replies.

Python cannot bind the type of a reply to its command, so each `yield` in flow.py annotates it:
`reply: Lease | Unavailable = yield Acquire(...)`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NamedTuple

from .model import NO_USAGE, CallInfo, Candidate, Lease, Outcome, Usage
from .waiting import Ticket

__all__ = [
    "Acquire",
    "Command",
    "Done",
    "Failed",
    "Flow",
    "GetOwner",
    "GetTime",
    "Refresh",
    "RefreshAll",
    "RelayStream",
    "ReportServing",
    "Send",
    "Settle",
    "Sleep",
    "StreamEnd",
    "StreamOpened",
]


class Failed(NamedTuple):
    """A failed Send or stream: the facts for failures.py, and the exception."""

    facts: Any
    """A `failures.FailureFacts`."""
    error: BaseException


class Done(NamedTuple):
    """A complete response."""

    response: Any
    usage: Usage = NO_USAGE
    names: tuple[str, ...] = ()
    """Stored resources that the response names; the key's project owns them."""
    failed: None = None
    """Always None; a StreamEnd has the same attribute."""


class StreamOpened(NamedTuple):
    """A stream whose first chunk has arrived."""

    stream: Any
    answered: bool = True
    """The server has answered with this key; False for a key that is only handed out."""


class StreamEnd(NamedTuple):
    """How a stream ended."""

    usage: Usage = NO_USAGE
    names: tuple[str, ...] = ()
    failed: Failed | None = None


class GetTime(NamedTuple):
    """Return the time, epoch seconds, and a random number in [0, 1)."""


class Acquire(NamedTuple):
    """Acquire a lease for one of *candidates*; lower groups first."""

    info: CallInfo
    candidates: tuple[tuple[int, Candidate], ...]
    spread: bool
    """Within a group choose the least utilized key; else the first that is available."""


class Send(NamedTuple):
    """Send the request with the lease's key, and for a stream read its first chunk."""

    lease: Lease
    attempt: int
    excluded_count: int


class ReportServing(NamedTuple):
    """Report that the probe *lease* succeeds, before its stream has ended."""

    lease: Lease


class RelayStream(NamedTuple):
    """Pass the stream's chunks to the caller until it ends."""

    lease: Lease
    stream: Any


class Settle(NamedTuple):
    """Settle a lease with its outcome; exactly once per lease."""

    lease: Lease
    outcome: Outcome
    names: tuple[str, ...] = ()
    error: BaseException | None = None
    """The exception behind a verdict."""
    at: float = 0.0
    """When it was settled, epoch seconds; set by the driver for observers."""


class Refresh(NamedTuple):
    """Look up the value of a rejected key again; return whether it has a new one."""

    key_id: str
    wait: bool
    """Wait for the store; else the lookup only starts, and later calls use its result."""


class RefreshAll(NamedTuple):
    """Look up the values of all keys again, since all of them are rejected.

    Return whether one of them has a new value. It may be False at once: the stores are queried at
    most every few seconds.
    """


class GetOwner(NamedTuple):
    """Return the owner of one of these stored resources: `(key_id, project)` or None."""

    names: tuple[str, ...]


class Sleep(NamedTuple):
    """Wait *seconds*, or until the ticket is woken.

    The reply is `(began, ended)` by a monotonic clock; without a wake-up at least *seconds* apart.
    """

    seconds: float
    reason: Literal["key", "retry"]
    """`key`: for a key to become available; `retry`: before a retry that penalizes no key."""
    ticket: Ticket | None = None
    is_front: bool = True
    """It waits for a time; else for the calls before it."""
    starts_wait: bool = True
    """It is the first Sleep of this wait."""


Command = (
    GetTime
    | Acquire
    | Send
    | ReportServing
    | RelayStream
    | Settle
    | GetOwner
    | Refresh
    | RefreshAll
    | Sleep
)
Flow = Generator[Command, Any, Any]
