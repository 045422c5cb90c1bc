"""What watches a call: sinks that see each command and its reply, and can break nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ..core.commands import Command, Refresh, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import CallInfo

__all__ = [
    "CallObserver",
    "CompositeObserver",
    "GuardedObserver",
    "Observer",
    "OnInternalError",
    "PoolEventListener",
    "observe",
    "tell",
]

OnInternalError = Callable[[str], None]
"""Called inside an `except` block with the name of the room that failed."""


class CallObserver(Protocol):
    """Follow one call from command to command. Its state lives here: concurrent calls never mix."""

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

    def start(self, info: CallInfo) -> CallObserver | None:
        """Begin to watch a call, or decline at next to no cost."""


class PoolEventListener(Protocol):
    """Learn what is felt by more than one call. A call that goes well is not reported at all."""

    def changed(self, info: CallInfo, command: Settle | Sleep | Refresh, reply: object) -> None:
        """Learn of a settled failure, of a wait that begins, of a key that was looked up again."""

    def refused(self, info: CallInfo, error: Exhausted) -> None:
        """Learn that no key could serve a call."""


class GuardedObserver:
    """A watch that can neither change nor break its call."""

    __slots__ = ("_fault", "_watch")

    def __init__(self, observe: CallObserver, fault: OnInternalError) -> None:
        self._watch = observe
        self._fault = fault

    def before(self, command: Command) -> None:
        """Tell it, and survive what it raises."""
        try:
            self._watch.before(command)
        except Exception:
            self._fault("telemetry")

    def after(self, command: Command, reply: Any) -> None:
        """Tell it, and survive what it raises."""
        try:
            self._watch.after(command, reply)
        except Exception:
            self._fault("telemetry")

    def attach(self) -> object:
        """Attach it; None where it fails."""
        try:
            return self._watch.attach()
        except Exception:
            self._fault("telemetry")
        return None

    def detach(self, token: object) -> None:
        """Detach it, and survive what it raises."""
        try:
            self._watch.detach(token)
        except Exception:
            self._fault("telemetry")

    def finish(self, error: BaseException | None) -> None:
        """Tell it, and survive what it raises."""
        try:
            self._watch.finish(error)
        except Exception:
            self._fault("telemetry")


class CompositeObserver:
    """Several watches as one; each guarded, so that all are notified."""

    __slots__ = ("_watches",)

    def __init__(self, watches: Sequence[CallObserver]) -> None:
        self._watches = watches

    def before(self, command: Command) -> None:
        """Tell every watch."""
        for one in self._watches:
            one.before(command)

    def after(self, command: Command, reply: Any) -> None:
        """Tell every watch."""
        for one in self._watches:
            one.after(command, reply)

    def attach(self) -> object:
        """Attach every watch; give the tokens."""
        return [one.attach() for one in self._watches]

    def detach(self, token: object) -> None:
        """Detach every watch, the last attached first."""
        tokens: list[object] = token  # type: ignore[assignment]  # what attach() gave
        for one in reversed(self._watches):
            one.detach(tokens.pop())

    def finish(self, error: BaseException | None) -> None:
        """Tell every watch."""
        for one in self._watches:
            one.finish(error)


def tell(listeners: Iterable[object], what: str, fault: OnInternalError, *values: object) -> None:
    """Call the method *what* of each listener, and survive what it raises."""
    for one in listeners:
        try:
            getattr(one, what)(*values)
        except Exception:
            fault("telemetry")


def observe(
    observers: Sequence[Observer], info: CallInfo, fault: OnInternalError
) -> CallObserver | None:
    """Start the observers that want this call; None when nobody does."""
    watches: list[CallObserver] = []
    for observer in observers:
        try:
            one = observer.start(info)
        except Exception:
            fault("telemetry")
        else:
            if one is not None:
                watches.append(GuardedObserver(one, fault))
    if not watches:
        return None
    return watches[0] if len(watches) == 1 else CompositeObserver(watches)
