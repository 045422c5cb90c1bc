"""The model that examples name, and a bound on the names that are counted separately."""

from __future__ import annotations

from collections.abc import Mapping

from .model import CallInfo, Limits

CURRENT_MODEL = "gemini-flash-latest"
"""What README, docs, examples and `keyrot check --live` ask for: an alias of Google's, since Google
closes a model to new projects when it has a newer one."""
_FLASH, _LITE = Limits(rpm=5, tpm=250_000, rpd=20), Limits(rpm=15, tpm=250_000, rpd=500)
FREE_LIMITS: Mapping[str, Limits] = {
    CURRENT_MODEL: _FLASH,
    "gemini-3.8-flash": _FLASH,
    "gemini-3.6-flash": _FLASH,
    "gemini-3.5-flash-lite": _LITE,
    "gemini-3.1-flash-lite": _LITE,
}
"""The limits of a free project as 429s of autumn 2026 named them; Google publishes none
(docs/gemini-api.md#limits-of-the-tiers). For examples and the fake service: a pool learns the true
ones."""

MAX_NAMES = 200
"""Model names counted separately at a time; Google has about fifty."""
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
