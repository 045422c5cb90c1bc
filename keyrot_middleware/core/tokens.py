"""How many input tokens a call counts as, as far as is known before it is sent."""

from __future__ import annotations

from math import ceil

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
