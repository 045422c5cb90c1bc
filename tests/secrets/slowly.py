"""A secret store that answers when a test lets it, a ring over it, and who listens to the ring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from support.servers import wait_for

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretCache, SecretLocation

__all__ = ["Ear", "Slow", "ring_of", "turn_until"]


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


class Ear:
    """Notes what a ring tells."""

    def __init__(self, ring: SecretCache) -> None:
        self.renews: list[frozenset[str]] = []
        self.announced: list[frozenset[str]] = []
        ring.listener = self

    def on_secrets_changed(self, key_ids: frozenset[str]) -> frozenset[str]:
        """Note."""
        self.renews.append(key_ids)
        return key_ids

    def log_replaced(self, key_ids: frozenset[str]) -> None:
        """Note."""
        self.announced.append(key_ids)


def ring_of(store: Slow, *key_ids: str, ttl_s: float = 300.0, start_s: float = 5.0) -> SecretCache:
    """Make a ring of a store's keys."""
    ids = key_ids or tuple(store.values)
    return SecretCache(
        {key_id: SecretLocation(store) for key_id in ids}, ttl_s=ttl_s, start_s=start_s
    )


def turn_until(ring: SecretCache, true: Callable[[], Any]) -> None:
    """Turn again and again until something is true, as upkeep does: a busy store is passed over."""
    wait_for(lambda: ring.turn() >= 0 and true())
