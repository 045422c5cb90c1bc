"""What became of a call, for the headers of its reply: its key, its attempts, how long it waited.

A task sets `details` before it sends a request, and the observer adds to it what the call does.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ..core.commands import Command, Send, Sleep
from ..core.model import HOME, CallInfo
from ..providers.keys import mask_keys
from ..telemetry import CallObserver

NAMES = frozenset({b"x-keyrot-key", b"x-keyrot-attempts", b"x-keyrot-wait-s"})


class CallDetails(CallObserver):
    """What one request of a program has come to so far, with all models of its chain."""

    __slots__ = ("attempts", "key_id", "waited_s")

    def __init__(self) -> None:
        self.key_id = ""
        self.attempts, self.waited_s = 0, 0.0

    def before(self, command: Command) -> None:
        """Note the key of an attempt."""
        if type(command) is Send:
            self.attempts += 1
            self.key_id = command.lease.key_id

    def after(self, command: Command, reply: Any) -> None:
        """Note how long it has waited for a key, seconds."""
        if type(command) is Sleep and command.reason == "key" and isinstance(reply, float):
            self.waited_s += reply

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers; without an attempt there is no key."""
        key_id = HOME.rstrip(":") if self.key_id.startswith(HOME) else mask_keys(self.key_id)
        named = [(b"x-keyrot-key", key_id.encode())] if key_id else []
        return [
            *named,
            (b"x-keyrot-attempts", b"%d" % self.attempts),
            (b"x-keyrot-wait-s", b"%.3f" % self.waited_s),
        ]


details: ContextVar[CallDetails | None] = ContextVar("details", default=None)
"""Of the request that this task answers; None where nothing asks for them."""


class DetailsObserver:
    """Adds to the `details` of the task that makes a call."""

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Return the details of the current request, if they are asked for."""
        return details.get()
