"""Where values are kept, and who learns that one has changed."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .base import SecretStore

__all__ = ["Listener", "Place"]


class Place(NamedTuple):
    """Where the value of a key is kept."""

    store: SecretStore
    ref: str | None = None
    """As in keys.json; None: the store's default place for the key."""


class Listener(Protocol):
    """Who learns what look-ups have changed; told by one thread at a time."""

    def renewed(self, key_ids: frozenset[str]) -> frozenset[str]:
        """Learn which keys have another value, or their first; give those that were replaced."""

    def announce(self, key_ids: frozenset[str]) -> None:
        """Say that these were replaced: no call that could say it is waiting for them."""
