"""Keep values and tokens out of the logs that the stores' libraries write while we read.

botocore's DEBUG lines hold whole answers and session tokens; the libraries of Azure and Google
mask theirs. A program that debugs with the root logger at DEBUG must not find its keys there. Its
own use of the same library logs as before: lines are dropped only in a thread that reads for us.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["hush", "hushed"]

_reading = ContextVar("keyrot_reading_secrets", default=False)


class _OnlyWarnings(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _reading.get()


_FILTER = _OnlyWarnings()


def hush(*names: str) -> None:
    """Let these loggers write no more than warnings inside `hushed()`; asking twice is one."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def hushed() -> Iterator[None]:
    """Read secrets inside this."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)
