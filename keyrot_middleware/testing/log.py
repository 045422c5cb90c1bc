"""The log of requests."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["LoggedRequest", "RequestLog"]


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request and its reply.

    Attributes:
        at: Epoch seconds by the service's clock, when it was complete.
        key: The key's label; None: no known key.
        method: The HTTP method.
        path: The path with its query.
        model: The model, or empty.
        verb: The method: `generateContent`, `files.get`, `upload.start`…
        body: The JSON body, or an empty dict.
        headers: Pairs as received, including repeated headers.
        status: The HTTP status of the answer; 0 if there was none. Of a Live session 101, and the
            code with which the server closed it.
        stream: Whether it requested a stream.
        reply: The name of the answer: `OK`, or a member of `Reply`.
        tokens: The input tokens that were counted.
    """

    at: float
    key: str | None
    method: str
    path: str
    model: str
    verb: str
    status: int
    stream: bool
    reply: str
    tokens: int = 0
    body: dict[str, Any] = field(default_factory=dict, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def header_values(self, name: str) -> list[str]:
        """Return every value of a header; the name is case-insensitive."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]


class RequestLog:
    """The requests, and how many are in flight; thread-safe.

    Args:
        keep: How many of the newest requests are kept; None keeps all. Counts by key are exact
            in any case.
    """

    def __init__(self, keep: int | None = None) -> None:
        self._changed = threading.Condition()
        self._requests: deque[LoggedRequest] = deque(maxlen=keep)
        self._sent: Counter[str | None] = Counter()
        self._in_flight: Counter[str | None] = Counter()
        self._peak: Counter[str | None] = Counter()

    def add(self, request: LoggedRequest) -> None:
        """Add a request, and count it as in flight."""
        key = request.key
        with self._changed:
            self._requests.append(request)
            self._sent[key] += 1
            self._in_flight[key] += 1
            self._peak[key] = max(self._peak[key], self._in_flight[key])
            self._changed.notify_all()

    def change(self, request: LoggedRequest, **fields: Any) -> LoggedRequest:
        """Replace a request in the log by one with other *fields*, and return that."""
        changed = replace(request, **fields)
        with self._changed:
            for place, other in enumerate(self._requests):
                if other is request:
                    self._requests[place] = changed
        return changed

    def done(self, key: str | None) -> None:
        """Count a request of that key as answered."""
        with self._changed:
            self._in_flight[key] -= 1
            self._changed.notify_all()

    def all(self) -> list[LoggedRequest]:
        """Return the requests kept, oldest first."""
        with self._changed:
            return list(self._requests)

    def sent(self, key: str | None) -> int:
        """Return how many requests came with that key."""
        with self._changed:
            return self._sent[key]

    def total(self) -> int:
        """Return how many requests came in all."""
        with self._changed:
            return self._sent.total()

    def peak(self, key: str | None) -> int:
        """Return the highest number of concurrent requests of that key."""
        with self._changed:
            return self._peak[key]

    def wait_for(self, count: int, timeout: float) -> bool:
        """Wait until `count` requests came in all; return False if `timeout` seconds passed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._sent.total() >= count, timeout)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no request is in flight; return False if `timeout` seconds passed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight.total() == 0, timeout)

    def reset(self) -> None:
        """Clear requests and counts; requests in flight stay counted."""
        with self._changed:
            self._requests.clear()
            self._sent.clear()
            self._peak.clear()
