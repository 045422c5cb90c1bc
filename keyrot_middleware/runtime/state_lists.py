"""The lists of a state, read row by row: what is no row is skipped, and said once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

from ..core.json_rows import read_rows
from ..core.wording import one_line
from ..errors import warn_unless_logged
from ..state.base import State

_T = TypeVar("_T")


def rows_of(state: State, name: str, read: Callable[[str], _T]) -> list[_T]:
    """Return what the rows of a list say, the latest first; see `read_rows`."""
    return read_rows(state.activity_log(name), read, partial(report_skipped, name))


@lru_cache(1_024)
def report_skipped(name: str) -> None:
    """Say once that a list has a row that cannot be read."""
    text = f"the state's list {one_line(name)} has a row that cannot be read; it is skipped"
    warn_unless_logged(logging.getLogger("keyrot_middleware"), text)
