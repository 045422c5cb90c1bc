"""First come, first served: the calls of a process that wait for a key, in lines.

A call that must wait takes a ticket, in the line of its model. The ticket *claims* the keys that
the call waits for. A key is offered to no call while an earlier ticket claims it, so a call that
comes later waits behind it, unless it asks for less than the earlier one and fits where that one
does not. The front of a line waits for a time; the others wait until they are woken: when a call
leaves the line, the next one is, and when a response gives something back, the earliest that
waits for that key is.

A ticket whose call does not act in time (its event loop is closed, or blocked) claims nothing
until it does, so that it holds nobody up for long.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from heapq import nsmallest
from itertools import count
from math import inf

from .model import Block, CallInfo

__all__ = ["STALL_S", "Claims", "Ticket", "WaitingLines", "wanted"]

STALL_S = 2.0
"""A ticket whose time has come may take so long to act on it."""
LOOK_S = 1.0
"""While others join its line, the front looks again so often."""
MAX_CLAIMS = 256
"""Keys that a ticket claims, those that come free first; more would only take memory."""
_FREED_EARLY = frozenset({"probe", "concurrency"})
"""Reasons that end with another call, whatever that used."""


def wanted(reason: str, info: CallInfo) -> float | None:
    """Tell how much of a full window the request wants; None where it is about no window."""
    if reason == "tpm":
        return info.tokens
    return info.requests if reason in ("rpm", "rpd") else None


class Ticket:
    """The place of a waiting call in its line."""

    __slots__ = (
        "blocks",
        "due",
        "gone",
        "info",
        "looked_at",
        "number",
        "queued",
        "stalled",
        "wake",
        "woken",
    )  # fmt: skip

    def __init__(self, number: int, info: CallInfo) -> None:
        self.number = number
        self.info = info
        self.blocks: Mapping[str, Block] = {}
        """Why the keys that it waits for cannot serve."""
        self.due = 0.0
        """When it expects the first of them, epoch seconds."""
        self.looked_at = 0.0
        """When it last found no key, epoch seconds."""
        self.queued = self.gone = False
        """In line; and over without having left it, which the line finds out by itself."""
        self.woken = False
        """It was woken since it last looked."""
        self.stalled = False
        self.wake: Callable[[], object] | None = None
        """Wakes the waiting thread or task; gives False where it will never run again."""

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number

    def notify(self) -> bool:
        """Wake the call; False where nobody wakes."""
        self.woken = True
        wake = self.wake
        return not self.gone and (wake is None or wake() is not False)

    def claims(self, key_id: str, info: CallInfo, when: float) -> bool:
        """Tell whether the key, if it comes free at *when*, is this call's before *info*'s."""
        block = self.blocks.get(key_id)
        if block is None or self.stalled:
            return False
        return self.due <= when or not _asks_less(info, self.info, block.reason)


def _asks_less(info: CallInfo, other: CallInfo, reason: str) -> bool:
    return (wanted(reason, info) or 0) < (wanted(reason, other) or 0)


def _is_smaller(one: Ticket, other: Ticket) -> bool:
    """Tell whether *one* may fit where *other* does not."""
    reasons = {block.reason for block in other.blocks.values()}
    return any(_asks_less(one.info, other.info, reason) for reason in reasons)


class Claims:
    """The keys that a call may not be offered now: failed ones, and those claimed before it."""

    __slots__ = ("_ahead", "_excluded", "_info", "_now", "found")

    def __init__(
        self, ahead: list[Ticket], info: CallInfo, excluded: Mapping[str, object], now: float
    ) -> None:
        self._ahead = ahead
        self._info = info
        self._excluded = excluded
        self._now = now
        self.found: dict[str, Block] = {}
        """Of the keys that were looked for, those that are claimed, and until when."""

    def __contains__(self, key_id: object) -> bool:
        if key_id in self._excluded:
            return True
        assert isinstance(key_id, str)  # noqa: S101 - narrows the type that Container has
        first = self.first(key_id, self._now)
        if first is not None:
            self.found[key_id] = first.blocks[key_id]._replace(until=first.due)
        return first is not None

    def split(self, blocks: Mapping[str, Block]) -> tuple[float, float]:
        """Find the soonest time of those of *blocks* that are the call's own, and of the others.

        Returns:
            When the first key that nobody else claims by then comes free; when the first claimed
            key is expected by whoever claims it. `inf` for none.
        """
        own = claimed = inf
        for key_id, block in blocks.items():
            first = self.first(key_id, block.until)
            if first is None:
                own = min(own, block.until)
            else:
                claimed = min(claimed, first.due)
        return own, claimed

    def pass_stalled(self, now: float) -> None:
        """Wait no more for who was to go long ago, and did not move."""
        for ticket in self._ahead:
            if ticket.due + STALL_S <= now:
                ticket.stalled = True

    def first(self, key_id: str, when: float) -> Ticket | None:
        """Find the earliest ticket that claims a key which comes free at *when*."""
        return next((t for t in self._ahead if t.claims(key_id, self._info, when)), None)


class WaitingLines:
    """The waiting calls of a pool, a line for each model. Shared by threads and tasks."""

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        """Begin with no line.

        Args:
            lock: Lets one caller in at a time, again and again.
        """
        self._lock: AbstractContextManager[object] = lock or nullcontext()
        self._numbers = count()
        self.lines: dict[str, list[Ticket]] = {}
        """Empty while nobody waits."""
        self.version = 0
        """Changes when something was given back, or a call has left its line."""

    def ahead(
        self, info: CallInfo, ticket: Ticket | None, excluded: Mapping[str, object], now: float
    ) -> Claims:
        """Find what is claimed by those who came before the call of *ticket*, or wait at all."""
        with self._lock:
            line = self._line(info)
            before = [t for t in line if ticket is None or t.number < ticket.number]
        return Claims(before, info, excluded, now)

    def join(
        self,
        ticket: Ticket | None,
        info: CallInfo,
        blocks: Mapping[str, Block],
        due: float,
        *,
        version: int,
        now: float,
    ) -> Ticket:
        """Take a place in line, or keep it; the number stays the same through a whole call.

        Args:
            ticket: The call's own, if it has waited before.
            info: The call.
            blocks: Why the keys that it waits for cannot serve.
            due: When it expects the first of them, epoch seconds.
            version: As it was before the call looked; if it has changed, the ticket is rung.
            now: When it looked, epoch seconds.
        """
        if len(blocks) > MAX_CLAIMS:
            blocks = dict(nsmallest(MAX_CLAIMS, blocks.items(), key=lambda item: item[1].until))
        with self._lock:
            ticket = ticket or Ticket(next(self._numbers), info)
            ticket.blocks, ticket.due, ticket.stalled = blocks, due, False
            ticket.looked_at = now
            line = self.lines.setdefault(_line_of(info), [])
            if not ticket.queued:
                ticket.queued = True
                ticket.woken = version != self.version
                insort(line, ticket)
                front = line[0]
                if now - front.looked_at < LOOK_S:
                    return ticket
                front.looked_at = now
                woken = [front]
            else:
                woken = [t for t in line if t.number > ticket.number and _is_smaller(t, ticket)]
        # The front may have missed that a key is back: a reset, or what another process gave back.
        # Who could not go lets one that asks for less try, which then does the same.
        _wake_first(woken)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place in line up, and wake who comes next; a second time does nothing."""
        with self._lock:
            if not ticket.queued:
                return
            ticket.queued = False
            self.version += 1
            behind = [t for t in self._line(ticket.info) if t.number > ticket.number]
        _wake_first(behind)

    def released(self, key_id: str, *, gave_back: bool) -> None:
        """Wake the earliest call of each line that waits for a key which may have room now.

        Args:
            key_id: A request with it has ended.
            gave_back: Some of what it had reserved is free again.
        """
        with self._lock:
            self.version += 1
            found = [_waits_for(line, key_id, gave_back) for line in self.lines.values()]
        for waiting in found:
            _wake_first(waiting)

    def _line(self, info: CallInfo) -> list[Ticket]:
        """Give a line without those who have left it, or are gone."""
        name = _line_of(info)
        line = [ticket for ticket in self.lines.get(name, ()) if ticket.queued and not ticket.gone]
        if line:
            self.lines[name] = line
        else:
            self.lines.pop(name, None)
        return line

    def reset(self, lock: AbstractContextManager[object]) -> None:
        """Begin anew, in a forked child: whoever waits, waits in its parent."""
        self._lock = lock
        self.lines = {}


def _waits_for(line: Iterable[Ticket], key_id: str, gave_back: bool) -> list[Ticket]:
    blocks = ((ticket, ticket.blocks.get(key_id)) for ticket in line)
    return [t for t, block in blocks if block and (gave_back or block.reason in _FREED_EARLY)]


def _wake_first(tickets: Iterable[Ticket]) -> None:
    """Ring the first of *tickets* that somebody still waits with."""
    for ticket in tickets:
        if ticket.notify():
            return
        ticket.stalled = True


def _line_of(info: CallInfo) -> str:
    return info.quota_model or info.verb
