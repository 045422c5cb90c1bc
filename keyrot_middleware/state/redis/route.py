"""Which server to speak to just now; what each refusal says about that.

A plain server is always the same one. Behind sentinels it is the one they call the master. In a
cluster it is the node that has the pool's slot: any node says which (`MOVED`), so that no map of
the slots is kept. No I/O here; lines.py and alines.py share it.
"""

from __future__ import annotations

from enum import Enum

from .place import Address, Place

__all__ = ["Advice", "Route"]


class Advice(Enum):
    """What to do about an error that a server answered with."""

    TELL = "tell it the whole script"
    MOVE = "ask the server that it named"
    FAIL = "give up"


class Route:
    """The way to the server that has the pool's records."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._known = list(place.nodes)
        self._now: Address | None = None if place.kind == "sentinel" else place.nodes[0]

    @property
    def address(self) -> Address | None:
        """Tell where the server is; None where a sentinel must be asked first."""
        return self._now

    def sentinels(self) -> tuple[Address, ...]:
        """List whom to ask for the master, who answered last first."""
        return tuple(self._known)

    def found(self, sentinel: Address, master: Address) -> None:
        """Take the word of a sentinel."""
        self._known.sort(key=lambda known: known != sentinel)
        self._now = master

    def lost(self, address: Address) -> None:
        """Stop relying on a server that did not answer, or is no master any more."""
        if address != self._now:
            return
        if self.place.kind == "sentinel":
            self._now = None
        elif self.place.kind == "cluster":
            following = (self._known.index(address) + 1) % len(self._known)
            self._now = self._known[following]

    def advise(self, error: Exception, sender: Address) -> Advice:
        """Read what a server answered, and learn where the records are from it."""
        text = str(error)
        if text.startswith("NOSCRIPT "):
            return Advice.TELL
        if self.place.kind == "cluster" and text.startswith("MOVED "):
            self._moved(text, sender)
            return Advice.MOVE
        if text.startswith("READONLY "):
            self.lost(sender)
        return Advice.FAIL

    def _moved(self, text: str, sender: Address) -> None:
        """Go where `MOVED slot host:port` points; an empty host is the sender's own."""
        host, _, port = text.rpartition(" ")[2].rpartition(":")
        self._now = (host.strip("[]") or sender[0], int(port))
        if self._now not in self._known:
            self._known.append(self._now)
