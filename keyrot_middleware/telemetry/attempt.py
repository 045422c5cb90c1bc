"""The span of one attempt: INTERNAL, open from Send to Settle, current only when asked."""

from __future__ import annotations

import time
from contextvars import Token

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.trace import Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from ..core.commands import Send, Settle
from ..core.model import Kind, Verdict, project_label
from . import names
from .cause import Cause, blame, of_error, of_verdict

__all__ = ["Attempt", "leave"]

_OK = 200
"""Of every success: the SDK raises for all other codes, and keeps this one nowhere."""


class Attempt:
    """One send, and what came of it.

    What became of a failed attempt is known only when the next one starts or the call ends. So
    its span is closed then, with the time of its Settle as its end.
    """

    __slots__ = (
        "_began", "_context", "_failure", "_lent", "_settled_ns", "_span", "cause", "kind",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer, parent: Context, send: Send, pool: str, wanted: float | None
    ) -> None:
        """Start it.

        Args:
            tracer: Makes its span.
            parent: The context of the call's span.
            send: The send that begins.
            pool: The pool's name.
            wanted: Since when a key was wanted, by `time.monotonic`; None: it was there.
        """
        lease = send.lease
        self._began = time.monotonic()
        self._lent = lease.at
        """By the state's clock, which may be another host's or a test's."""
        self._span = tracer.start_span(
            f"attempt {lease.key_id}",
            parent,
            attributes={
                names.POOL: pool,
                names.KEY_ID: lease.key_id,
                names.KEY_PROJECT: project_label(lease.project),
                names.ATTEMPT_NUMBER: send.attempt,
                names.KEYS_EXCLUDED: send.excluded,
                names.WAIT_TIME: self._began - wanted if wanted is not None else 0.0,
            },
        )
        self._context = set_span_in_context(self._span, parent)
        self._settled_ns: int | None = None
        self._failure: dict[str, AttributeValue] = {}
        self.kind = Kind.ABANDONED
        self.cause: Cause | None = None

    def enter(self) -> object:
        """Make it the current span; give the token that `leave` takes."""
        return context.attach(self._context)

    def settle(self, command: Settle, until: float | None) -> None:
        """Take note of what came of it, and until when a key rests (epoch seconds)."""
        self.kind, verdict, _ = command.outcome
        if self.kind is not Kind.SUCCESS:  # which is closed at once
            self._settled_ns = time.time_ns()
        if verdict is None:
            return
        self.cause = of_verdict(verdict, command.error)
        self._failure[names.FAILURE_CLASS] = verdict.failure
        if verdict.code is not None:
            self._failure[names.HTTP_STATUS] = verdict.code
        if until is not None:
            self._rest(command.lease.key_id, verdict, until)

    def _rest(self, key_id: str, verdict: Verdict, until: float) -> None:
        told: dict[str, AttributeValue] = {
            names.KEY_ID: key_id,
            names.FAILURE_CLASS: verdict.failure,
            names.COOLDOWN_SCOPE: verdict.scope.value,
        }
        passed = time.monotonic() - self._began
        seconds = round(max(until - self._lent - passed, 0.0), 3)
        told[names.COOLDOWN_DURATION] = self._failure[names.COOLDOWN_DURATION] = seconds
        event = names.EVENT_RETIRED if verdict.rejected else names.EVENT_COOLDOWN
        self._span.add_event(event, told)

    def close(self, outcome: str, error: BaseException | None = None) -> None:
        """End the span, at the time of the Settle if there was one.

        Args:
            outcome: A value of `keyrot.attempt.outcome`.
            error: What ended the call, for an attempt that nobody judged.
        """
        span = self._span
        span.set_attribute(names.ATTEMPT_OUTCOME, outcome)
        if self.kind is Kind.SUCCESS:
            span.set_attribute(names.HTTP_STATUS, _OK)
        elif self._failure:
            span.set_attributes(self._failure)
        cause = self.cause or of_error(error)
        if cause is not None:
            blame(span, cause)
        span.end(self._settled_ns)


def leave(token: object) -> None:
    """Undo `Attempt.enter`.

    A coroutine that outlived its loop is torn down by the garbage collector in a context that is
    not its own. There is nothing to undo there, and OpenTelemetry's own `detach` would log an
    error, so a token is given back directly.
    """
    if not isinstance(token, Token):
        context.detach(token)  # type: ignore[arg-type]  # another runtime context's own kind
        return
    try:
        token.var.reset(token)
    except ValueError:
        return
