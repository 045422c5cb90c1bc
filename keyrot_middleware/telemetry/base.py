"""What watches a call: sinks that see each command and its reply, and can break nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..core.commands import Acquire, Command, Now, Owner, Relay, Send
from ..core.model import CallInfo

__all__ = ["Fault", "Observer", "Watch", "Watches", "untold", "watch"]

Fault = Callable[[str], None]
"""Called inside an `except` block with the name of the room that failed."""


class Watch(Protocol):
    """Follow one call. All its state lives here, for concurrent calls never mix.

    A watch with `thorough` False is told of what changes the pool only (a Settle, a Sleep, a
    Refresh, the end of the call), and is never attached: so it costs a good call next to nothing.
    """

    @property
    def thorough(self) -> bool:
        """Tell whether it wants every command."""

    def before(self, command: Command) -> None:
        """Learn that *command* is about to be performed."""

    def after(self, command: Command, reply: Any) -> None:
        """Learn what came of *command*; its exception where it raised one."""

    def attach(self) -> object:
        """Make the attempt current while the SDK's own code runs; return a token or None."""

    def detach(self, token: object) -> None:
        """Undo `attach`, before anything else of the caller's runs."""

    def finish(self, error: BaseException | None) -> None:
        """Learn that the call is over: returned, or raised *error*. Called exactly once."""


class Observer(Protocol):
    """Decide for each call whether it is watched."""

    def start(self, info: CallInfo) -> Watch | None:
        """Begin to watch a call, or decline at next to no cost."""


class Watches:
    """Several watches as one, none of which can change or break the call."""

    __slots__ = ("_fault", "_watches", "thorough")

    def __init__(self, watches: Sequence[Watch], fault: Fault) -> None:
        self._watches = watches
        self._fault = fault
        self.thorough = any(watch.thorough for watch in watches)

    def before(self, command: Command) -> None:
        """Tell every watch."""
        for one in self._watches:
            self._try(one.before, command)

    def after(self, command: Command, reply: Any) -> None:
        """Tell every watch."""
        for one in self._watches:
            self._try(one.after, command, reply)

    def attach(self) -> object:
        """Attach every watch; give the tokens."""
        return [self._try(one.attach) for one in self._watches]

    def detach(self, token: object) -> None:
        """Detach every watch, the last attached first."""
        tokens: list[object] = token  # type: ignore[assignment]  # what attach() gave
        for one, own in zip(reversed(self._watches), reversed(tokens), strict=True):
            self._try(one.detach, own)

    def finish(self, error: BaseException | None) -> None:
        """Tell every watch."""
        for one in self._watches:
            self._try(one.finish, error)

    def _try(self, told: Callable[..., object], *what: object) -> object:
        try:
            return told(*what)
        except Exception:
            self._fault("telemetry")
            return None


_ROUTINE = frozenset({Now, Acquire, Send, Relay, Owner})
"""What a call that goes well asks for; the other commands change something or wait."""

_UNTOLD = frozenset({Now})


def untold(watch: Watch | None) -> frozenset[type]:
    """Tell which commands a watch is not told of."""
    return _UNTOLD if watch is not None and watch.thorough else _ROUTINE


def watch(observers: Sequence[Observer], info: CallInfo, fault: Fault) -> Watch | None:
    """Start the observers that want this call; None when nobody does."""
    watches = []
    for observer in observers:
        try:
            one = observer.start(info)
        except Exception:
            fault("telemetry")
        else:
            watches += [one] if one is not None else []
    return Watches(watches, fault) if watches else None
