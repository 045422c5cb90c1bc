"""The observer protocol: observers see each command and reply of a call and cannot break it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ..core.activity import CallRecord
from ..core.commands import Command, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import CallInfo

OnInternalError = Callable[[str], None]
"""Called inside an `except` block with the name of the component that failed."""

_COMPONENT = "telemetry"


class CallObserver:
    """Observes one call; does nothing. Its state lives here, so concurrent calls never mix."""

    __slots__ = ()

    def before(self, command: Command) -> None:
        """Handle a command that is about to be performed."""

    def after(self, command: Command, reply: Any) -> None:
        """Handle the reply to *command*; the exception, if it raised one."""

    def attach(self) -> object:
        """Make the attempt current while the SDK's own code runs; return a token or None."""

    def detach(self, token: object) -> None:
        """Undo `attach` before any other code of the caller runs."""

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
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


def tell(listeners: Iterable[object], method: str, on_error: OnInternalError, *args: Any) -> None:
    """Call *method* of each listener; report what it raises to *on_error*."""
    for listener in listeners:
        try:
            getattr(listener, method)(*args)
        except Exception:
            on_error(_COMPONENT)


class CallObservers(CallObserver):
    """The observers of a call as one. What one of them raises is reported, and hides nothing."""

    __slots__ = ("_observers", "_on_error")

    def __init__(self, observers: Sequence[CallObserver], on_error: OnInternalError) -> None:
        self._observers, self._on_error = observers, on_error

    def before(self, command: Command) -> None:
        """Notify every observer."""
        tell(self._observers, "before", self._on_error, command)

    def after(self, command: Command, reply: Any) -> None:
        """Notify every observer."""
        tell(self._observers, "after", self._on_error, command, reply)

    def attach(self) -> object:
        """Attach every observer; return them with their tokens, the last attached first."""
        attached: list[tuple[CallObserver, object]] = []
        for observer in self._observers:
            try:
                attached.insert(0, (observer, observer.attach()))
            except Exception:
                self._on_error(_COMPONENT)
        return attached

    def detach(self, token: object) -> None:
        """Detach every observer that was attached."""
        attached: list[tuple[CallObserver, object]] = token  # type: ignore[assignment]  # see above
        for observer, its_own in attached:
            tell((observer,), "detach", self._on_error, its_own)

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """Notify every observer."""
        tell(self._observers, "finish", self._on_error, error, record)


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
                found.append(call_observer)
    return CallObservers(found, on_error) if found else None
