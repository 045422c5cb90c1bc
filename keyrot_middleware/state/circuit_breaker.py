"""A circuit breaker: when to call a failed service again.

Two failures in a row open the breaker: one lost reply is no outage. While it is open, one caller
may try after a pause, which doubles with each failure; its success closes the breaker. A caller
gets a permit and reports the result with it. Results with a permit from before the breaker opened
or closed, such as those of calls in flight, change nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..forks import after_fork

__all__ = ["PAUSE_S", "CircuitBreaker"]

FIRST_PAUSE_S, PAUSE_S = 0.1, 2.0
"""Before the first trial, and between two trials at the most. Limits must be shared again 5 s after
the service is back."""


class CircuitBreaker:
    """Closed: every caller may call. Open: one caller after each pause. Safe for threads and tasks.

    A caller that never reports a result (cancelled, killed) blocks nothing: the next one may try
    after the longest pause.
    """

    def __init__(self, clock: Callable[[], float], pause_s: float = PAUSE_S) -> None:
        """Start closed.

        Args:
            clock: Returns monotonic seconds, such as `time.monotonic`.
            pause_s: Between two trials at the most, seconds.
        """
        self._clock = clock
        self._longest_pause_s = pause_s
        self._pause_s = FIRST_PAUSE_S
        self._lock = threading.Lock()
        self._permit = 0
        self._failed = False
        """The last call failed; another failure opens the breaker."""
        self._opened_at: float | None = None
        self._retry_at = 0.0
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    @property
    def is_open(self) -> bool:
        """Return whether the service failed twice in a row and has not succeeded since."""
        return self._opened_at is not None

    def acquire_permit(self) -> int | None:
        """Return a permit to call; None while no call is allowed."""
        permit = (
            self._permit
        )  # read first, so that a permit of the closed breaker is never that of a trial
        return permit if self._opened_at is None else self._permit_trial()

    def permit_if_closed(self) -> int | None:
        """Return a permit if the breaker is closed; None while it is open, even for a trial.

        For calls whose success proves nothing: reading works where writing is refused, and sending
        works where no reply comes.
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
            self._retry_at = now + self._longest_pause_s
            self._permit += 1
            return self._permit

    def record_failure(self, permit: int) -> bool:
        """Record a failure; return whether it opens the breaker."""
        with self._lock:
            if permit != self._permit:
                return False
            now = self._clock()
            if self._opened_at is not None:
                self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
                self._retry_at = now + self._pause_s
                return False
            if not self._failed:
                self._failed = True
                return False
            self._failed, self._opened_at = False, now
            self._pause_s = min(FIRST_PAUSE_S, self._longest_pause_s)
            self._retry_at = now + self._pause_s
            self._permit += 1
            return True

    def record_success(self, permit: int) -> float | None:
        """Record a success; return for how long the breaker was open if this closes it."""
        self._failed = False
        return None if self._opened_at is None else self._close(permit)

    def _close(self, permit: int) -> float | None:
        with self._lock:
            if self._opened_at is None or permit != self._permit:
                return None
            seconds = self._clock() - self._opened_at
            self._opened_at = None
            return seconds
