"""First come, first served: the calls of this process that wait for a key.

Calls of workloads that are `first` go before all others, which they do not see.

A call that must wait takes a ticket in the line of its model. If the key that it got then fails, it
comes back to its place: it has waited already, and has less time left. The front of a line sleeps
until a key is expected; when it leaves, it wakes the next one. Those behind it look for themselves
where it is `LATE_S` late. A call that comes looks at once, unless the front is about to: a key that
the front cannot use may serve it.

Without locks: tickets are the keys of one dictionary, and have the numbers in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from operator import attrgetter

from .model import IN_USE, WINDOWS, Block, CallInfo

LATE_S = 2.0
"""How long a call waits for those before it that do not act: their loop may be blocked."""


class Ticket:
    """The place of a waiting call in its line."""

    __slots__ = ("blocks", "due", "first", "line", "number", "renewed", "wake", "woken")

    def __init__(self, info: CallInfo) -> None:
        self.number = -1
        self.line = info.quota_model or info.verb
        self.first = is_first(info)
        self.blocks: Mapping[str, Block] = {}
        """Why the keys that it waits for cannot serve."""
        self.due = 0.0
        """When the first of them is expected to be available, epoch seconds."""
        self.renewed: set[str] = set()
        """Keys that were reset or replaced while the call waited."""
        self.woken = False
        """It was woken since the call last looked for a key."""
        self.wake: Callable[[], object] | None = None
        """Wakes the waiting thread or task; returns False if it will never run again."""

    @property
    def place(self) -> tuple[bool, int]:
        """What orders a line: those that are `first`, then the others, as they came."""
        return not self.first, self.number

    def notify(self) -> bool:
        """Wake the call; return False if it will never run again."""
        self.woken = True
        wake = self.wake
        return wake is None or wake() is not False

    def waits_for(self, key_id: str, *, gave_back: bool) -> bool:
        """Return whether the end of a request with this key may help the call."""
        if not self.blocks:  # it has not looked yet
            return True
        block = self.blocks.get(key_id)
        return block is not None and (
            block.reason in IN_USE or (gave_back and block.reason in WINDOWS)
        )


def is_first(info: CallInfo) -> bool:
    """Return whether a call goes before those of other workloads."""
    return info.terms is not None and info.terms.first


class WaitingLines:
    """The waiting calls of a pool, one line per model. Shared by threads and tasks."""

    def __init__(self) -> None:
        self.tickets: dict[Ticket, None] = {}
        """Of all lines."""
        self._numbers = count()
        self.version = 0
        """Changes when a key may have become available."""

    def turn_in(self, info: CallInfo, ticket: Ticket | None, now: float) -> float:
        """Return in how many seconds a call may look for a key; 0: now.

        Args:
            info: The call.
            ticket: The call's own; None if it has just come.
            now: Epoch seconds.
        """
        line = self._line(info.quota_model or info.verb) if self.tickets else ()
        if is_first(info):
            line = [one for one in line if one.first]
        front = line[0] if line else ticket
        if front is None or front is ticket:
            return 0.0
        if ticket is None:
            return LATE_S if front.woken or front.due <= now else 0.0
        if ticket.woken or ticket.place < front.place:  # the latter has come back
            return 0.0
        if not ticket.blocks:  # it has not looked yet, and the front could
            return LATE_S if front.woken else 0.0
        return max(front.due + LATE_S - now, 0.0)

    def join(self, ticket: Ticket, blocks: Mapping[str, Block], due: float, version: int) -> bool:
        """Join the line or keep the place in it; return whether it is the front.

        Args:
            ticket: Of the call.
            blocks: Why the keys that it waits for cannot serve.
            due: When the first of them is expected to be available, epoch seconds.
            version: As it was before the call looked; if it has changed, the ticket is woken.
        """
        ticket.blocks, ticket.due = blocks, due
        if ticket.number < 0:
            ticket.number = next(self._numbers)
        self.tickets[ticket] = None
        ticket.woken = version != self.version
        return self._line(ticket.line)[0] is ticket

    def leave(self, ticket: Ticket) -> None:
        """Leave the line and wake the next call; a second call does nothing."""
        if ticket in self.tickets:
            del self.tickets[ticket]
            ticket.blocks = {}  # if it comes back, it has not looked
            self.version += 1
            line = self._line(ticket.line)
            if line:  # the next one could not look before: it is not late
                line[0].due = max(line[0].due, ticket.due)
            self._wake_first(line)

    def drop(self, ticket: Ticket | None) -> None:
        """Leave the line and wake nobody: the garbage collector may be closing the call."""
        if ticket is not None:
            self.tickets.pop(ticket, None)

    def released(self, key_id: str, *, gave_back: bool) -> None:
        """Wake the first call that waits for this key.

        Args:
            key_id: The key of a request that ended.
            gave_back: Part of its reservation was released.
        """
        self.version += 1
        waiting = (t for t in self._ordered() if t.waits_for(key_id, gave_back=gave_back))
        self._wake_first(waiting)

    def wake_all(self, renewed: Iterable[str]) -> None:
        """Let all calls look again: keys were reset, added or replaced.

        Args:
            renewed: Those that may be used by calls that they have failed.
        """
        self.version += 1
        keys = set(renewed)
        for ticket in list(self.tickets):
            ticket.renewed |= keys
            ticket.notify()

    def _line(self, name: str) -> list[Ticket]:
        return [ticket for ticket in self._ordered() if ticket.line == name]

    def _ordered(self) -> list[Ticket]:
        return sorted(list(self.tickets), key=attrgetter("place"))

    def _wake_first(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket.notify():
                return
            self.tickets.pop(ticket, None)
