"""First come, first served: the lines of calls in this process that wait for a key.

A call that must wait takes a ticket in the line of its model. The ticket *claims* the keys that
the call waits for: no later call gets such a key, unless it needs less than the earlier call and
fits where that one does not. The front of a line waits for a time, the others until they are
woken. When a call leaves the line, the next one is woken; when a response releases capacity, the
earliest call that waits for that key is woken.

A ticket whose call does not act in time (its event loop is closed or blocked) claims nothing until
it acts, so that it does not block the others.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from heapq import nsmallest
from itertools import count
from math import inf

from .model import IN_USE, Block, CallInfo

__all__ = ["STALL_S", "Claims", "Ticket", "WaitingLines", "needed_amount"]

STALL_S = 2.0
"""How long a due ticket may take to act before it is skipped."""
LOOK_S = 1.0
"""How often the front looks again while others join its line."""
MAX_CLAIMS = 256
"""How many keys a ticket claims at most: those that become available first."""


def needed_amount(reason: str, info: CallInfo) -> float | None:
    """Return how much of the full window the request needs; None if *reason* is no window."""
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
        """When the first of them is expected to be available, epoch seconds."""
        self.looked_at = 0.0
        """When the call last found no key, epoch seconds."""
        self.queued = self.gone = False
        """`queued`: in line. `gone`: the call ended without leaving it; the line drops it."""
        self.woken = False
        """It was woken since the call last looked for a key."""
        self.stalled = False
        self.wake: Callable[[], object] | None = None
        """Wakes the waiting thread or task; returns False if it will never run again."""

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number

    def notify(self) -> bool:
        """Wake the call; return False if it is gone."""
        self.woken = True
        wake = self.wake
        return not self.gone and (wake is None or wake() is not False)

    def claims(self, key_id: str, info: CallInfo, when: float) -> bool:
        """Return whether this call has precedence over *info* for a key available at *when*."""
        block = self.blocks.get(key_id)
        if block is None or self.stalled:
            return False
        return self.due <= when or not _needs_less(info, self.info, block.reason)


def _needs_less(info: CallInfo, other: CallInfo, reason: str) -> bool:
    return (needed_amount(reason, info) or 0) < (needed_amount(reason, other) or 0)


def _may_fit_before(one: Ticket, other: Ticket) -> bool:
    """Return whether *one* may fit where *other* does not."""
    reasons = {block.reason for block in other.blocks.values()}
    return any(_needs_less(one.info, other.info, reason) for reason in reasons)


class Claims:
    """The keys that a call must skip now: those that failed it or that earlier calls claim."""

    __slots__ = ("_ahead", "_excluded", "_info", "_now", "claimed")

    def __init__(
        self, ahead: list[Ticket], info: CallInfo, excluded: Mapping[str, object], now: float
    ) -> None:
        self._ahead = ahead
        self._info = info
        self._excluded = excluded
        self._now = now
        self.claimed: dict[str, Block] = {}
        """The keys that were looked up and found claimed, and until when."""

    def __contains__(self, key_id: object) -> bool:
        if key_id in self._excluded:
            return True
        assert isinstance(key_id, str)  # noqa: S101 - narrows the type that Container has
        earliest_claim = self.earliest_claim(key_id, self._now)
        if earliest_claim is not None:
            self.claimed[key_id] = earliest_claim.blocks[key_id]._replace(until=earliest_claim.due)
        return earliest_claim is not None

    def split(self, blocks: Mapping[str, Block]) -> tuple[float, float]:
        """Return the soonest times of the unclaimed and of the claimed keys of *blocks*.

        Returns:
            When the first unclaimed key becomes available, and when the first claimed key is due
            for the call that claims it; `inf` for none.
        """
        own = claimed = inf
        for key_id, block in blocks.items():
            earliest_claim = self.earliest_claim(key_id, block.until)
            if earliest_claim is None:
                own = min(own, block.until)
            else:
                claimed = min(claimed, earliest_claim.due)
        return own, claimed

    def skip_stalled(self, now: float) -> None:
        """Skip tickets that were due `STALL_S` ago and did not act."""
        for ticket in self._ahead:
            if ticket.due + STALL_S <= now:
                ticket.stalled = True

    def earliest_claim(self, key_id: str, when: float) -> Ticket | None:
        """Return the earliest ticket that claims the key if it is available at *when*."""
        return next((t for t in self._ahead if t.claims(key_id, self._info, when)), None)


class WaitingLines:
    """The waiting calls of a pool, one line per model. Shared by threads and tasks."""

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        """Start without lines.

        Args:
            lock: Reusable; held by one caller at a time.
        """
        self._lock: AbstractContextManager[object] = lock or nullcontext()
        self._numbers = count()
        self.lines: dict[str, list[Ticket]] = {}
        """Empty while no call waits."""
        self.version = 0
        """Changes when capacity was released or a call left its line."""

    def ahead(
        self, info: CallInfo, ticket: Ticket | None, excluded: Mapping[str, object], now: float
    ) -> Claims:
        """Return what the calls before *ticket* claim; all waiting calls if it is None."""
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
        """Join the line or keep the position; a ticket is valid for the whole call.

        Args:
            ticket: The call's own, if it has waited before.
            info: The call.
            blocks: Why the keys that it waits for cannot serve.
            due: When the first of them is expected to be available, epoch seconds.
            version: As it was before the call looked; if it has changed, the ticket is woken.
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
                woken = [t for t in line if t.number > ticket.number and _may_fit_before(t, ticket)]
        # The front may have missed that a key is available: a reset, or another process's release.
        # A call that found no key wakes the next one that needs less, which does the same.
        _wake_first(woken)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Leave the line and wake the next call; a second call does nothing."""
        with self._lock:
            if not ticket.queued:
                return
            ticket.queued = False
            self.version += 1
            behind = [t for t in self._line(ticket.info) if t.number > ticket.number]
        _wake_first(behind)

    def released(self, key_id: str, *, gave_back: bool) -> None:
        """Wake the earliest call of each line that waits for this key.

        Args:
            key_id: The key of a request that ended.
            gave_back: Part of its reservation was released.
        """
        with self._lock:
            self.version += 1
            found = [_waits_for(line, key_id, gave_back) for line in self.lines.values()]
        for waiting in found:
            _wake_first(waiting)

    def _line(self, info: CallInfo) -> list[Ticket]:
        """Return the line of a call's model without tickets that left it or are gone."""
        name = _line_of(info)
        line = [ticket for ticket in self.lines.get(name, ()) if ticket.queued and not ticket.gone]
        if line:
            self.lines[name] = line
        else:
            self.lines.pop(name, None)
        return line

    def reset(self, lock: AbstractContextManager[object]) -> None:
        """Drop all lines in a forked child: the waiting calls are its parent's."""
        self._lock = lock
        self.lines = {}


def _waits_for(line: Iterable[Ticket], key_id: str, gave_back: bool) -> list[Ticket]:
    blocks = ((ticket, ticket.blocks.get(key_id)) for ticket in line)
    return [t for t, block in blocks if block and (gave_back or block.reason in IN_USE)]


def _wake_first(tickets: Iterable[Ticket]) -> None:
    """Wake the first of *tickets* whose call still waits."""
    for ticket in tickets:
        if ticket.notify():
            return
        ticket.stalled = True


def _line_of(info: CallInfo) -> str:
    return info.quota_model or info.verb
