"""A service of a cloud on this machine: it gives out tokens, and a test may answer in its place."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from support.json_server import JsonServer, Request, Response

__all__ = ["CloudEmulator", "ConcurrencyMeter", "ScriptedReplies"]


class CloudEmulator(ABC):
    """What a service has beside its secrets: a server, tokens, and requests that were counted."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.odd: Callable[[Request], Response | None] = lambda _: None
        """May answer in place of the service."""
        self.numbers = itertools.count(1)
        self._tokens: dict[str, str] = {}
        self.server = JsonServer(lambda asked: self.odd(asked) or self.answer(asked), tls)

    @abstractmethod
    def answer(self, asked: Request) -> Response:
        """Answer as the service does."""

    def issue_token(self, who: str) -> str:
        """Make a token for somebody."""
        token = f"FAKE-token-{next(self.numbers)}"
        self._tokens[token] = who
        return token

    def who(self, asked: Request) -> str | None:
        """Tell whose token a request carries; None where it is none that was given out."""
        return self._tokens.get(asked.headers.get("authorization", "").removeprefix("Bearer "))

    def revoke(self) -> None:
        """Take no token any longer that was given out so far."""
        self._tokens.clear()

    @property
    def tokens(self) -> list[str]:
        """The tokens that are taken."""
        return list(self._tokens)

    def count(self, path: str) -> int:
        """Tell how many requests had *path* in theirs."""
        return sum(path in asked.path for asked in self.server.asked)


class ConcurrencyMeter:
    """Takes some time for each read, and tells how many were under way at most."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, asked: Request) -> None:
        """Let the service answer after a moment."""
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.005)
        with self._lock:
            self._now -= 1


class ScriptedReplies:
    """Answers reads that carry a token as laid out, one after the other, then as usual."""

    def __init__(self, *answers: Response) -> None:
        self.left = list(answers)
        self.reads = 0

    def __call__(self, asked: Request) -> Response | None:
        """Take the next one."""
        if "/secrets/" not in asked.path or "authorization" not in asked.headers:
            return None
        self.reads += 1
        return self.left.pop(0) if self.left else None
