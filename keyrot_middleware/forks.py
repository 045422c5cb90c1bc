"""Renew in a forked child what it must not share with its parent: locks, connections."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["after_fork"]

_T = TypeVar("_T")

_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def after_fork(owner: _T, renew: Callable[[_T], object]) -> None:
    """Call *renew* with *owner* in every child that is forked while *owner* lives.

    Args:
        owner: Compared by identity; it needs a `__weakref__`.
        renew: Must not hold on to *owner*: a function of the class, not a bound method.
    """
    _renewals[owner] = renew


def _in_child() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):  # once for the process: a registration cannot be taken back
    os.register_at_fork(after_in_child=_in_child)
