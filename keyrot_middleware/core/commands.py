"""What a call's flow asks its driver to do, and what it is answered.

Python cannot bind the type of a reply to its command, so each `yield` in flow.py says what it
expects: `reply: Lease | Unavailable = yield Acquire(...)`.
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
    """A Send or a stream that failed, as a value: the facts for failures.py, the exception."""

    facts: Any
    """A `failures.Facts`."""
    error: BaseException


class Done(NamedTuple):
    """A whole response."""

    response: Any
    usage: Usage = NO_USAGE
    names: tuple[str, ...] = ()
    """Stored things that the response names, now owned by the key's project."""
    failed: None = None
    """Never: the same question is asked of a StreamEnd."""


class StreamOpened(NamedTuple):
    """A stream whose first chunk is here."""

    stream: Any


class StreamEnd(NamedTuple):
    """What became of a relayed stream."""

    usage: Usage = NO_USAGE
    names: tuple[str, ...] = ()
    failed: Failed | None = None


class GetTime(NamedTuple):
    """Tell the time, epoch seconds, and a random number in [0, 1)."""


class Acquire(NamedTuple):
    """Reserve one of *candidates*, ordered; a lower group goes first."""

    info: CallInfo
    candidates: tuple[tuple[int, Candidate], ...]
    spread: bool
    """Within a group the least used share first; else the first that has room."""


class Send(NamedTuple):
    """Send the request with the lease's key, and for a stream read its first chunk."""

    lease: Lease
    attempt: int
    excluded_count: int


class ReportServing(NamedTuple):
    """Report that the probe *lease* does well, before its stream has come to its end."""

    lease: Lease


class RelayStream(NamedTuple):
    """Hand the stream's chunks to the caller until it ends."""

    lease: Lease
    stream: Any


class Settle(NamedTuple):
    """Book what became of a lease; exactly one for each lease."""

    lease: Lease
    outcome: Outcome
    names: tuple[str, ...] = ()
    error: BaseException | None = None
    """The SDK's exception behind a verdict."""
    at: float = 0.0
    """When it was booked, epoch seconds; added by the driver for those who listen."""


class Refresh(NamedTuple):
    """Have a refused key's secret looked up again; True where a new value is in service."""

    key_id: str
    wait: bool
    """Wait for the store; else it is only asked, and what it answers later serves later calls."""


class RefreshAll(NamedTuple):
    """Have the values of all keys looked up again, since each of them is rejected.

    True where one of them has another value now. It may be False at once: the stores are not asked
    more often than every few seconds.
    """


class GetOwner(NamedTuple):
    """Tell whose key made one of these stored things: `(key_id, project)` or None."""

    names: tuple[str, ...]


class Sleep(NamedTuple):
    """Wait *seconds*, or until the ticket is rung; tell when it began and ended.

    The reply is `(began, ended)` by a monotonic clock; what was not rung took *seconds* at least.
    """

    seconds: float
    reason: Literal["key", "retry"]
    """For a key to come free, or before a retry that blames nobody."""
    ticket: Ticket | None = None
    is_front: bool = True
    """It waits for a time; else for calls that came before it."""
    starts_wait: bool = True
    """It is the first of this wait."""


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
