"""`keyrot run` on a terminal: below the program's own lines it says for which key calls wait.

The program's cursor stays where it is, and only what stands behind it is erased. So the program may
write meanwhile, half a line, a stream or a progress bar: a status of rich would erase the line on
which the program writes.

A thread draws, in one `os.write` each time. No event loop waits for a terminal that is stopped
(Ctrl-S), and at the end of the program no lock of a stream is held.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

from ..core.commands import Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import IN_USE, CallInfo
from ..core.text import plural, remaining, utc
from ..core.waiting import Ticket

if sys.platform != "win32":
    import termios

SHORT_S = 1.0
"""A wait that is shorter is not shown, nor its last second: the program writes when it ends."""
REDRAW_S = 0.1
"""The program may have written over it."""
EXIT_S = 0.2
"""How long the end of the program waits until it is erased."""

# Erase the rest of the line. Ensure that there is a line below: go down, which scrolls at the end
# of the screen, and up. Save the cursor; write into the line below, without a break at its end, and
# erase its rest; back to the saved cursor.
DRAW = "\x1b[K\x1bD\x1bM\x1b7\x1b[B\r\x1b[?7l{}\x1b[K\x1b[?7h\x1b8"


def describe_waits(tickets: Sequence[Ticket], now: float) -> str:
    """Say for which key calls wait; empty if that ends soon, or with another call.

    Args:
        tickets: Those of all calls that wait.
        now: Epoch seconds.
    """
    blocks = [
        (block.until, key_id)
        for ticket in tickets
        for key_id, block in ticket.blocks.items()
        if block.reason not in IN_USE
    ]
    until, key_id = min(blocks, default=(now, ""))
    if until - now < SHORT_S:
        return ""
    when = f"until {utc(until):%H:%M:%SZ}, {remaining(until - now)}"
    return f"keyrot: waiting for {key_id}, {when} ({plural(len(tickets), 'call')})"


class WaitDisplay:
    """Shows that calls of this process wait; a pool notifies it as a listener of its events."""

    def __init__(
        self, terminal: int, waiting: Mapping[Ticket, None], now: Callable[[], float]
    ) -> None:
        """Show nothing yet.

        Args:
            terminal: The number of its open file.
            waiting: The calls that wait, of a pool.
            now: Returns epoch seconds.
        """
        self._terminal, self._waiting, self._now = terminal, waiting, now
        self._process = os.getpid()
        self._is_shown = False
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyrot-wait-display", daemon=True)
        self._thread.start()
        atexit.register(self._end)
        self._print_error, sys.excepthook = sys.excepthook, self._on_error

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Let the thread look when a call begins to wait."""
        del info, reply
        if isinstance(command, Sleep) and os.getpid() == self._process:  # no forked child
            self._begun.set()

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Do nothing: such a call does not wait."""

    def _run(self) -> None:
        while not self._ended.is_set():
            self._begun.wait()
            self._begun.clear()
            self._ended.wait(SHORT_S)
            while self._waiting and not self._ended.is_set():
                self._show(describe_waits(list(self._waiting), self._now()))
                self._ended.wait(REDRAW_S)
            self._show("")

    def _show(self, text: str) -> None:
        """Draw a text, or erase it; not where another draws on the whole screen or edits a line."""
        if not text and not self._is_shown:
            return
        with suppress(OSError, termios.error):
            is_in_front = os.tcgetpgrp(self._terminal) == os.getpgrp()
            if is_in_front and termios.tcgetattr(self._terminal)[3] & termios.ICANON:
                os.write(self._terminal, DRAW.format(text).encode())
        self._is_shown = bool(text)

    def _on_error(
        self, kind: type[BaseException], error: BaseException, frames: TracebackType | None
    ) -> None:
        """Erase before Python prints the error that ends the program, such as that of a Ctrl-C."""
        self._end()
        self._print_error(kind, error, frames)

    def _end(self) -> None:
        if os.getpid() == self._process:
            self._ended.set()
            self._begun.set()
            self._thread.join(EXIT_S)
