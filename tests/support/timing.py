"""The time limit of a call, whatever its server does, and the number of connections it made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keyrot_middleware.core.model import Limits
from support.pool import key
from support.servers import Server

__all__ = ["ONE", "connections", "quick"]

ONE = key("a", Limits(rpm=1_000))
TOO_LONG_S = 10.0
"""A call with a limit of 0.2 or 1 s is over by then, on a busy machine too; one without is not."""


@contextmanager
def quick() -> Iterator[None]:
    """Check that the block ends in time."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < TOO_LONG_S


def connections(server: Server) -> int:
    """Count the connections ever made, except for the one of this command."""
    return int(server.execute("INFO", "stats")["total_connections_received"])
