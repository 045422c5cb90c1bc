"""What becomes of calls that nobody drives any more: streams that are dropped, and the like.

Python finalises what is in a garbage cycle in any order. Were a flow among it, it could be closed
before its driver, and could not yield the Settle of its lease any more. What is in `held` is no
garbage, so the driver comes first, and throws.

The collector may come to work in any line of this thread, one that holds a lock among them: of
the state, of a tracer, of logging. To settle takes all of these, and would wait for itself. So
what it finalises is settled by a thread of its own.
"""

from __future__ import annotations

import gc
from _thread import start_new_thread
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, Literal, Protocol

from ..core.commands import Closed, Command, Steps, throw

__all__ = ["Left", "collected", "held", "leave"]

held: Final[set[Steps]] = set()
"""Open streams and calls that a task waits in."""

_at_work: Final[set[int]] = set()
"""The threads in which the garbage collector is at work."""


class Settler(Protocol):
    """What is left to do for a call."""

    def settle_now(self, command: Command) -> object:
        """Settle without a loop to wait in."""

    def finish(self, error: BaseException | None) -> None:
        """Tell who wants to know that the call is over."""


class Left(GeneratorExit):
    """Ends a driver whose call was left: who settles it tells that it is over."""


def collected(error: BaseException) -> bool:
    """Tell whether *error* is the garbage collector's, which ends a driver that it came upon."""
    return isinstance(error, GeneratorExit) and _collecting()


def leave(flow: Steps, perform: Settler) -> None:
    """Settle a call that is given up: at once, or soon where that could wait for itself."""
    if not _collecting():
        _abandon(flow, perform)
        return
    with suppress(RuntimeError):  # no thread begins any more while the interpreter ends
        # Thread.start() would wait, and takes locks of its own.
        start_new_thread(_abandon, (flow, perform))


def _collecting() -> bool:
    return get_ident() in _at_work


def _abandon(flow: Steps, perform: Settler) -> None:
    closed = GeneratorExit()
    try:
        command = throw(flow, closed)
        while True:
            command = flow.send(perform.settle_now(command))
    except (Closed, StopIteration):
        held.discard(flow)
        perform.finish(closed)


def _note(phase: Literal["start", "stop"], _counts: Any) -> None:
    (_at_work.add if phase == "start" else _at_work.discard)(get_ident())


gc.callbacks.append(_note)
