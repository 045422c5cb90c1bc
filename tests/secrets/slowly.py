"""A secret store that answers when a test lets it, and a cache over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from support.servers import wait_for

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretCache, SecretLocation

__all__ = ["Slow", "cache_of", "record_changes", "tick_until"]


class Slow:
    """A store behind a gate; open unless `gate.clear()` shuts it."""

    scheme = "slow"

    def __init__(self, **values: str) -> None:
        self.values = values
        self.gate = threading.Event()
        self.gate.set()
        self.down = False
        self.asked: list[tuple[str, ...]] = []
        self.under_way = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Answer when the gate is open."""
        with self._lock:
            self.asked.append(tuple(refs))
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        assert self.gate.wait(20), "the test never opened the gate"
        with self._lock:
            self.under_way -= 1
        if self.down:
            raise ConnectionError("FAKE-token-of-the-store")
        return {
            key_id: Secret(self.values[key_id])
            if key_id in self.values
            else SecretError(f"key {key_id}: not there")
            for key_id in refs
        }


def record_changes(cache: SecretCache) -> list[frozenset[str]]:
    """Return a list that gets the ids of each change."""
    changes: list[frozenset[str]] = []
    cache.on_change = changes.append
    return changes


def cache_of(
    store: Slow, *key_ids: str, ttl_s: float = 300.0, start_timeout_s: float = 5.0
) -> SecretCache:
    """Make a cache of a store's keys."""
    locations = {key_id: SecretLocation(store) for key_id in key_ids or store.values}
    return SecretCache(locations, ttl_s=ttl_s, start_timeout_s=start_timeout_s)


def tick_until(cache: SecretCache, true: Callable[[], Any]) -> None:
    """Tick until something is true, as the refresher does: a busy store is passed over."""
    wait_for(lambda: cache.tick() >= 0 and true())
