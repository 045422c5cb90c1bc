"""How a server may count a minute: three models, each a few numbers and pure arithmetic.

Google is seen to count in minutes of the clock, but documents nothing, and gateways count as they
like. So `Quota` (windows.py) counts in minutes of the clock until a refusal contradicts that, and
then by the model that the refusal speaks for (ADR 0020):

- `ClockMinute`: a window opens at :00 and is empty then.
- `SlidingWindow`: a request counts for 60 s after it was sent.
- `TokenBucket`: what was used comes back evenly, a whole limit in 60 s.

All three have the same face: `book`, `correct`, and `full`, which says until when a window has no
room. A request larger than a whole limit would never fit; it is let through when nothing is used,
since the estimate may be wrong, and the server's own answer then decides. The scripts in state/lua
have the same arithmetic.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from math import ceil

from .model import Limits

__all__ = [
    "AHEAD_S",
    "GUARD_S",
    "LATER_S",
    "MINUTE_S",
    "NO_MARK",
    "ClockMinute",
    "SlidingWindow",
    "TokenBucket",
    "most",
]

GUARD_S = 1.0
MINUTE_S = 60.0
AHEAD_S = 60.0
"""What was booked later than this from now was booked by a clock that has stepped back since."""
CELL_S = 2
"""Requests sent within the same two seconds share a record, and leave the window with the last of
them: at most 32 records for any limit, for at most 2 s of 60 in which there is room unknown to us.
"""
PIECES = 8
"""In how many records a past minute, of which only begin, end and sums are known, is put."""
LATER_S = 0.001
"""Added to a time at which something evenly refilled is enough: a double is exact to 0.2 µs."""
NO_MARK = -1


class ClockMinute:
    """What is counted in the clock's minute; two seconds around an edge count in both minutes.

    Of the minute before it knows when its first and last request were booked, and the sums, so
    that another model can begin with something.
    """

    __slots__ = (
        "before_began",
        "before_last",
        "before_requests",
        "before_tokens",
        "began",
        "last",
        "minute",
        "requests",
        "requests_next",
        "tokens",
        "tokens_next",
    )

    def __init__(self) -> None:
        self.minute = -1
        self.requests = self.requests_next = 0
        self.tokens = self.tokens_next = 0
        self.began = self.last = -1
        """Seconds of the minute at which the first and the last request were booked; -1: none."""
        self.before_began = self.before_last = -1
        self.before_requests = self.before_tokens = 0

    def open(self, now: float) -> bool:
        """Open the minute of *now*; True where it falls within the guard of a minute's edge.

        A minute that lies in the future is dropped: the clock has stepped back.
        """
        first = int((now - GUARD_S) // 60)
        if first > self.minute or first < self.minute - 1:
            kept = first == self.minute + 1
            self.before_began, self.before_last = (self.began, self.last) if kept else (-1, -1)
            self.before_requests = self.requests - self.requests_next if kept else 0
            self.before_tokens = self.tokens - self.tokens_next if kept else 0
            self.requests, self.requests_next = (self.requests_next if kept else 0), 0
            self.tokens, self.tokens_next = (self.tokens_next if kept else 0), 0
            self.began = self.last = 0 if self.requests or self.tokens else -1
            self.minute = first
        return int((now + GUARD_S) // 60) > self.minute

    def full(
        self, limits: Limits, requests: int, tokens: int, *, edge: bool
    ) -> tuple[str, float] | None:
        """Say which window has no room, and until when."""
        for name, limit, cost, used, used_next in (
            ("rpm", limits.rpm, requests, self.requests, self.requests_next),
            ("tpm", limits.tpm, tokens, self.tokens, self.tokens_next),
        ):
            if limit is None:
                continue
            if edge and _over(used_next, cost, limit):
                return name, (self.minute + 2) * 60 + GUARD_S
            if _over(used, cost, limit):
                return name, (self.minute + 1) * 60 + GUARD_S
        return None

    def add(self, requests: int, tokens: int, now: float, *, edge: bool) -> None:
        """Book a request."""
        self.requests += requests
        self.tokens += tokens
        if edge:
            self.requests_next += requests
            self.tokens_next += tokens
        self.last = int(now) - self.minute * 60
        if self.began < 0:
            self.began = self.last

    def amend(self, minute: int, requests: int, tokens: int, *, edge: bool) -> None:
        """Add to the windows of an earlier booking, as far as they still count."""
        if minute == self.minute:
            self.requests += requests
            self.tokens += tokens
            if edge:
                self.requests_next += requests
                self.tokens_next += tokens
        elif edge and minute + 1 == self.minute:
            self.requests += requests
            self.tokens += tokens
        elif minute + 1 == self.minute and self.before_began >= 0:
            self.before_requests = max(self.before_requests + requests, 0)
            self.before_tokens = max(self.before_tokens + tokens, 0)

    def oldest(self, now: float) -> float:
        """Tell when the oldest request was booked that a window of 60 s may still count."""
        before = (self.minute - 1) * 60
        if self.before_last >= 0 and before + self.before_last > now - MINUTE_S:
            return max(before + self.before_began, now - MINUTE_S)
        return now if self.began < 0 else self.minute * 60 + self.began


class SlidingWindow:
    """What was sent within the last 60 s, and a second more: a request counts when it arrives."""

    __slots__ = ("_cells", "now", "requests", "tokens")

    def __init__(self, cells: Iterable[tuple[float, int, int]] = ()) -> None:
        self._cells = array("d")
        """When the last of them was sent, requests, tokens; and so on, the oldest first."""
        for cell in cells:
            self._cells.extend(cell)
        self.now = 0.0
        self.requests = self.tokens = 0

    @classmethod
    def after(cls, clock: ClockMinute) -> SlidingWindow:
        """Begin with what is known of the minute and the one before: spread evenly in each."""
        return cls(
            cell
            for minute, began, last, requests, tokens in (
                (
                    clock.minute - 1,
                    clock.before_began,
                    clock.before_last,
                    clock.before_requests,
                    clock.before_tokens,
                ),
                (clock.minute, clock.began, clock.last, clock.requests, clock.tokens),
            )
            for cell in _spread(minute * 60, began, last, requests, tokens)
        )

    @property
    def cells(self) -> list[tuple[float, int, int]]:
        """List what is counted."""
        cells = self._cells
        return [(cells[i], int(cells[i + 1]), int(cells[i + 2])) for i in range(0, len(cells), 3)]

    def open(self, now: float) -> None:
        """Count as of *now*: forget what has left the window, and what lies in the future."""
        cells = self._cells
        if any(
            not now - MINUTE_S - GUARD_S < cells[i] <= now + AHEAD_S
            for i in range(0, len(cells), 3)
        ):
            self._cells = cells = array(
                "d",
                (
                    number
                    for cell in self.cells
                    if now - MINUTE_S - GUARD_S < cell[0] <= now + AHEAD_S
                    for number in cell
                ),
            )
        self.now = now
        self.requests, self.tokens = int(sum(cells[1::3])), int(sum(cells[2::3]))

    def full(self, limits: Limits, requests: int, tokens: int) -> tuple[str, float] | None:
        """Say which window has no room, and until when; after `open`."""
        for name, limit, cost, place, used in (
            ("rpm", limits.rpm, requests, 1, self.requests),
            ("tpm", limits.tpm, tokens, 2, self.tokens),
        ):
            if limit is not None and _over(used, cost, limit):
                return name, self._until(place, used, cost, limit)
        return None

    def book(self, requests: int, tokens: int, _limits: Limits) -> int:
        """Book a request as of `open`; give what `correct` needs to find it again."""
        if not requests and not tokens:
            return NO_MARK
        cells, sent = self._cells, self.now
        if cells and cells[-3] > sent:
            sent = cells[-3]
        if cells and cells[-3] // CELL_S == sent // CELL_S:
            cells[-3] = sent
            cells[-2] += requests
            cells[-1] += tokens
        else:
            cells.extend((sent, requests, tokens))
        self.requests += requests
        self.tokens += tokens
        return int(sent // CELL_S)

    def correct(self, mark: int, requests: int, tokens: int) -> None:
        """Add to an earlier booking, as far as it still counts."""
        cells = self._cells
        for i in range(0, len(cells), 3):
            if cells[i] // CELL_S == mark:
                cells[i + 1] = max(cells[i + 1] + requests, 0)
                cells[i + 2] = max(cells[i + 2] + tokens, 0)
                return

    def _until(self, place: int, used: int, cost: int, limit: int) -> float:
        for i in range(0, len(self._cells), 3):
            used -= int(self._cells[i + place])
            if not _over(used, cost, limit):
                return self._cells[i] + MINUTE_S + GUARD_S
        return self.now + MINUTE_S + GUARD_S  # of a limit of 0 nothing ever comes free


class TokenBucket:
    """What was used and has not come back yet: a limit's worth comes back evenly in 60 s."""

    __slots__ = ("at", "now", "requests_used", "rpm", "tokens_used", "tpm")

    def __init__(
        self, at: float, requests_used: float, tokens_used: float, rpm: int = 0, tpm: int = 0
    ) -> None:
        self.at = at
        """When it was last booked in; what has come back since follows from that alone."""
        self.requests_used = requests_used
        self.tokens_used = tokens_used
        self.rpm = rpm
        """By which it comes back; 0 where nobody knows: then all of it within a minute."""
        self.tpm = tpm
        self.now = at

    @property
    def requests(self) -> int:
        """Tell how many requests have not come back."""
        return ceil(self._left(self.requests_used, self.rpm) - 1e-6)

    @property
    def tokens(self) -> int:
        """Tell how many tokens have not come back."""
        return ceil(self._left(self.tokens_used, self.tpm) - 1e-6)

    def open(self, now: float) -> None:
        """Count as of *now*; what lies in the future is dropped."""
        self.now = now
        if self.at > now + AHEAD_S:
            self.at, self.requests_used, self.tokens_used = now, 0.0, 0.0

    def full(self, limits: Limits, requests: int, tokens: int) -> tuple[str, float] | None:
        """Say what has no room, and until when; after `open`.

        A second's worth of the limit stays free: of a bucket that is full nothing comes back
        before a request has arrived.
        """
        for name, limit, cost, used in (
            ("rpm", limits.rpm, requests, self._left(self.requests_used, self.rpm)),
            ("tpm", limits.tpm, tokens, self._left(self.tokens_used, self.tpm)),
        ):
            if limit is None:
                continue
            if limit <= 0:
                if used + cost > 0:
                    return name, self.now + MINUTE_S
                continue
            over = used + cost - most(limit)
            if over > 0 and used > 0:
                return name, max(self.now, self.at) + min(over, used) * MINUTE_S / limit + LATER_S
        return None

    def book(self, requests: int, tokens: int, limits: Limits) -> int:
        """Book a request as of `open`, and go on with the *limits* that are in force."""
        self.requests_used = self._left(self.requests_used, self.rpm) + requests
        self.tokens_used = self._left(self.tokens_used, self.tpm) + tokens
        self.at = self.now
        self.rpm = self.rpm if limits.rpm is None else limits.rpm
        self.tpm = self.tpm if limits.tpm is None else limits.tpm
        return NO_MARK - 1

    def correct(self, mark: int, requests: int, tokens: int) -> None:
        """Add to what is used, where it was booked in a bucket."""
        if mark != NO_MARK - 1:
            return  # of a sliding window that was before
        self.requests_used = max(self.requests_used + requests, 0.0)
        self.tokens_used = max(self.tokens_used + tokens, 0.0)

    def _left(self, used: float, limit: int) -> float:
        back = max(self.now - self.at, 0.0) * (limit if limit > 0 else used) / MINUTE_S
        return max(used - back, 0.0)


def most(limit: int) -> float:
    """Tell how much of *limit* a bucket lends at once."""
    return limit - limit * GUARD_S / MINUTE_S


def _over(used: int, cost: int, limit: int) -> bool:
    return used + cost > limit and (used > 0 or limit <= 0)


def _spread(
    minute: int, began: int, last: int, requests: int, tokens: int
) -> Iterator[tuple[float, int, int]]:
    """Put sums of a part of a minute into a few records between its begin and its end."""
    if began < 0 or (requests <= 0 and tokens <= 0):
        return
    pieces = max(1, min(PIECES, max(requests, 1), (last - began) // CELL_S + 1))
    for i in range(pieces):
        sent = minute + began + ((last - began) * (i + 1)) // pieces + 1
        yield (
            float(sent),
            requests * (i + 1) // pieces - requests * i // pieces,
            tokens * (i + 1) // pieces - tokens * i // pieces,
        )
