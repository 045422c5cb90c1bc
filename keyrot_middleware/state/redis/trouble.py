"""What a state in Redis raises when it cannot know or cannot book."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from ...core.text import one_line
from ...errors import KeyrotError
from .place import Place

__all__ = ["RedisTrouble", "hushed"]

_ECHO = re.compile(r",? with args\b.*", re.DOTALL)
"""Servers repeat what they did not understand, and that may be `AUTH` with its password."""


class RedisTrouble(KeyrotError):  # noqa: N818 - not a bug of anybody's
    """Say that the server was not reached in time, or refused; what it said is the cause.

    Whether a script ran is unknown when its answer is what did not come.
    """

    def __init__(self, where: str, error: BaseException) -> None:
        why = one_line(_ECHO.sub("", str(error))) or type(error).__name__
        super().__init__(f"{where}: {why}")


@contextmanager
def hushed(place: Place) -> Iterator[None]:
    """Take passwords out of what a server says while it is logged in to, the cause included."""
    try:
        yield
    except RedisError as error:
        error.args = (_without(place.passwords, _ECHO.sub("", str(error))),)
        raise


def _without(passwords: Iterator[str], text: str) -> str:
    for password in passwords:
        text = re.sub(rf"(?<!\w){re.escape(password)}(?!\w)", "[redacted]", text)
    return text
