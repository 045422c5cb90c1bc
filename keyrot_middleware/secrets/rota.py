"""When a store is asked again: arithmetic only, times in seconds of one clock.

All keys once in `ttl_s`, and those without a current value sooner: after `FIRST_S`, then twice as
long each time, up to `ttl_s`. A part of each pause is drawn, so that processes which were started
together do not ask together.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

__all__ = ["FIRST_S", "Rota"]

FIRST_S = 2.0


class Rota:
    """The turns of one store."""

    def __init__(self, ttl_s: float, draw: Callable[[], float], now: float) -> None:
        """Begin.

        Args:
            ttl_s: The longest time without a look-up, more than 0.
            draw: Gives random numbers in [0, 1).
            now: The time.
        """
        self._ttl_s = ttl_s
        self._draw = draw
        self._tries = 0
        # The first turns of processes that start together are spread over half of the time.
        self.whole_at = now + ttl_s * (0.5 + draw() / 2)
        """When all keys are due."""
        self.rest_at = inf
        """When those without a current value are."""

    @property
    def due_at(self) -> float:
        """When anything is due."""
        return min(self.whole_at, self.rest_at)

    def asked(self, now: float) -> bool:
        """Take note that what was due is being asked for; tell whether that is all keys."""
        whole = now >= self.whole_at
        if whole:
            self.whole_at = now + self._ttl_s * (0.9 + self._draw() / 10)
        self.rest_at = inf
        return whole

    def answered(self, now: float, *, failing: bool) -> None:
        """Take note of an answer: whether a key is left without a current value."""
        if not failing:
            self._tries, self.rest_at = 0, inf
        elif self.rest_at == inf:
            pause = min(FIRST_S * 2.0**self._tries, self._ttl_s)
            self._tries = min(self._tries + 1, 30)
            self.rest_at = now + pause * (0.5 + self._draw() / 2)
