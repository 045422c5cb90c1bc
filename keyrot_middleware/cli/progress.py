"""A wait for a key, shown on the terminal of a program that `keyrot run` started."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from ..core.commands import Command, Settle, Sleep
from ..core.model import CallInfo
from ..core.text import one_line
from ..forks import after_fork

__all__ = ["WaitProgress", "wait_progress"]

LEAST_S = 1.0
"""A shorter wait is not shown."""
TICK_S = 0.25
_ERASE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


def wait_progress() -> WaitProgress | None:
    """Return the observer that shows waits; None where stderr is not a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    console = Console(stderr=True, highlight=False)
    return None if console.is_dumb_terminal else WaitProgress(console)


class WaitProgress:
    """Shows the wait that ends first, in one line that is erased when no call waits any more.

    A thread draws it four times a second, only while a call waits.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reset()
        after_fork(self, WaitProgress._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[object, tuple[float, str]] = {}
        """When the wait of each call ends, by `time.monotonic()`, and for what it waits."""
        self._thread: threading.Thread | None = None

    def observe(self, info: CallInfo) -> _CallWaits:
        """Follow the waits of a call."""
        return _CallWaits(self)

    def begin(self, call: object, seconds: float, reason: str) -> None:
        """Show that *call* waits."""
        with self._lock:
            self._waits[call] = (time.monotonic() + seconds, reason)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._draw, name="keyrot-progress", daemon=True
                )
                self._thread.start()

    def end(self, call: object) -> None:
        """Show it no longer."""
        with self._lock:
            self._waits.pop(call, None)

    def _draw(self) -> None:
        """Draw until no call waits; a call that waits again within a tick is not a gap."""
        drawn = False
        while True:
            with self._lock:
                waits = sorted(self._waits.values())
                if not waits:
                    self._thread = None
            if drawn:
                self._console.control(_ERASE)
            if not waits:
                return
            self._console.print(_line(waits), end="\r", no_wrap=True, overflow="ellipsis")
            drawn = True
            time.sleep(TICK_S)


class _CallWaits:
    """Follows one call; an observer (telemetry/observer.py)."""

    __slots__ = ("_failures", "_last", "_progress")

    def __init__(self, progress: WaitProgress) -> None:
        self._progress = progress
        self._failures: dict[str, str] = {}
        """How each key failed in this call: `429 quota_minute`."""
        self._last = ""

    def before(self, command: Command) -> None:
        """Show a wait that begins."""
        if type(command) is Sleep and command.seconds >= LEAST_S:
            self._progress.begin(self, command.seconds, self._reason(command))

    def after(self, command: Command, reply: Any) -> None:
        """Remember how a key failed; end a wait."""
        if type(command) is Sleep:
            self._progress.end(self)
        elif type(command) is Settle and command.outcome.verdict is not None:
            verdict = command.outcome.verdict
            code = "" if verdict.code is None else f"{verdict.code} "
            self._last = self._failures[command.lease.key_id] = f"{code}{verdict.failure}"

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """End a wait that was interrupted."""
        self._progress.end(self)

    def _reason(self, command: Sleep) -> str:
        if command.reason == "retry":
            return f"before the next try ({self._last})" if self._last else "before the next try"
        blocks = command.ticket.blocks if command.ticket is not None else {}
        if not blocks:
            return "for a key"
        key_id = min(blocks, key=lambda one: blocks[one].until)
        return f"for {key_id} ({self._failures.get(key_id, blocks[key_id].reason)})"


def _line(waits: list[tuple[float, str]]) -> Text:
    until, reason = waits[0]
    seconds = max(round(until - time.monotonic()), 0)
    others = len(waits) - 1
    more = "" if not others else f"; {others} more call{'s wait' if others > 1 else ' waits'}"
    return Text(one_line(f"keyrot: waiting {seconds} s {reason}{more}"), style="yellow")
