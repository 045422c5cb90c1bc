"""Ways to open streams: through the SDK's methods or its api client; and to drop them."""

import gc

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from support.modes import MODEL

REQUEST = {"model": MODEL, "contents": "hello"}


def collected(pool) -> list[LeaseOutcome]:
    """Collect garbage, and return how leases ended; reading the status settles what it closed."""
    for _ in range(3):  # what an event loop finalizes takes more than one
        gc.collect()
    keyrot_middleware.status()
    return pool.ledger.kinds
