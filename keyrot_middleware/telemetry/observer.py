"""The observer protocol: observers see each command and reply of a call and cannot break it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ..core.commands import Command, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import CallInfo

OnInternalError = Callable[[str], None]
"""Called inside an `except` block with the name of the component that failed."""

_COMPONENT = "telemetry"


class CallObserver(Protocol):
    """Observes one call. Its state lives here, so concurrent calls never mix."""

    def before(self, command: Command) -> None:
        """Handle a command that is about to be performed."""

    def after(self, command: Command, reply: Any) -> None:
        """Handle the reply to *command*; the exception, if it raised one."""

    def attach(self) -> object:
        """Make the attempt current while the SDK's own code runs; return a token or None."""

    def detach(self, token: object) -> None:
        """Undo `attach` before any other code of the caller runs."""

    def finish(self, error: BaseException | None) -> None:
        """Handle the end of the call: it returned, or raised *error*. Called exactly once."""


class Observer(Protocol):
    """Decides for each call whether it is observed."""

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Return an observer of this call; None, at almost no cost, to skip it."""


class PoolEventListener(Protocol):
    """Receives events that affect more than one call. A call that succeeds causes none."""

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Handle a settled failure or the start of a wait."""

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Handle a call for which no key was available."""


class GuardedObserver:
    """Passes everything on to an observer and reports what it raises to *on_error*."""

    __slots__ = ("_observer", "_on_error")

    def __init__(self, observer: CallObserver, on_error: OnInternalError) -> None:
        self._observer = observer
        self._on_error = on_error

    def before(self, command: Command) -> None:
        """Pass it on."""
        try:
            self._observer.before(command)
        except Exception:
            self._on_error(_COMPONENT)

    def after(self, command: Command, reply: Any) -> None:
        """Pass it on."""
        try:
            self._observer.after(command, reply)
        except Exception:
            self._on_error(_COMPONENT)

    def attach(self) -> object:
        """Attach it; return None if that fails."""
        try:
            return self._observer.attach()
        except Exception:
            self._on_error(_COMPONENT)
        return None

    def detach(self, token: object) -> None:
        """Detach it."""
        try:
            self._observer.detach(token)
        except Exception:
            self._on_error(_COMPONENT)

    def finish(self, error: BaseException | None) -> None:
        """Pass it on."""
        try:
            self._observer.finish(error)
        except Exception:
            self._on_error(_COMPONENT)


class CompositeObserver:
    """Several observers as one; each of them is guarded, so all are notified."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        self._observers = observers

    def before(self, command: Command) -> None:
        """Notify every observer."""
        for observer in self._observers:
            observer.before(command)

    def after(self, command: Command, reply: Any) -> None:
        """Notify every observer."""
        for observer in self._observers:
            observer.after(command, reply)

    def attach(self) -> object:
        """Attach every observer; return their tokens."""
        return [observer.attach() for observer in self._observers]

    def detach(self, token: object) -> None:
        """Detach every observer, the last attached first."""
        tokens: list[object] = token  # type: ignore[assignment]  # what attach() returned
        for observer in reversed(self._observers):
            observer.detach(tokens.pop())

    def finish(self, error: BaseException | None) -> None:
        """Notify every observer."""
        for observer in self._observers:
            observer.finish(error)


def notify_listeners(
    listeners: Iterable[object], method: str, on_error: OnInternalError, *args: object
) -> None:
    """Call *method* of each listener; report what it raises to *on_error*."""
    for listener in listeners:
        try:
            getattr(listener, method)(*args)
        except Exception:
            on_error(_COMPONENT)


def observe(
    observers: Sequence[Observer], info: CallInfo, on_error: OnInternalError
) -> CallObserver | None:
    """Return one observer of a call for all *observers*; None if none of them observes it."""
    found: list[CallObserver] = []
    for observer in observers:
        try:
            call_observer = observer.observe(info)
        except Exception:
            on_error(_COMPONENT)
        else:
            if call_observer is not None:
                found.append(GuardedObserver(call_observer, on_error))
    if not found:
        return None
    return found[0] if len(found) == 1 else CompositeObserver(found)
