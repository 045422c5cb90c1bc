"""How tests ask for streams: of the SDK's methods, of its api client; and how they drop them."""

from __future__ import annotations

import gc
import time

from four_modes import MODEL

from keyrot_middleware.core.model import Kind

__all__ = ["ASKED", "body", "collected", "path_of"]

ASKED = {"model": MODEL, "contents": "hello"}


def path_of() -> str:
    """Give the path of a stream, as the SDK calls its api client."""
    return f"models/{MODEL}:streamGenerateContent?alt=sse"


def body() -> dict:
    """Give a body, as the SDK calls its api client."""
    return {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


def collected(pool) -> list[Kind]:
    """Collect garbage, and tell how leases ended; a thread settles those that it comes upon."""
    gc.collect()
    until = time.monotonic() + 2
    while pool.ledger.under_way and time.monotonic() < until:
        time.sleep(0.001)
    return pool.ledger.kinds
