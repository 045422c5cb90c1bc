"""How long the exit of the interpreter may wait for what is under way, in all."""

from __future__ import annotations

import time

EXIT_S = 1.5
"""With what Python itself does, a program exits within about two seconds."""

_until: float | None = None


def time_left() -> float:
    """Return the seconds that the exit may still wait; they begin with the first call.

    However many pools and receivers there are, they share this time.
    """
    global _until  # noqa: PLW0603 - a process exits once
    now = time.monotonic()
    if _until is None:
        _until = now + EXIT_S
    return max(_until - now, 0.0)
