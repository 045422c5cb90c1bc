"""A bound on the names of models that are counted separately."""

from __future__ import annotations

from .model import CallInfo

MAX_NAMES = 200
"""Model names counted separately at a time; a provider has about fifty."""
MAX_LENGTH = 100
IDLE_S = 3_600.0
OTHER = "other-models"
"""The name under which all others are counted together, so that no limit is exceeded."""


class ModelNames:
    """The names in use. Threads may share it: at worst one more name is counted separately."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}

    def bounded(self, info: CallInfo, now: float) -> CallInfo:
        """Return the call with the model name under which the state counts it.

        Args:
            info: The call.
            now: Epoch seconds.
        """
        name = info.model
        if not name:
            return info
        if not self._admits(name, now):
            return info._replace(model=OTHER)
        if name not in self._used and len(self._used) >= MAX_NAMES:
            self._used.pop(self._oldest()[0], None)
        self._used[name] = now
        return info

    def preview(self, info: CallInfo, now: float) -> CallInfo:
        """Return what `bounded` would, of a call that is not made."""
        admitted = not info.model or self._admits(info.model, now)
        return info if admitted else info._replace(model=OTHER)

    def _admits(self, name: str, now: float) -> bool:
        if name in self._used:
            return True
        if len(name) > MAX_LENGTH:
            return False
        return len(self._used) < MAX_NAMES or self._oldest()[1] <= now - IDLE_S

    def _oldest(self) -> tuple[str, float]:
        return min(tuple(self._used.items()), key=lambda item: item[1])
