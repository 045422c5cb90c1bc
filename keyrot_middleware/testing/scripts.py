"""What a test wants to be answered next."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable

from keyrot_middleware.testing.scripted import Scripted

__all__ = ["Scripts"]

Line = deque[Scripted]


class Scripts:
    """Queues of replies by key, and those that stand until changed; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: defaultdict[str | None, Line] = defaultdict(deque)
        self._always: dict[str | None, Scripted] = {}

    def add(self, label: str | None, replies: Iterable[Scripted]) -> None:
        """Put replies at the end of a key's queue, or of everybody's where `label` is None."""
        with self._lock:
            self._next[label].extend(replies)

    def stand(self, label: str | None, reply: Scripted | None) -> None:
        """Answer a key, or everybody, alike until changed; None ends it."""
        with self._lock:
            if reply is None:
                self._always.pop(label, None)
            else:
                self._always[label] = reply

    def clear(self) -> None:
        """Forget every script."""
        with self._lock:
            self._next.clear()
            self._always.clear()

    def pending(self, label: str | None) -> int:
        """Return how many replies are still queued."""
        with self._lock:
            return len(self._next[label]) if label in self._next else 0

    def take(self, label: str | None, *, read: bool) -> Scripted | None:
        """Return the reply for a request, and take it off its queue; None is the ordinary course.

        The key's own queue comes first, then everybody's, then what stands for the key, then what
        stands for everybody. A reply that spares reads waits for a request that runs a model.
        """
        with self._lock:
            for line in (self._next.get(label), self._next.get(None)):
                if line and not (read and line[0].spares_reads):
                    return line.popleft()
            for name in (label, None):
                reply = self._always.get(name)
                if reply is not None and not (read and reply.spares_reads):
                    return reply
            return None
