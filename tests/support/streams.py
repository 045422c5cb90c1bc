"""How tests ask for streams: of the SDK's methods, of its api client; and how they drop them."""

from __future__ import annotations

import gc

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from support.modes import MODEL

__all__ = ["ASKED", "body", "collected", "path_of"]

ASKED = {"model": MODEL, "contents": "hello"}


def path_of() -> str:
    """Give the path of a stream, as the SDK calls its api client."""
    return f"models/{MODEL}:streamGenerateContent?alt=sse"


def body() -> dict:
    """Give a body, as the SDK calls its api client."""
    return {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


def collected(pool) -> list[LeaseOutcome]:
    """Collect garbage, and give how leases ended; asking for the status settles what it closed."""
    gc.collect()
    keyrot_middleware.status()
    return pool.ledger.kinds
