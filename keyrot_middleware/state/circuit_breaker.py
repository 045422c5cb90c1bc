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
        self._permit = 0
        self._opened_at: float | None = None
        self._retry_at = 0.0
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    @property
    def is_open(self) -> bool:
        """Return whether it has failed, and was not seen well since."""
        return self._opened_at is not None

    def acquire_permit(self) -> int | None:
        """Return a turn to ask; None while nobody may."""
        permit = self._permit  # first, so that a turn of the closed breaker is never one of a look
        return permit if self._opened_at is None else self._permit_trial()

    def permit_if_closed(self) -> int | None:
        """Return a turn where everyone may ask; None while it is open, without a look.

        For questions whose answer would prove nothing: reading works where writing is refused,
        and what is only sent works where nobody answers.
        """
        permit = self._permit
        return permit if self._opened_at is None else None

    def _permit_trial(self) -> int | None:
        with self._lock:
            if self._opened_at is None:
                return self._permit
            now = self._clock()
            if now < self._retry_at:
                return None
            self._retry_at = now + self._pause_s
            self._permit += 1
            return self._permit

    def record_failure(self, permit: int) -> bool:
        """Learn that a turn failed; True where this opens the breaker."""
        with self._lock:
            if permit != self._permit:
                return False
            now = self._clock()
            self._retry_at = now + self._pause_s
            if self._opened_at is not None:
                return False
            self._opened_at = now
            self._permit += 1
            return True

    def record_success(self, permit: int) -> float | None:
        """Learn that a turn went well; give for how long it was open where this closes it."""
        return None if self._opened_at is None else self._close(permit)

    def _close(self, permit: int) -> float | None:
        with self._lock:
            if self._opened_at is None or permit != self._permit:
                return None
            seconds = self._clock() - self._opened_at
            self._opened_at = None
            return seconds
