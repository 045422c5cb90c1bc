"""What a process remembers of a pool's records from one call to the next."""

from __future__ import annotations

import threading

from ...forks import after_fork
from .codec import text

__all__ = ["Buckets", "Epochs", "looking"]

MODELS_KEPT = 1_000
EPOCH_KEPT_S = 30 * 86_400
"""How long an unused pool is known to have been there; each day of use begins it anew."""


class Buckets:
    """In which bucket a model was counted last, so that acquire can read all records at once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __getitem__(self, model: str) -> bytes:
        """Guess; the script finds out where that is wrong."""
        return text(self._known.get(model, model))

    def note(self, model: str, bucket: str) -> None:
        """Learn where a model was counted."""
        if bucket == self._known.get(model, model):
            return
        if len(self._known) >= MODELS_KEPT:
            self._known.clear()
        self._known[model] = bucket


class Epochs:
    """Which epochs the records have had: a new one means that all before is forgotten there."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    @property
    def losses(self) -> int:
        """Tell how often the records were found to be new, after the first look."""
        return max(len(self._seen) - 1, 0)

    def note(self, epoch: bytes) -> None:
        """Take note of an answer's; one that was on its way for long is no news."""
        if epoch not in self._seen:
            with self._lock:
                self._seen = {*self._seen, epoch}


def looking(base: str, new: str) -> list[list[str]]:
    """Write the commands that read the epoch, and begin the epoch *new* where there is none."""
    name = f"{base}:epoch"
    return [["SET", name, new, "NX", "PX", str(EPOCH_KEPT_S * 1000)], ["GET", name]]
