"""`keyrot run` on a terminal: a line on stderr says for which key calls wait, and until when.

Lines, and no status that is drawn again and again: a status shares the terminal with what the
program writes, and either erases streams and progress bars or is broken by them.

A thread writes, so that no event loop waits for a terminal that is stopped (Ctrl-S).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from ..core.commands import Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import IN_USE, CallInfo
from ..core.waiting import Ticket
from ..core.wording import plural, remaining, utc

SHORT_S = 3.0
"""A wait that is shorter is not said."""
APART_S = 10.0
"""Another wait is said only if it ends so much later than the one that was said last."""
LOOK_S = 1.0


def first_end(tickets: Iterable[Ticket], now: float) -> tuple[float, str]:
    """Return when the first key is expected that a call waits for, and its id; "" if none is.

    Args:
        tickets: Those of all calls that wait. Of a call behind others some times may be past: it
            looks again when its turn comes.
        now: Epoch seconds.
    """
    ends = [
        (block.until, key_id)
        for ticket in tickets
        for key_id, block in ticket.blocks.items()
        if block.reason not in IN_USE and block.until > now
    ]
    return min(ends, default=(now, ""))


class WaitLines:
    """Says on stderr that calls of this process wait; a pool notifies it of its events."""

    def __init__(self, waiting: Mapping[Ticket, None], now: Callable[[], float]) -> None:
        """Say nothing yet.

        Args:
            waiting: The calls that wait, of a pool.
            now: Returns epoch seconds.
        """
        self._waiting, self._now, self._process = waiting, now, os.getpid()
        self._until, self._begun = 0.0, threading.Event()
        threading.Thread(target=self._run, name="keyrot-wait-lines", daemon=True).start()

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Let the thread look when a call begins to wait."""
        del info, reply
        if isinstance(command, Sleep) and os.getpid() == self._process:  # no forked child
            self._begun.set()

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Do nothing: such a call does not wait."""

    def _run(self) -> None:
        while True:
            self._begun.wait()
            self._begun.clear()
            time.sleep(LOOK_S)
            while self._waiting:
                self._look(list(self._waiting))
                time.sleep(LOOK_S)

    def _look(self, tickets: list[Ticket]) -> None:
        now = self._now()
        until, key_id = first_end(tickets, now)
        if until - now < SHORT_S or until < self._until + APART_S:
            return
        self._until = until
        when = f"until {utc(until):%H:%M:%SZ}, {remaining(until - now)}"
        text = f"keyrot: waiting for {key_id}, {when} ({plural(len(tickets), 'call')})\n"
        stream = sys.stderr  # the program's, which may be that of a progress bar
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
            if stream.isatty():
                stream.write(text)  # in one piece, other threads write too
                stream.flush()
