"""The breaker of a model: while it serves nobody, its calls are sent once and not repeated.

A 503 is about the model, for every key of everyone (GEMINI.md A13). One call that meets it is sent
again a little later. But when call after call ends with it, to repeat each of them only adds to
the load, and keeps programs waiting for an answer that will not come. Calls are still sent: the
first that is served shows that the model is back.
"""

from __future__ import annotations

__all__ = ["CALLS", "REST_S", "Overload"]

CALLS = 3
"""So many calls in a row that ended with a 503, retries and all, open the breaker."""
REST_S = 30.0
"""It closes by itself when none has been met for so long."""
_MODELS = 256


class Overload:
    """Which models serve nobody at the moment, as far as this process knows.

    Not locked: threads that fail at once may count one call less, nothing else.
    """

    __slots__ = ("models",)

    def __init__(self) -> None:
        self.models: dict[str, tuple[int, float]] = {}
        """Of each the calls in a row that ended so, and when the last did, epoch seconds."""

    def failed(self, model: str, now: float) -> None:
        """Take note of a call that ended with a 503."""
        calls, last = self.models.get(model, (0, now))
        if len(self.models) >= _MODELS:
            self.models = {}
        self.models[model] = (calls + 1 if now - last < REST_S else 1, now)

    def served(self, model: str) -> None:
        """Take note of a call that was served."""
        self.models.pop(model, None)

    def open(self, model: str, now: float) -> bool:
        """Tell whether a call to this model should not be repeated."""
        calls, last = self.models.get(model, (0, now))
        return calls >= CALLS and now - last < REST_S
