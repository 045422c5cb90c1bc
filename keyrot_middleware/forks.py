"""Begin and end of a process: what a child must not share, and how long the exit may take."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

_T = TypeVar("_T")

_Preparation = tuple[Callable[[Any], object], Callable[[Any], object]]
_preparations: weakref.WeakKeyDictionary[Any, _Preparation] = weakref.WeakKeyDictionary()
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def after_fork(owner: _T, renew: Callable[[_T], object]) -> None:
    """Call *renew* with *owner* in every child that is forked while *owner* lives.

    Args:
        owner: Compared by identity; it needs a `__weakref__`.
        renew: Must not hold on to *owner*: a function of the class, not a bound method.
    """
    _renewals[owner] = renew


def around_fork(
    owner: _T, before: Callable[[_T], object], after_in_parent: Callable[[_T], object]
) -> None:
    """Call *before* in the forking thread, and *after_in_parent* there when it has forked.

    Both with *owner*, while it lives, and under the conditions of `after_fork`.
    """
    _preparations[owner] = before, after_in_parent


def _before() -> None:
    for owner, (before, _) in list(_preparations.items()):
        before(owner)


def _in_parent() -> None:
    for owner, (_, after) in list(_preparations.items()):
        after(owner)


def _in_child() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):  # once for the process: a registration cannot be taken back
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


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


HOST_CHARS = 64
"""The longest name of a host in a state."""


@cache
def _host_name() -> str:
    return socket.gethostname()[:HOST_CHARS] or "localhost"


def process_name() -> str:
    """Return how a state and its readers name this process: `host:pid`; its own after a fork."""
    return f"{_host_name()}:{os.getpid()}"
