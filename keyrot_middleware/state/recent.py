"""Tables that forget their oldest entry when they are full."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

__all__ = ["keep"]

_T = TypeVar("_T")


def keep(table: OrderedDict[str, _T], name: str, value: _T, most: int) -> None:
    """Put *value* into *table* as its newest; *most* entries stay."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > most:
        table.popitem(last=False)
