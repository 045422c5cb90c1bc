"""Do what a flow asks for. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..core.commands import (
    Acquire,
    Command,
    Now,
    Owner,
    Refresh,
    Send,
    Settle,
    Sleep,
)
from ..core.flow import Exhausted
from ..core.model import CallInfo, Lease, Unavailable
from ..telemetry.base import Watch, tell
from .guard import fault
from .pool import Pool, unbooked

__all__ = ["Performer"]


class Performer:
    """The parts of a pool at the service of one call, blocking the thread."""

    __slots__ = ("_info", "_pool", "_send_request", "watch")

    def __init__(
        self,
        pool: Pool,
        info: CallInfo,
        send: Callable[[Lease], Any],
        watch: Watch | None = None,
    ) -> None:
        """Serve one call.

        Args:
            pool: Its parts.
            info: The call.
            send: Sends the request with a lease's key; gives a Done, an Opened or a Failed.
            watch: Is told of every command.
        """
        self._pool = pool
        self._info = info
        self._send_request = send
        self.watch = watch

    def __call__(self, command: Command) -> Any:
        """Perform *command*, watched; give its reply."""
        watch = self.watch
        if watch is None:
            return self.does[type(command)](self, command)
        watch.before(command)
        try:
            reply = self.does[type(command)](self, command)
        except BaseException as error:
            watch.after(command, error)
            raise
        watch.after(command, reply)
        return reply

    def settle_now(self, command: Command) -> Any:
        """Perform what is left of a call that is given up, without a loop to wait in."""
        watch = self.watch
        if watch is not None:
            watch.before(command)
        reply = Performer.does[type(command)](self, command)
        if watch is not None:
            watch.after(command, reply)
        return reply

    def finish(self, error: BaseException | None) -> None:
        """Tell who wants to know that the call is over."""
        if isinstance(error, Exhausted):
            tell(self._pool.chronicles, "refused", fault, self._info, error)
        if self.watch is not None:
            self.watch.finish(error)

    def changed(self, command: Settle | Sleep | Refresh, reply: object = None) -> None:
        """Tell who wants to know what more than one call will feel."""
        tell(self._pool.chronicles, "changed", fault, self._info, command, reply)

    def _now(self, _command: Now) -> tuple[float, float]:
        return self._pool.clock.time(), self._pool.draw()

    def _acquire(self, command: Acquire) -> Lease | Unavailable:
        try:
            return self._pool.state.acquire(command.info, command.candidates, spread=command.spread)
        except Exception:
            fault("state")
            return unbooked(command, self._pool.clock.time())

    def _send(self, command: Send) -> Any:
        watch = self.watch
        if watch is None:
            return self._send_request(command.lease)
        token = watch.attach()
        try:
            return self._send_request(command.lease)
        finally:
            watch.detach(token)

    def _settle(self, command: Settle) -> float | None:
        until = None
        try:
            if command.lease.books is not None:
                until = self._pool.state.settle(command.lease, command.outcome, command.names)
        except Exception:
            fault("state")
        return self._settled(command, until)

    def _settled(self, command: Settle, until: float | None) -> float | None:
        if command.outcome.verdict is not None:
            self._pool.witness(command)
            self.changed(command, until)
        return until

    def _owner(self, command: Owner) -> tuple[str, str] | None:
        try:
            return self._pool.state.owner(command.names)
        except Exception:
            fault("state")
            return None

    def _refresh(self, command: Refresh) -> bool:
        replaced = self._look_up(command)
        self.changed(command, replaced)
        return replaced

    def _look_up(self, command: Refresh) -> bool:
        return self._pool.refresh(command.key_id, wait=command.wait)

    def _sleep(self, command: Sleep) -> None:
        self.changed(command)
        self._pool.clock.sleep(command.seconds)

    does: ClassVar[Mapping[type, Callable[[Any, Any], Any]]] = {
        Now: _now,
        Acquire: _acquire,
        Send: _send,
        Settle: _settle,
        Owner: _owner,
        Refresh: _refresh,
        Sleep: _sleep,
    }
