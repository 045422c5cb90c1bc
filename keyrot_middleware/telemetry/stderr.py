"""Log lines on stderr, while a program that knows nothing of us has not set up logging yet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import KeyrotWarning
from . import names

__all__ = ["told_on_stderr"]


@contextmanager
def told_on_stderr(level: int | None = None) -> Iterator[None]:
    """Show what the library logs: warnings while inside, and from *level* up for good.

    All that is a `KeyrotWarning` inside is a log line as well, so that it is not shown twice.
    """
    log = logging.getLogger(names.INSTRUMENTATION)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("keyrot: %(message)s"))
    handler.setLevel(logging.WARNING if level is None else level)
    log.addHandler(handler)
    if level is not None:
        log.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KeyrotWarning)
            yield
    finally:
        if level is None:
            log.removeHandler(handler)
