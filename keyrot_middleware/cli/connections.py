"""The connections of `keyrot ui`: bounded in number and in the time that a request takes to arrive.

uvicorn waits without limit for the rest of a request, and refuses whoever comes when there are too
many connections. Here the newest connection always gets in: half-sent requests, or many open
connections, must not lock the operator out.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["BoundedConnection"]

MAX_CONNECTIONS = 240
"""A process of macOS may open 256 files."""
ARRIVE_S = 10.0
"""How long a request may take to arrive."""


class BoundedConnection(H11Protocol):
    """A connection that is closed if its request does not arrive, or if others need its place."""

    places: ClassVar[dict[BoundedConnection, None]] = {}
    """The open connections of the process; first the one whose last request is the longest ago."""
    arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place; if all are taken, that of a connection whose request is not being answered.

        A page that polls is idle most of the time, and opens another connection by itself.
        """
        super().connection_made(transport)
        if len(self.places) >= MAX_CONNECTIONS:
            idle = (one for one in self.places if getattr(one.cycle, "response_complete", True))
            first = next(idle, None) or next(iter(self.places))
            del self.places[first]
            first.transport.abort()
        self.places[self] = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the place."""
        super().connection_lost(exc)
        self.places.pop(self, None)
        self._stop_timer()

    def _watch(self) -> None:
        """Close the connection after `ARRIVE_S` unless the request is complete."""
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            if self.arrival is None:
                self.arrival = self.loop.call_later(ARRIVE_S, self.transport.abort)
            return
        self._stop_timer()
        if self in self.places:
            self.places[self] = self.places.pop(self)

    def _stop_timer(self) -> None:
        if self.arrival is not None:
            self.arrival.cancel()
            self.arrival = None
