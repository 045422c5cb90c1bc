"""What a call requests of its driver, what it gets back, and what observers get of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from .failures import FailureFacts
from .model import (
    NO_USAGE,
    CallInfo,
    Candidate,
    Lease,
    Outcome,
    Reported,
    Strategy,
    Unavailable,
    Usage,
)
from .selection import RankedCandidates
from .waiting import Ticket


class Failed(NamedTuple):
    """A failed Send or stream: its facts, and the exception."""

    facts: FailureFacts
    error: BaseException


class Done(NamedTuple):
    """A complete response."""

    response: Any
    usage: Usage = NO_USAGE
    names: tuple[str, ...] = ()
    """Stored resources that the response names; the key's project owns them."""
    reported: Sequence[Reported] = ()
    """The limits that its headers name."""


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
    reported: Sequence[Reported] = ()


SendResult = Done | StreamOpened | Failed
"""What a send returns."""


class Acquire(NamedTuple):
    """Acquire a lease for one of *candidates*; lower groups first."""

    info: CallInfo
    candidates: RankedCandidates
    strategy: Strategy
    """`spread`: the least utilized key of a group; else the first that is available."""


class Send(NamedTuple):
    """Send the request with the lease's key, and for a stream read its first chunk."""

    lease: Lease
    attempt: int


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
    """Look up the value of a rejected key again; the reply is whether it has a new one."""

    key_id: str
    wait: bool
    """Wait for the store; else the lookup only starts, and later calls use its result."""


class Sleep(NamedTuple):
    """Wait *seconds*, or until the ticket is woken."""

    seconds: float
    reason: Literal["key", "retry"]
    """`key`: for a key to become available; `retry`: before a retry that penalizes no key."""
    ticket: Ticket | None = None
    is_front: bool = True
    """It waits for a time; else for the calls before it."""
    starts_wait: bool = True
    """It is the first Sleep of this wait."""


Command = Acquire | Send | Settle | Refresh | Sleep
"""What observers see."""


class Driver(Protocol):
    """Performs what a call needs, in a thread or in a task; decides nothing."""

    def time(self) -> float:
        """Return the time, epoch seconds."""

    def random(self) -> float:
        """Return a random number in [0, 1)."""

    async def acquire(self, command: Acquire) -> Lease | Unavailable:
        """Acquire a lease."""

    async def send(self, command: Send) -> SendResult:
        """Send the request. Failures are returned; what is raised is not the request's."""

    async def is_available(self, info: CallInfo, keys: Sequence[Candidate]) -> bool:
        """Return whether one of *keys* could serve a call now."""

    async def settle(self, command: Settle) -> float | None:
        """Settle a lease; return until when a cooldown lasts, epoch seconds."""

    async def set_aside(self, command: Settle) -> None:
        """Apply the verdict about a key whose lease is settled already."""

    async def report_serving(self, lease: Lease) -> None:
        """Report that the probe *lease* succeeds, before its stream has ended."""

    async def get_owner(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Return the owner of one of these stored resources, `(key_id, project)`, or None."""

    async def refresh(self, command: Refresh) -> bool:
        """Look up the value of a rejected key again; return whether it has a new one."""

    async def refresh_all(self) -> bool:
        """Look up the values of all keys, since all are rejected; return whether one is new.

        It may be False at once: the stores are queried at most every few seconds.
        """

    async def sleep(self, command: Sleep) -> float:
        """Wait; return the seconds that it took by a monotonic clock.

        Without a wake-up these are at least those of the command.
        """
