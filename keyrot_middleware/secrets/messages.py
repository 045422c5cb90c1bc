"""What the log says of stores that do not give what they should; no value is in any of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .book import Book
from .source import Source

__all__ = ["left_out", "mention", "no_value", "slow"]

_log = logging.getLogger("keyrot_middleware")

_TOLD = 10
"""Keys that are told one by one where many cannot be had."""


def left_out(reasons: Sequence[str]) -> None:
    """Say which keys cannot be had, when they are looked up for the first time."""
    for reason in reasons[:_TOLD]:
        _log.error("left out of the pool: %s", reason)
    if len(reasons) > _TOLD:
        _log.error("left out of the pool: %d keys more", len(reasons) - _TOLD)


def mention(source: Source, failing: Sequence[str], book: Book) -> None:
    """Say once that a store does not give all of its keys, and once that it does again."""
    scheme = source.store.scheme
    if failing and not source.told:
        first = failing[0]
        text = "secret store %s: %d keys have no current value; it is asked again (%s)"
        reason = book.unresolved.get(first) or book.stale.get(first)
        _log.warning(text, scheme, len(failing), reason)
    elif source.told and not failing:
        _log.info("secret store %s: all keys have a current value", scheme)
    source.told = bool(failing)


def no_value(reason: str) -> None:
    """Say why the value of a key that was refused could not be looked up."""
    _log.warning("no new value: %s", reason)


def slow(key_id: str, scheme: str) -> None:
    """Say that a call does not wait any longer."""
    text = "key %s: the secret store %s is slow; its answer is used when it comes"
    _log.warning(text, key_id, scheme)
