"""A service of a cloud on this machine: it issues tokens, and a test may answer in its place."""

import itertools
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable

from support.json_server import JsonServer, Request, Response


class CloudEmulator(ABC):
    """What a service needs beside its secrets: a server, tokens, and a count of requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.odd: Callable[[Request], Response | None] = lambda _: None
        """May answer in place of the service."""
        self.numbers = itertools.count(1)
        self._tokens: dict[str, str] = {}
        self.server = JsonServer(lambda request: self.odd(request) or self.answer(request), tls)

    @abstractmethod
    def answer(self, request: Request) -> Response:
        """Answer as the service does."""

    def issue_token(self, identity: str) -> str:
        token = f"FAKE-token-{next(self.numbers)}"
        self._tokens[token] = identity
        return token

    def identity_of(self, request: Request) -> str | None:
        """Return the identity whose token a request carries; None for an unknown token."""
        return self._tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))

    def revoke(self) -> None:
        self._tokens.clear()

    @property
    def tokens(self) -> list[str]:
        return list(self._tokens)

    def count(self, path: str) -> int:
        return sum(path in request.path for request in self.server.requests)
