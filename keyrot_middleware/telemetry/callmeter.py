"""How the commands of one call become measurements."""

from __future__ import annotations

import time
from typing import Any

from ..core.commands import Acquire, Command, Opened, Send, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, Kind, Usage
from .cause import Cause, of_error, of_verdict
from .conventions import Asked, known_tokens
from .instruments import Instruments
from .measured import of_attempt, of_pool
from .request import operation_of

__all__ = ["CallMeter"]


class CallMeter:
    """Follow one call, from the moment in which it is made."""

    __slots__ = (
        "_above", "_began", "_info", "_key_id", "_last", "_left", "_pool",
        "_sends", "_sent_at", "_sheet", "_usage", "_wanted",
    )  # fmt: skip

    def __init__(
        self,
        sheet: Instruments,
        info: CallInfo,
        pool: str,
        *,
        above: bool,
    ) -> None:
        """Begin.

        Args:
            sheet: Where to record.
            info: What is asked.
            pool: The pool's name.
            above: Another's instrumentation measures the call; only what is ours is recorded.
        """
        self._began = time.perf_counter()
        self._sheet = sheet
        self._info = info
        self._pool = pool
        self._key_id: str | None = None
        """The key with which a request is under way."""
        self._above = above
        self._sends = 0
        self._sent_at = 0.0
        self._usage = NO_USAGE
        self._wanted: float | None = None
        """Since when a key is wanted."""
        self._left: tuple[str, float] | None = None
        """Key and seconds of an attempt that was abandoned: why, the end of the call tells."""
        self._last: tuple[BaseException | None, Cause | None] = (None, None)
        """The exception of the last failed attempt, and what was said of it."""

    def before(self, command: Command) -> None:
        """Begin to measure what *command* begins."""
        if isinstance(command, Acquire):
            self._want()
        elif isinstance(command, Send):
            self._send(command)
        elif isinstance(command, Sleep) and command.why == "key":
            self._want()  # a call that has failed with every key asks for none before it waits
            self._sheet.pending.add(1, of_pool(self._pool))

    def after(self, command: Command, reply: Any) -> None:
        """Record what came of *command*."""
        if isinstance(command, Settle):
            self._settle(command, rests=isinstance(reply, int | float))
        elif isinstance(command, Send):
            if isinstance(reply, Opened) and not self._above:
                seconds = time.perf_counter() - self._began
                for metrics in self._sheet.calls:
                    metrics.first_chunk(self._names, seconds)
        elif isinstance(command, Sleep) and command.why == "key":
            self._sheet.pending.add(-1, of_pool(self._pool))

    def attach(self) -> None:
        """Do nothing: a measurement makes nothing current."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Record the call as a whole."""
        now = time.perf_counter()
        seconds = now - self._began
        if self._key_id is not None:  # an async stream that was dropped unread, and not settled
            self._left = self._key_id, now - self._sent_at
        sheet, pool, info = self._sheet, self._pool, self._info
        known, cause = self._last
        if error is None or error is not known:
            cause = of_error(error)
        why = cause.type if cause is not None else None
        if self._left is not None:
            key_id, lasted = self._left
            about = of_attempt(pool, key_id, info.model, None, None, why)
            sheet.attempt_duration.record(lasted, about)
        sheet.call_attempts.record(self._sends, of_pool(pool, why))
        if isinstance(error, Exhausted):
            sheet.timeouts.add(1, of_pool(pool))
        if not self._above:
            for metrics in sheet.calls:
                metrics.call(self._names, seconds, self._usage, why)

    def _want(self) -> None:
        if self._wanted is None:
            self._wanted = time.perf_counter()

    def _send(self, command: Send) -> None:
        now = time.perf_counter()
        waited = now - self._wanted if self._wanted is not None else 0.0
        self._sheet.wait_time.record(waited, of_pool(self._pool))
        self._wanted, self._sent_at = None, now
        self._sends += 1
        self._key_id = command.lease.key_id

    def _settle(self, command: Settle, *, rests: bool) -> None:
        seconds = time.perf_counter() - self._sent_at
        self._key_id = None
        key_id, model = command.lease.key_id, self._info.model
        kind, verdict, self._usage = command.outcome
        self._count(key_id, self._usage)
        failure = why = None
        if verdict is not None:
            cause = of_verdict(verdict, command.error)
            self._last = command.error, cause
            failure, why = verdict.failure, cause.type
            if rests:
                about = of_attempt(self._pool, key_id, None, None, failure)
                self._sheet.cooldowns.add(1, about)
        elif kind is not Kind.SUCCESS:
            self._left = key_id, seconds
            return
        about = of_attempt(self._pool, key_id, model, None, failure, why)
        self._sheet.attempt_duration.record(seconds, about)

    def _count(self, key_id: str, usage: Usage) -> None:
        for kind, tokens in known_tokens(usage):
            about = of_attempt(self._pool, key_id, self._info.model, kind)
            self._sheet.key_tokens.add(tokens, about)

    @property
    def _names(self) -> Asked:
        info = self._info
        return self._pool, operation_of(info.verb), info.model, info.host
