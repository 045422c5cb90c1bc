"""How soon a call must be over, whatever its server does, and how many connections it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keyrot_middleware.core.model import Limits
from support.pool import key
from support.servers import Server

__all__ = ["ONE", "connections", "quick"]

ONE = key("a", Limits(rpm=1_000))
TOO_LONG_S = 5.0
"""A call that gives up after its limit of 0.2 s is over by then, on a busy machine too; one without
a limit is not."""


@contextmanager
def quick() -> Iterator[None]:
    """Hold that what is done inside is done in time."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < TOO_LONG_S


def connections(server: Server) -> int:
    """Count how many connections were ever made, but for this question's own."""
    return int(server.ask("INFO", "stats")["total_connections_received"])
