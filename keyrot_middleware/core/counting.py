"""As what a call counts before it is sent: under which name of a model, as how many tokens."""

from __future__ import annotations

from math import ceil

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
        if name not in self._used:
            if not self._admits(name, now):
                return info._replace(model=OTHER)
            if len(self._used) >= MAX_NAMES:
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


_MAX_MODELS = 256
_KEPT = 0.95


class TokenScale:
    """The factor between estimated and true input tokens, learned per model.

    It is the ratio of the sums of both over the last calls. So what a search tool adds to a short
    prompt does not multiply long ones.

    Not locked: threads that learn at the same time may lose one observation.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def scaled(self, model: str, estimate: int) -> int:
        """Return the tokens to reserve for an *estimate*."""
        estimated, true = self._sums.get(model, (1.0, 1.0))
        return ceil(estimate * true / estimated)

    def learn(self, model: str, estimate: int, true: int) -> None:
        """Record that a request estimated at *estimate* tokens had *true* tokens."""
        if estimate <= 0 or true <= 0:
            return
        if len(self._sums) >= _MAX_MODELS:
            self._sums = {}
        estimated, counted = self._sums.get(model, (0.0, 0.0))
        self._sums[model] = estimated * _KEPT + estimate, counted * _KEPT + true
