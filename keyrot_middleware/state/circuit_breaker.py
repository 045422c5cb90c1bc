"""When to ask something that has failed again: at once never, by everyone never.

A failure opens the breaker; while it is open nobody asks, but one caller every few seconds, whose
success closes it. Who may ask is given a turn, and says with it how it went: a turn of earlier
times, such as a call that was under way when another one failed, changes nothing any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..forks import after_fork

__all__ = ["PAUSE_S", "CircuitBreaker"]

PAUSE_S = 2.0
"""Between two looks at what has failed. Limits have to hold again 5 s after it is back."""


class CircuitBreaker:
    """Closed: everyone may ask. Open: one caller every *pause_s*. Safe for threads and tasks.

    A caller that never says how it went (cancelled, killed) blocks nothing: the next one may look
    after the pause.
    """

    def __init__(self, clock: Callable[[], float], pause_s: float = PAUSE_S) -> None:
        """Begin closed.

        Args:
            clock: Tells seconds that never go back, such as `time.monotonic`.
            pause_s: Between two looks, seconds.
        """
        self._clock = clock
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._turn = 0
        self._since: float | None = None
        self._retry_at = 0.0
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    @property
    def open(self) -> bool:
        """Tell whether it has failed, and was not seen well since."""
        return self._since is not None

    def enter(self) -> int | None:
        """Give a turn to ask; None while nobody may."""
        turn = self._turn  # first, so that a turn of the closed breaker is never one of a look
        return turn if self._since is None else self._look()

    def turn(self) -> int | None:
        """Give a turn where everyone may ask; None while it is open, without a look.

        For questions whose answer would prove nothing: reading works where writing is refused,
        and what is only sent works where nobody answers.
        """
        turn = self._turn
        return turn if self._since is None else None

    def _look(self) -> int | None:
        with self._lock:
            if self._since is None:
                return self._turn
            now = self._clock()
            if now < self._retry_at:
                return None
            self._retry_at = now + self._pause_s
            self._turn += 1
            return self._turn

    def failed(self, turn: int) -> bool:
        """Learn that a turn failed; True where this opens the breaker."""
        with self._lock:
            if turn != self._turn:
                return False
            now = self._clock()
            self._retry_at = now + self._pause_s
            if self._since is not None:
                return False
            self._since = now
            self._turn += 1
            return True

    def succeeded(self, turn: int) -> float | None:
        """Learn that a turn went well; give for how long it was open where this closes it."""
        return None if self._since is None else self._close(turn)

    def _close(self, turn: int) -> float | None:
        with self._lock:
            if self._since is None or turn != self._turn:
                return None
            seconds = self._clock() - self._since
            self._since = None
            return seconds
