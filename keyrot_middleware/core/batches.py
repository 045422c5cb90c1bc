"""Batches that are pending: Google runs only so many of one project at a time.

A new batch goes to the project with the fewest pending ones. They are known from the pool's own
creates and from the states that responses show. Nobody reports the end of a batch that no program
looks at again, so each counts for a limited time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .affinity import NEW_BATCH, Route

__all__ = ["BATCHES_FULL", "PENDING_S", "POLL_S", "RESERVED_S", "pending_batches"]

BATCHES_FULL = "batches_full"
"""The reason of a `Block`: `max_pending_batches` of the key's project are pending."""

PENDING_S = 48 * 3_600.0
"""How long a batch counts as pending after it was last seen: it expires when it was pending or
running for 48 hours (https://ai.google.dev/gemini-api/docs/batch-api, JOB_STATE_EXPIRED)."""
RESERVED_S = 600.0
"""How long the place of a batch is reserved whose create has not ended."""
POLL_S = 5.0
"""When to look again for a project with room: when a batch ends is not known."""

_PENDING = ("_PENDING", "_RUNNING", "_QUEUED", "_PAUSED", "_UPDATING", "_CANCELLING")
_ENDED = ("_SUCCEEDED", "_FAILED", "_CANCELLED", "_EXPIRED")
_NO_BODY = ("cancel", "delete")


def pending_batches(
    route: Route, names: tuple[str, ...], body: Mapping[str, Any]
) -> dict[str, float]:
    """Return how long each batch of a successful response counts as pending, seconds.

    Args:
        route: Of the request.
        names: The stored resources that it names.
        body: The response.

    Returns:
        By name; 0 for a batch that has ended.
    """
    if route.verb in NEW_BATCH:
        name = body.get("name")
        return {name: PENDING_S} if isinstance(name, str) and name else {}
    if route.collection != "batches":
        return {}
    if route.verb in _NO_BODY:
        return dict.fromkeys(names, 0.0)
    listed = body.get("operations")
    found: dict[str, float] = {}
    for batch in listed if isinstance(listed, list) else [body]:
        name = batch.get("name") if isinstance(batch, dict) else None
        seconds = _pending_s(batch) if isinstance(name, str) else None
        if isinstance(name, str) and seconds is not None:
            found[name] = seconds
    return found


def _pending_s(batch: Mapping[str, Any]) -> float | None:
    """Return how long a batch counts as pending; None if its state is not known."""
    metadata = batch.get("metadata")
    state = metadata.get("state") if isinstance(metadata, dict) else None
    if isinstance(state, str) and state.endswith(_ENDED):
        return 0.0
    if isinstance(state, str) and state.endswith(_PENDING):
        return PENDING_S
    return 0.0 if batch.get("done") is True else None
