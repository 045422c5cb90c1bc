"""Which model names are counted by themselves: a program's users may choose any number of them."""

from __future__ import annotations

from .model import CallInfo

__all__ = ["MOST", "OTHER", "ModelNames"]

MOST = 200
"""Model names counted by themselves at a time; Google has some fifty."""
LONGEST = 100
IDLE_S = 3_600.0
OTHER = "other-models"
"""As what all others are counted together: never beyond a limit, whatever they are."""


class ModelNames:
    """The names in use. Threads may share it: at worst a name too many is counted by itself."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}

    def bounded(self, info: CallInfo, now: float) -> CallInfo:
        """Give the call as the state is to count it.

        Args:
            info: The call.
            now: Epoch seconds.
        """
        name = info.model
        if not name:
            return info
        if not self._admits(name, now):
            return info._replace(model=OTHER)
        self._used[name] = now
        return info

    def _admits(self, name: str, now: float) -> bool:
        if name in self._used:
            return True
        if len(name) > LONGEST:
            return False
        if len(self._used) >= MOST:
            used = tuple(self._used.items())
            oldest, at = min(used, key=lambda item: item[1])
            if at > now - IDLE_S:
                return False
            self._used.pop(oldest, None)
        return True
