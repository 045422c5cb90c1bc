"""Questions to one store: asked in a thread of their own, so that nobody waits longer than wanted.

A lane has at most one question under way. Those that come meanwhile are put together and asked
next, in one batch; a key that is being asked for is not asked for twice. A store that hangs so
holds one thread of each of its lanes, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

__all__ = ["Lane", "Refs", "Ticket"]

Refs = dict[str, str | None]
"""Key ids and their places, as in keys.json."""


class Ticket:
    """An answer to come, for all who wait for it.

    Who *takes* it tells the world what has changed; an answer that nobody takes the ring tells.
    """

    def __init__(self, refs: Mapping[str, str | None], *, takers: int = 0) -> None:
        """Ask for *refs*, for *takers* who take the answer."""
        self.refs: Refs = dict(refs)
        self.at = time.monotonic()
        """Since when somebody waits."""
        self.changed: frozenset[str] = frozenset()
        """The ids that have another value now."""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._takers = takers

    def join(self, takers: int) -> bool:
        """Let more take the answer; tell whether that is not too late."""
        with self._lock:
            if self._done.is_set():
                return False
            self._takers += takers
            return True

    def wait(self, until: float, *, takers: int = 0) -> bool:
        """Wait for the answer until *until*, of `time.monotonic()`; tell whether it is here.

        Where it is not, those *takers* take it no more.
        """
        self._done.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            if not self._done.is_set():
                self._takers -= takers
            return self._done.is_set()

    def finish(self, changed: frozenset[str]) -> bool:
        """Give the answer; tell whether it is taken."""
        with self._lock:
            self.changed = changed
            self._done.set()
            return self._takers > 0


class Lane:
    """Ask one question at a time."""

    def __init__(self, ask: Callable[[Ticket], None], idle: Callable[[], None], name: str) -> None:
        """Ask nothing yet.

        Args:
            ask: Finds the answer to a ticket.
            idle: Called when nothing is under way any more.
            name: Of the thread.
        """
        self._ask = ask
        self._idle = idle
        self._name = name
        self.renew()

    def renew(self) -> None:
        """Begin anew in a forked child: threads, and locks they held, stayed with the parent."""
        self._lock = threading.Lock()
        self._running: Ticket | None = None
        self._next: Ticket | None = None

    @property
    def busy(self) -> bool:
        """Tell whether a question is under way."""
        return self._running is not None

    def put(self, refs: Mapping[str, str | None], *, takers: int = 0) -> Ticket:
        """Ask for keys, for so many *takers*; the answer comes by itself."""
        with self._lock:
            running = self._running
            if running is None:
                return self._start(Ticket(refs, takers=takers))
            if refs.items() <= running.refs.items() and running.join(takers):
                return running
            if self._next is None:
                self._next = Ticket({})
                self._next.at = running.at  # who queues behind a slow answer has waited as long
            self._next.refs.update(refs)
            self._next.join(takers)
            return self._next

    def _start(self, ticket: Ticket) -> Ticket:
        """Begin with a ticket; where there can be no thread, nothing is under way."""
        threading.Thread(target=self._work, args=(ticket,), name=self._name, daemon=True).start()
        self._running = ticket
        return ticket

    def _work(self, first: Ticket) -> None:
        ticket: Ticket | None = first
        try:
            while ticket is not None:
                self._ask(ticket)
                ticket.finish(ticket.changed)
                with self._lock:
                    ticket = self._running = self._next
                    self._next = None
        except BaseException:
            self._let_go()
            raise
        finally:
            self._idle()

    def _let_go(self) -> None:
        """Let nobody wait for what a fault of ours has left unanswered."""
        with self._lock:
            left = [ticket for ticket in (self._running, self._next) if ticket is not None]
            self._running = self._next = None
        for ticket in left:
            ticket.finish(ticket.changed)
