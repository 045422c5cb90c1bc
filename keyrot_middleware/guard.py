"""Internal errors: logged and survived; raised again inside our own test suite.

A library in the path of every call must not be its outage. Whatever state, secrets or telemetry
raise is caught where it would reach the call, and the call goes on without them. The same guard
re-raises under `raise_internal_errors()`, so that it hides nothing from our tests.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("keyrot_middleware")
_strict = False


def handle_internal_error(room: str) -> None:
    """Log the exception being handled and go on; call it inside an `except` block.

    Raises:
        Exception: The one being handled, under `raise_internal_errors()`.
    """
    error = sys.exc_info()[1]
    if _strict and error is not None:
        raise error
    # The text of a foreign error could hold a secret: its type and place are enough.
    place = error.__traceback__ if error is not None else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
    _log.warning("%s failed (%s at %s); the call goes on without it", room, type(error), where)


@contextmanager
def raise_internal_errors() -> Iterator[None]:
    """Raise internal errors instead of logging them: for tests."""
    global _strict  # noqa: PLW0603 - one switch for the process, as pytest needs it
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before
