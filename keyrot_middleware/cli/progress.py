"""`keyrot run` on a terminal: the line that says for what calls wait."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any

from ..core.activity import CallRecord
from ..core.commands import Command, Settle, Sleep
from ..core.model import CallInfo
from ..core.text import one_line
from ..telemetry import CallObserver

LEAST_S = 1.0
"""A shorter wait is not shown."""


class WaitProgress:
    """Shows the wait that ends first; an observer (telemetry/__init__.py)."""

    def __init__(self) -> None:
        self._waits: dict[object, tuple[float, str]] = {}
        """When the wait of each call ends, epoch seconds, and for what it waits."""

    def observe(self, info: CallInfo) -> _CallWaits:
        """Follow the waits of a call."""
        return _CallWaits(self)

    def change(self, call: object, wait: tuple[float, str] | None) -> None:
        """Show that *call* waits, or no longer waits."""
        if wait is not None:
            self._waits[call] = wait
        elif self._waits.pop(call, None) is None:
            return
        text, waits = "", sorted(self._waits.copy().values())
        if waits:
            until, reason = waits[0]
            more = f"; {len(waits) - 1} more" if len(waits) > 1 else ""
            text = f"keyrot: waiting until {datetime.fromtimestamp(until):%H:%M:%S} {reason}{more}"
        sys.stderr.write(f"\r\x1b[2K{one_line(text)[:79]}")
        sys.stderr.flush()


class _CallWaits(CallObserver):
    def __init__(self, progress: WaitProgress) -> None:
        self._progress, self._last = progress, ""

    def before(self, command: Command) -> None:
        """Show a wait that begins."""
        if type(command) is Sleep and command.seconds >= LEAST_S:
            blocks = command.ticket.blocks if command.ticket is not None else {}
            first = min(blocks, key=lambda one: blocks[one].until, default="a key")
            last = f" ({self._last})" if self._last else ""
            reason = f"for {first}{last}" if command.reason == "key" else f"before a retry{last}"
            self._progress.change(self, (time.time() + command.seconds, reason))

    def after(self, command: Command, reply: Any) -> None:
        """Remember how a key failed; end a wait."""
        if type(command) is Sleep:
            self._progress.change(self, None)
        elif type(command) is Settle and command.outcome.verdict is not None:
            verdict = command.outcome.verdict
            self._last = f"{verdict.code or ''} {verdict.failure}".strip()

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """End a wait that was interrupted."""
        self._progress.change(self, None)
