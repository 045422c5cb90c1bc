"""The texts of lists that a state keeps: rows, JSON arrays that processes of any version write.

A row grows at its end only. Of a longer one, a newer version's, the fields that are known are read;
a shorter one, an older version's, has defaults. What no version has written is skipped: it must not
hide the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, TypeVar

_T = TypeVar("_T")

NUMBER = int | float
_MOST = 1e18
"""No number of ours is as large, but for a time that never comes."""


def read_row(text: str | bytes, kinds: Sequence[Any]) -> list[Any]:
    """Read a row.

    Args:
        text: It, as JSON.
        kinds: The class of each field that this version knows, or a union of classes.

    Returns:
        As many of these fields as it has.

    Raises:
        ValueError: It is none.
    """
    try:
        return known_fields(json.loads(text), kinds)
    except RecursionError:
        raise ValueError("brackets in brackets") from None


def known_fields(row: Any, kinds: Sequence[Any]) -> list[Any]:
    """Return the fields of a row, or of one in a row, that this version knows; see `read_row`.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(row, list) or not all(map(_is_good, row, kinds)):
        raise ValueError("no row of this list")
    return row[: len(kinds)]


def _is_good(field: Any, kind: Any) -> bool:
    if not isinstance(field, kind):
        return False
    return not isinstance(field, NUMBER) or abs(field) < _MOST or field == inf


def read_rows(
    texts: Iterable[str], read: Callable[[str], _T], skipped: Callable[[], object]
) -> list[_T]:
    """Return what rows say, in their order.

    Args:
        texts: The rows.
        read: Reads one; raises ValueError or TypeError for what is none.
        skipped: Called for each of these.
    """
    values = list[_T]()
    for text in texts:
        try:
            values.append(read(text))
        except (ValueError, TypeError):  # the latter: it is too short
            skipped()
    return values
