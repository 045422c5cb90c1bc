"""A secret store that answers when a test lets it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret

__all__ = ["Slow"]


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
