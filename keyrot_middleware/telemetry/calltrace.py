"""How the commands of one call become its spans and their events."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from ..core.commands import Acquire, Command, Opened, Refresh, Send, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import CallInfo, Kind
from . import names
from .attempt import Attempt, leave
from .callspan import CallSpan, NoSpan, OwnSpan, span_above, span_of_stream
from .cause import Cause, of_error
from .wording import blocked

__all__ = ["CallTrace"]


class CallTrace:
    """Follow one call. Spans begin with its first command: a stream may never be read."""

    __slots__ = (
        "_attempt", "_call", "_degraded", "_here", "_info", "_last",
        "_own", "_pool", "_tracer", "_wanted",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer, here: Context, info: CallInfo, pool: str, *, own: bool = True
    ) -> None:
        """Follow a call that is made in the context *here*; *own*: with a span for all of it."""
        self._tracer = tracer
        self._here = here
        self._info = info
        self._pool = pool
        self._own = own
        self._call: CallSpan | None = None
        self._attempt: Attempt | None = None
        """The one under way, or one that failed and is not closed yet."""
        self._last: tuple[BaseException | None, Cause | None] = (None, None)
        """The exception of the last failed attempt, and what we said of it."""
        self._wanted: float | None = None
        """Since when a key is wanted."""
        self._degraded = False

    def before(self, command: Command) -> None:
        """Start what *command* starts."""
        call = self._call or self._open()
        if type(command) is Acquire:
            self._want()
        elif type(command) is Send:
            self._send(call, command)
        elif type(command) is Sleep:
            if command.why == "key":
                self._want()  # a call that has failed with every key asks for none before it waits
            if command.begins:
                told = {names.WAIT_SECONDS: command.seconds, names.WAIT_REASON: command.why}
                call.event(names.EVENT_WAIT, {**told})

    def after(self, command: Command, reply: Any) -> None:
        """Take note of what came of *command*."""
        if type(command) is Settle:
            self._settle(command, reply if isinstance(reply, float) else None)
        elif type(command) is Send:
            if type(reply) is Opened and self._call is not None:
                self._call.first_chunk()
        elif type(command) is Refresh and reply is True and self._call is not None:
            self._call.event(names.EVENT_REPLACED, {names.KEY_ID: command.key_id})

    def attach(self) -> object:
        """Make the attempt current; what the SDK does now is its child."""
        return self._attempt.enter() if self._attempt is not None else None

    def detach(self, token: object) -> None:
        """Make current what was before."""
        if token is not None:
            leave(token)

    def finish(self, error: BaseException | None) -> None:
        """End what is open."""
        if self._attempt is not None:
            judged = self._attempt.cause is not None
            self._attempt.close(names.FAIL if judged else names.ABANDONED, error)
            self._attempt = None
        if self._call is None:
            return
        if isinstance(error, Exhausted):
            self._call.event(names.EVENT_EXHAUSTED, {names.BLOCKED_KEYS: blocked(error)})
        known, cause = self._last
        self._call.finish(cause if error is not None and error is known else of_error(error))

    def _open(self) -> CallSpan:
        here, info, pool = self._here, self._info, self._pool
        call: CallSpan | None = span_above(here, info, pool) or span_of_stream(here, info, pool)
        if call is None:
            call = OwnSpan(self._tracer, here, info, pool) if self._own else NoSpan(here)
        self._call = call
        return call

    def _want(self) -> None:
        if self._wanted is None:
            self._wanted = time.monotonic()

    def _send(self, call: CallSpan, command: Send) -> None:
        if self._attempt is not None:
            self._attempt.close(names.RETRY)
        lease = command.lease
        if (lease.degraded or lease.books is None) and not self._degraded:
            self._degraded = True  # the state is down: booked by this process alone, or nowhere
            call.event(names.EVENT_DEGRADED, {names.KEY_ID: lease.key_id})
        call.attempt(lease.key_id)
        self._attempt = Attempt(self._tracer, call.inside, command, self._pool, self._wanted)
        self._wanted = None

    def _settle(self, command: Settle, until: float | None) -> None:
        attempt, call = self._attempt, self._call
        if attempt is None or call is None:
            return
        attempt.settle(command, until)
        self._last = command.error, attempt.cause
        call.usage(command.outcome.usage)
        if attempt.kind is Kind.SUCCESS:
            attempt.close(names.SUCCESS)
            self._attempt = None
