"""Grants that nobody has heard of: what was asked for may run later, when who asked has gone on.

A lease that is not known to anyone is settled by nobody, and would keep a probe's turn, or a place
in `max_concurrency`, until it runs out by itself. So it is let go as soon as the server answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ...core.roster import Shortlist

__all__ = ["Unheard", "words"]

KEPT = 256
"""As many callers can ask at once before the first of them finds out; of more the oldest go."""


class Unheard:
    """The ids of leases that may have been granted, and of whom."""

    def __init__(self) -> None:
        self._asked: deque[tuple[str, Shortlist]] = deque(maxlen=KEPT)

    def note(self, lease_id: str, shortlist: Shortlist) -> None:
        """Take note of a question whose answer did not come."""
        self._asked.append((lease_id, shortlist))

    def all(self) -> tuple[tuple[str, Shortlist], ...]:
        """List them."""
        return tuple(self._asked)

    def told(self, asked: Sequence[tuple[str, Shortlist]]) -> None:
        """Forget those that were let go."""
        for one in asked:
            if one in self._asked:
                self._asked.remove(one)

    def forget(self) -> None:
        """Leave all to the parent, in a forked child."""
        self._asked.clear()


def words(base: str, asked: Sequence[tuple[str, Shortlist]]) -> list[str | int]:
    """Write the arguments of release.lua."""
    written: list[str | int] = []
    for lease_id, shortlist in asked:
        written += [lease_id, len(shortlist)]
        for _, key in shortlist:
            owners = (f"b:{key.billing_account}", f"p:{key.project}", f"k:{key.record}")
            written += [*(f"{base}:c:{owner}" for owner in owners), f"{base}:l:{key.record}"]
    return written
