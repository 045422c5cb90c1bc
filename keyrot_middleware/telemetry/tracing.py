"""Spans: one for a call, and in it one for each attempt.

No span is current while the caller's code runs. The context of the call is captured when it
starts, every span has an explicit parent, and an attempt is the current span only between `attach`
and `detach`, around the SDK's own code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import Token
from functools import lru_cache
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    Tracer,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

from .._version import __version__
from ..core.activity import CallRecord
from ..core.commands import Acquire, Command, Send, Settle, Sleep
from ..core.failures import quotable
from ..core.flow import Exhausted
from ..core.model import CallInfo, LeaseOutcome, project_name
from ..core.wording import one_line
from ..providers.keys import mask_keys
from . import CallObserver, semconv
from .logs import format_blocked_keys
from .otel import CurrentProvider, is_suppressed
from .semconv import (
    Attributes,
    Conventions,
    ErrorCause,
    cause_from_error,
    cause_from_verdict,
    covering_span,
    operation_name,
    record_error,
    request_attributes,
)

_USAGE_ATTRIBUTES = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.reasoning.output_tokens",
    semconv.GEN_AI_RESPONSE_MODEL,
    "gen_ai.response.id",
    "gen_ai.response.finish_reasons",
)
"""In the order of the first fields of `Usage`."""


_CACHE_WRITE = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
)
"""By the old conventions, and by the new ones."""
_OLD = Conventions()


class CallTracer(CallObserver):
    """Traces one call. Its spans start with its first command: a stream may never be read."""

    __slots__ = (
        "_acquire_since", "_attempt", "_cache_write", "_call_spans", "_cost", "_ctx", "_describes",
        "_info", "_is_own", "_last_failure", "_parent", "_pool", "_redact", "_span", "_tracer",
    )  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        ctx: Context,
        info: CallInfo,
        pool: str,
        redact: Callable[[str], str],
        *,
        call_spans: bool,
        cache_write: Sequence[str],
    ) -> None:
        """Trace a call made in the context *ctx*.

        Args:
            tracer: That of the provider.
            ctx: The context.
            info: The call.
            pool: The name of the pool.
            redact: Hides keys in what a service wrote.
            call_spans: Record a span for the whole call.
            cache_write: The attributes with the tokens that were written to a cache.
        """
        self._cache_write = cache_write
        self._tracer, self._ctx, self._info, self._pool = tracer, ctx, info, pool
        self._redact = redact
        self._call_spans = call_spans
        self._span: Span | None = None
        """That of the call: ours, or one of another instrumentation, which describes the call too,
        or whichever is current if the call is to have none."""
        self._is_own = self._describes = False
        self._parent = ctx
        self._attempt: Span | None = None
        self._acquire_since: float | None = None
        self._cost: float | None = None
        self._last_failure: tuple[BaseException | None, ErrorCause | None] = (None, None)
        """The exception of the last failed attempt, and its cause."""

    def before(self, command: Command) -> None:
        """Start what *command* starts."""
        if self._span is None:
            self._open()
        kind = type(command)
        if kind is Send:
            self._send(command)  # type: ignore[arg-type]  # narrowed by its type
        elif self._acquire_since is None and (
            kind is Acquire or (type(command) is Sleep and command.reason == "key")
        ):  # a call that has failed with every key waits first and acquires afterwards
            self._acquire_since = time.monotonic()
        if type(command) is Sleep and command.starts_wait:
            wait: Attributes = {
                "keyrot.wait.seconds": command.seconds,
                "keyrot.wait.reason": command.reason,
            }
            self._event("keyrot.wait", wait)

    def after(self, command: Command, reply: Any) -> None:
        """Record the result of *command*."""
        if type(command) is Settle:
            self._settle(command, reply if isinstance(reply, float) else None)

    def attach(self) -> object:
        """Make the attempt the current span while the SDK's code runs."""
        if self._attempt is None:
            return None
        return context.attach(set_span_in_context(self._attempt, self._parent))

    def detach(self, token: object) -> None:
        """Restore the previous current span.

        The garbage collector closes a coroutine that outlived its loop in another context. Nothing
        is attached there, and OpenTelemetry's `detach` would log an error, so the token is reset.
        """
        if isinstance(token, Token):
            try:
                token.var.reset(token)
            except ValueError:
                return
        elif token is not None:
            context.detach(token)  # type: ignore[arg-type]  # another runtime context's own type

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """End the open spans."""
        last_error, cause = self._last_failure
        if error is None or error is not last_error:
            cause = cause_from_error(error, self._info.platform)
        self._end_attempt(LeaseOutcome.ABANDONED, cause)
        call = self._span
        if call is None:
            return
        if isinstance(error, Exhausted):
            blocked = format_blocked_keys(error.unavailable.blocks)
            self._event("keyrot.pool.exhausted", {"keyrot.pool.blocked_keys": blocked})
        if self._describes and call.is_recording():
            call.set_attributes(self._call_end(record))  # in one step, since each costs a lock
        if self._is_own:
            if cause is not None:
                record_error(call, cause)
            call.end()

    def _call_end(self, record: CallRecord) -> Attributes:
        count = len(record.attempts)
        attributes: Attributes = {semconv.POOL: self._pool, "keyrot.attempt.count": count}
        if self._cost is not None:
            attributes[semconv.COST] = self._cost
        if count:
            attributes[semconv.KEY_ID] = record.attempts[-1].key_id
        if self._is_own:
            for name, value in zip(_USAGE_ATTRIBUTES, record.usage, strict=False):
                if value is not None and value != ():
                    attributes[name] = value
            if written := dict(record.usage.details).get("cache_write_tokens"):
                attributes |= dict.fromkeys(self._cache_write, written)
            if record.first_chunk_s:
                attributes["gen_ai.response.time_to_first_chunk"] = record.first_chunk_s
        return attributes

    def _event(self, name: str, attributes: Attributes) -> None:
        """Add an event to the call, unless another instrumentation has ended its span."""
        if self._span is not None and self._span.is_recording():
            self._span.add_event(name, attributes)

    def _open(self) -> None:
        ctx, info = self._ctx, self._info
        covering = covering_span(ctx, info)
        if covering is not None or not self._call_spans:
            call, self._describes = covering or get_current_span(ctx), covering is not None
        else:
            name, attributes = _call_start(
                info.verb, info.model, info.host, info.stream, info.platform
            )
            call = self._tracer.start_span(name, ctx, SpanKind.CLIENT, attributes)
            self._is_own = self._describes = True
            self._parent = set_span_in_context(call, ctx)
        self._span = call
        if info.models_tried:
            models: Attributes = {
                semconv.FALLBACK_FROM: info.models_tried[-1],
                "keyrot.model_fallback.to": info.model,
            }
            self._event("keyrot.model_fallback", models)

    def _send(self, command: Send) -> None:
        lease, now = command.lease, time.monotonic()
        since = now if self._acquire_since is None else self._acquire_since
        attributes: Attributes = {
            semconv.POOL: self._pool,
            semconv.KEY_ID: lease.key_id,
            "keyrot.attempt.number": command.attempt,
            "keyrot.acquire.wait_time": now - since,
        }
        if (project := project_name(lease.project)) is not None:
            attributes["keyrot.key.project"] = project
        name = f"attempt {lease.key_id}"
        self._attempt = self._tracer.start_span(name, self._parent, attributes=attributes)
        self._acquire_since = None

    def _settle(self, command: Settle, until: float | None) -> None:
        outcome, verdict, usage, _ = command.outcome
        attempt, cause = self._attempt, None
        if verdict is not None:
            cause = cause_from_verdict(verdict, command.error)
            self._last_failure = command.error, cause
        if attempt is None:
            return
        cost = usage.cost_usd
        if cost is not None:
            self._cost = (self._cost or 0.0) + cost
            attempt.set_attribute(semconv.COST, cost)
        code = 200 if verdict is None else verdict.code
        code = None if outcome is LeaseOutcome.ABANDONED else code
        if code is not None:
            attempt.set_attribute("http.response.status_code", code)
        if verdict is not None:
            attempt.set_attribute(semconv.FAILURE_CLASS, verdict.failure)
            if verdict.message:
                said = one_line(quotable(verdict.failure, self._redact(verdict.message)))
                attempt.set_attribute(semconv.FAILURE_MESSAGE, said)
            if until is not None:
                about: Attributes = {
                    semconv.KEY_ID: command.lease.key_id,
                    semconv.FAILURE_CLASS: verdict.failure,
                    "keyrot.cooldown.scope": verdict.scope.value,
                    "keyrot.cooldown.duration": round(max(until - command.lease.at, 0.0), 3),
                }
                name = "keyrot.key.retired" if verdict.rejected else "keyrot.cooldown"
                attempt.add_event(name, about)
        if outcome is not LeaseOutcome.ABANDONED:  # else its error is known at the call's end
            self._end_attempt(outcome, cause)

    def _end_attempt(self, outcome: LeaseOutcome, cause: ErrorCause | None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.set_attribute("keyrot.attempt.outcome", outcome.value)
            if cause is not None:
                record_error(attempt, cause)
            attempt.end()


@lru_cache(maxsize=1024)
def _call_start(
    verb: str, model: str, host: str, stream: bool, platform: str
) -> tuple[str, Attributes]:
    """Return name and first attributes of a call's span; the SDK copies them."""
    operation = operation_name(verb)
    attributes = request_attributes(operation, model, host, platform)
    if stream:
        attributes["gen_ai.request.stream"] = True
    return (f"{operation} {model}" if model else operation), attributes


class TracingObserver:
    """Traces calls, as long as the program has a tracer provider."""

    def __init__(
        self,
        pool_name: str,
        tracer_provider: TracerProvider | None = None,
        *,
        call_spans: bool = True,
        conventions: Conventions = _OLD,
    ) -> None:
        """Trace the calls of a pool.

        Args:
            pool_name: The value of `keyrot.pool.name`.
            tracer_provider: None: the global one, which may be set later.
            call_spans: Record a span for each call; False: spans for attempts only.
            conventions: Which names the attributes of a span have that were renamed.
        """
        names = zip(_CACHE_WRITE, conventions, strict=True)
        self._cache_write = [name for name, is_used in names if is_used]
        self._pool = pool_name
        self.redact: Callable[[str], str] = mask_keys
        """Hides keys in what a service wrote."""
        self._call_spans = call_spans
        get = trace.get_tracer_provider if tracer_provider is None else lambda: tracer_provider
        self._tracer = CurrentProvider(get, _get_tracer)

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Trace a call, unless nothing records it or instrumentation is suppressed."""
        tracer = self._tracer()
        if tracer is None:
            return None
        ctx = context.get_current()
        if is_suppressed(ctx):
            return None
        return CallTracer(
            tracer,
            ctx,
            info,
            self._pool,
            self.redact,
            call_spans=self._call_spans,
            cache_write=self._cache_write,
        )


def _get_tracer(provider: TracerProvider) -> Tracer | None:
    """Return our tracer; None if the provider records nothing."""
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(semconv.INSTRUMENTATION, __version__)
    return None if isinstance(tracer, NoOpTracer) else tracer
