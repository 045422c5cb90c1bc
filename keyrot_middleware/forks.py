"""What a forked child must not share with its parent: locks, connections, things still to do."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TypeVar

__all__ = ["after_fork"]

_T = TypeVar("_T")


def after_fork(owner: _T, renew: Callable[[_T], object]) -> None:
    """Call *renew* with *owner* in every child forked from now on, as long as it lives there."""
    if not hasattr(os, "register_at_fork"):
        return
    alive = weakref.ref(owner)

    def in_child() -> None:
        mine = alive()
        if mine is not None:
            renew(mine)

    os.register_at_fork(after_in_child=in_child)
