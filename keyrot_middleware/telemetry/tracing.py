"""Spans: one per call, unless a parent instrumentation has one, and one per attempt inside it.

No span is current while the caller's code runs. The context of the call is captured when it
starts, every span has an explicit parent, and an attempt is the current span only between `attach`
and `detach`, around the SDK's own code.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextvars import Token
from typing import Any, Protocol

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
from opentelemetry.util.types import AttributeValue

from .._version import __version__
from ..core.commands import Acquire, Command, Refresh, Send, Settle, Sleep, StreamOpened
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, LeaseOutcome, Usage, Verdict, project_name
from . import semconv
from .attributes import (
    ErrorCause,
    call_span_start,
    cause_from_error,
    cause_from_verdict,
    operation_name,
    record_error,
    usage_attributes,
)
from .log_text import format_blocked_keys
from .observer import CallObserver
from .otel_api import CurrentProvider, is_suppressed

__all__ = [
    "AttemptSpan",
    "CallSpan",
    "CallTracer",
    "ForeignSpan",
    "LogicalSpan",
    "NoSpan",
    "TracingObserver",
    "detach_token",
    "find_foreign_span",
]

# The span of one attempt: INTERNAL, open from Send to Settle, current only while attached -------


_OK = 200
"""The code of every success: the SDK raises for all other codes and does not keep this one."""


class AttemptSpan:
    """One send and its result.

    Whether a failed attempt is retried is known when the next attempt starts or the call ends.
    Its span ends then, with the time of its Settle as end time.
    """

    __slots__ = (
        "_context",
        "_cost",
        "_failure",
        "_leased_at",
        "_settled_ns",
        "_span",
        "_started",
        "cause",
        "outcome",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer, parent: Context, send: Send, pool: str, acquire_since: float | None
    ) -> None:
        """Start the span.

        Args:
            tracer: Starts the span.
            parent: The context of the call's span.
            send: The send that starts.
            pool: The pool's name.
            acquire_since: When the acquire started (`time.monotonic`); None: the key was leased.
        """
        lease = send.lease
        self._started = time.monotonic()
        self._leased_at = lease.at
        """By the clock of the state, which may be another host's or a test's."""
        attributes: dict[str, AttributeValue] = {
            semconv.POOL: pool,
            semconv.KEY_ID: lease.key_id,
            semconv.ATTEMPT_NUMBER: send.attempt,
            semconv.KEYS_EXCLUDED: send.excluded_count,
            semconv.WAIT_TIME: self._started - acquire_since if acquire_since is not None else 0.0,
        }
        if (project := project_name(lease.project)) is not None:
            attributes[semconv.KEY_PROJECT] = project
        self._span = tracer.start_span(f"attempt {lease.key_id}", parent, attributes=attributes)
        self._context = set_span_in_context(self._span, parent)
        self._settled_ns: int | None = None
        self._cost: float | None = None
        self._failure: dict[str, AttributeValue] = {}
        self.outcome = LeaseOutcome.ABANDONED
        self.cause: ErrorCause | None = None

    def attach(self) -> object:
        """Make it the current span; return the token for `detach_token`."""
        return context.attach(self._context)

    def settle(self, command: Settle, until: float | None) -> None:
        """Keep the outcome, and the end of the cooldown it caused (epoch seconds)."""
        self.outcome, verdict, usage = command.outcome
        self._cost = usage.cost_usd
        if self.outcome is not LeaseOutcome.SUCCESS:  # which is closed at once
            self._settled_ns = time.time_ns()
        if verdict is None:
            return
        self.cause = cause_from_verdict(verdict, command.error)
        self._failure[semconv.FAILURE_CLASS] = verdict.failure
        if verdict.code is not None:
            self._failure[semconv.HTTP_STATUS] = verdict.code
        if until is not None:
            self._add_cooldown_event(command.lease.key_id, verdict, until)

    def _add_cooldown_event(self, key_id: str, verdict: Verdict, until: float) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.KEY_ID: key_id,
            semconv.FAILURE_CLASS: verdict.failure,
            semconv.COOLDOWN_SCOPE: verdict.scope.value,
        }
        elapsed = time.monotonic() - self._started
        seconds = round(max(until - self._leased_at - elapsed, 0.0), 3)
        attributes[semconv.COOLDOWN_DURATION] = self._failure[semconv.COOLDOWN_DURATION] = seconds
        event = semconv.EVENT_RETIRED if verdict.rejected else semconv.EVENT_COOLDOWN
        self._span.add_event(event, attributes)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """End the span, at the time of the Settle if there was one.

        Args:
            outcome: A value of `keyrot.attempt.outcome`.
            error: The error that ended the call, for an attempt without a verdict.
        """
        span = self._span
        span.set_attribute(semconv.ATTEMPT_OUTCOME, outcome)
        if self._cost is not None:
            span.set_attribute(semconv.COST, self._cost)
        if self.outcome is LeaseOutcome.SUCCESS:
            span.set_attribute(semconv.HTTP_STATUS, _OK)
        elif self._failure:
            span.set_attributes(self._failure)
        cause = self.cause or cause_from_error(error)
        if cause is not None:
            record_error(span, cause)
        span.end(self._settled_ns)


def detach_token(token: object) -> None:
    """Undo `AttemptSpan.attach`.

    The garbage collector closes a coroutine that outlived its loop in another context. Nothing
    is attached there, and OpenTelemetry's `detach` would log an error, so the token is reset here.
    """
    if not isinstance(token, Token):
        context.detach(token)  # type: ignore[arg-type]  # another runtime context's own type
        return
    try:
        token.var.reset(token)
    except ValueError:
        return


# The span of a whole call: our own, or that of a parent instrumentation -------------------------
#
# Two inference spans for one request would double its tokens in every backend. If the official
# instrumentation, Traceloop's, or another that follows the GenAI or OpenInference conventions has a
# span for the request, that is the logical span: it gets our `keyrot.*` attributes and our
# attempts.


Attributes = dict[str, AttributeValue]


class LogicalSpan(Protocol):
    """The logical span, ours or another instrumentation's."""

    child_context: Context
    """The parent context of attempts."""

    def add_attempt(self, key_id: str) -> None:
        """Count an attempt with this key."""

    def add_event(self, name: str, attributes: Attributes) -> None:
        """Add an event."""

    def record_first_chunk(self) -> None:
        """Record that a stream's first chunk arrived."""

    def record_usage(self, usage: Usage) -> None:
        """Record what the response reported."""

    def finish(self, cause: ErrorCause | None) -> None:
        """End the span, if it is ours."""


class CallSpan:
    """Our own CLIENT span, without a parent instrumentation."""

    __slots__ = (
        "_attempts",
        "_cost",
        "_first_chunk",
        "_key_id",
        "_span",
        "_started",
        "_usage",
        "child_context",
    )

    def __init__(self, tracer: Tracer, ctx: Context, info: CallInfo, pool: str) -> None:
        name, attributes = call_span_start(
            info.verb, info.model, info.host, info.stream, pool, info.platform
        )
        self._started = time.monotonic() if info.stream else 0.0
        self._span = tracer.start_span(name, ctx, SpanKind.CLIENT, attributes)
        self.child_context = set_span_in_context(self._span, ctx)
        self._attempts = 0
        self._key_id: str | None = None
        self._first_chunk: float | None = None
        self._usage = NO_USAGE
        self._cost: float | None = None

    def add_attempt(self, key_id: str) -> None:
        """Count it."""
        self._attempts += 1
        self._key_id = key_id

    def add_event(self, name: str, attributes: Attributes) -> None:
        """Add an event."""
        self._span.add_event(name, attributes)

    def record_first_chunk(self) -> None:
        """Keep the seconds since the call started."""
        self._first_chunk = time.monotonic() - self._started

    def record_usage(self, usage: Usage) -> None:
        """Keep the usage, and add up the cost."""
        self._usage = usage
        if usage.cost_usd is not None:
            self._cost = (self._cost or 0.0) + usage.cost_usd

    def finish(self, cause: ErrorCause | None) -> None:
        """Set all attributes in one step, since each costs a lock, and end the span."""
        attributes = usage_attributes(self._usage)
        attributes[semconv.ATTEMPT_COUNT] = self._attempts
        if self._cost is not None:
            attributes[semconv.COST] = self._cost
        if self._key_id is not None:
            attributes[semconv.KEY_ID] = self._key_id
        if self._first_chunk is not None:
            attributes[semconv.GEN_AI_FIRST_CHUNK] = self._first_chunk
        self._span.set_attributes(attributes)
        if cause is not None:
            record_error(self._span, cause)
        self._span.end()


class ForeignSpan:
    """A span of another instrumentation, which records request, response and usage and ends it."""

    __slots__ = ("_data", "_pool", "_span", "child_context", "has_metrics")

    def __init__(self, ctx: Context, data: Any, pool: str, *, has_metrics: bool = True) -> None:
        """Use the current span of a context.

        Args:
            ctx: The context; attempts start in it.
            data: The operation's data in opentelemetry-util-genai; None: it has none.
            pool: The pool's name.
            has_metrics: The owner records the metrics of the conventions too.
        """
        self.child_context = ctx
        self._span = get_current_span(ctx)
        self._data = data
        self._pool = pool
        self.has_metrics = has_metrics

    def add_attempt(self, key_id: str) -> None:
        """Count it; an operation of several requests (automatic tool calls) counts them all."""
        if self._data is None:
            if self._span.is_recording():
                count = _get_attribute(self._span, semconv.ATTEMPT_COUNT)
                self._span.set_attributes(self._outcome_attributes(key_id, count))
            return
        attributes: MutableMapping[str, Any] = self._data.attributes
        attributes.update(self._outcome_attributes(key_id, attributes.get(semconv.ATTEMPT_COUNT)))
        self.label_metrics()

    def label_metrics(self) -> None:
        """Add the pool to the attributes of the owner's metrics, if it accepts more."""
        if self._data is not None:
            self._data.metric_attributes[semconv.POOL] = self._pool

    def _outcome_attributes(self, key_id: str, count: object) -> Attributes:
        number = count + 1 if isinstance(count, int) else 1
        return {semconv.POOL: self._pool, semconv.KEY_ID: key_id, semconv.ATTEMPT_COUNT: number}

    def add_event(self, name: str, attributes: Attributes) -> None:
        """Add an event, unless the owner has ended the span."""
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def record_first_chunk(self) -> None:
        """Do nothing: the owner records it."""

    def record_usage(self, usage: Usage) -> None:
        """Add the cost; the owner records the tokens."""
        cost = usage.cost_usd
        if cost is None:
            return
        if self._data is not None:
            attributes: MutableMapping[str, Any] = self._data.attributes
            attributes[semconv.COST] = _total(attributes.get(semconv.COST), cost)
        elif self._span.is_recording():
            total = _total(_get_attribute(self._span, semconv.COST), cost)
            self._span.set_attribute(semconv.COST, total)

    def finish(self, cause: ErrorCause | None) -> None:
        """Do nothing: the owner records it."""


class NoSpan(ForeignSpan):
    """No call span (`call_spans=False`): events go to the current span."""

    __slots__ = ()

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx, None, "", has_metrics=False)

    def add_attempt(self, key_id: str) -> None:
        """Do nothing: the current span may be about anything."""

    def record_usage(self, usage: Usage) -> None:
        """Do nothing."""


def _total(before: object, cost: float) -> float:
    return (before if isinstance(before, float) else 0.0) + cost


_INFERENCE = frozenset({"chat", "generate_content", "text_completion"})
"""Different names of the same operation."""

_DATA_CONTEXT_KEYS = {
    "embeddings": "opentelemetry.genai.client.embedding.context",
    "get": "opentelemetry.genai.client.fetch_response.context",
    "generate_content": "opentelemetry.genai.client.inference.context",
}
"""The context keys of opentelemetry-util-genai for the data of the current operation: its public
CLIENT_*_CONTEXT_KEY, spelled out because it is optional."""

_OPENINFERENCE = {
    "embeddings": ("EMBEDDING", "embedding.model_name"),
    "generate_content": ("LLM", "llm.model_name"),
}
"""Span kind and model attribute in the OpenInference conventions, by operation."""
_SPAN_KIND = "openinference.span.kind"
_TRACELOOP = "opentelemetry.instrumentation.google_generativeai"


def find_foreign_span(ctx: Context, info: CallInfo, pool: str) -> ForeignSpan | None:
    """Return another instrumentation's span for this request; None if there is none."""
    return _find_current_span(ctx, info, pool) or _find_span_of_frames(ctx, info, pool)


def _find_current_span(ctx: Context, info: CallInfo, pool: str) -> ForeignSpan | None:
    """Return the current span if it is about this request.

    The context holds an operation's data while the functions of automatic tool calls run, too;
    the requests that these make are different ones.
    """
    if not ctx:
        return None
    operation, span = operation_name(info.verb), get_current_span(ctx)
    reported = _get_attribute(span, semconv.GEN_AI_OPERATION)
    same = reported == operation or (reported in _INFERENCE and operation in _INFERENCE)
    if not _same_model(_get_attribute(span, semconv.GEN_AI_REQUEST_MODEL), info):
        return None
    data = ctx.get(_DATA_CONTEXT_KEYS.get(operation, ""))
    if (same or reported is None) and isinstance(getattr(data, "attributes", None), dict):
        return ForeignSpan(ctx, data, pool)
    # Older versions and other instrumentations put nothing into the context. A span of an agent
    # or a tool does not replace ours; only one of the same request does.
    if same:
        return ForeignSpan(ctx, None, pool)
    return (
        ForeignSpan(ctx, None, pool, has_metrics=False)
        if _is_openinference_span(span, operation, info)
        else None
    )


def _find_span_of_frames(ctx: Context, info: CallInfo, pool: str) -> ForeignSpan | None:
    """Return Traceloop's span, which is never current.

    It is in a variable of the function that has called the SDK; there is no public way to it.
    """
    if _TRACELOOP not in sys.modules:
        return None
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _TRACELOOP:
            return _traceloop_span(frame.f_locals, ctx, info, pool)
        frame = frame.f_back
    return None


def _traceloop_span(
    variables: Mapping[str, Any], ctx: Context, info: CallInfo, pool: str
) -> ForeignSpan | None:
    """Return Traceloop's span if it is about this request; there is none where it is suppressed.

    It records the tokens of a span that records, unless its metrics are off.
    """
    span = variables.get("span")
    is_same = operation_name(info.verb) in _INFERENCE
    if not isinstance(span, Span) or not is_same or not _same_model(variables["llm_model"], info):
        return None
    counts = getattr(sys.modules[_TRACELOOP], "is_metrics_enabled", bool)
    has_metrics = span.is_recording() and bool(counts())
    return ForeignSpan(set_span_in_context(span, ctx), None, pool, has_metrics=has_metrics)


def _is_openinference_span(span: Span, operation: str, info: CallInfo) -> bool:
    """Return whether a span describes this request in the OpenInference conventions.

    OpenInference's tracer sets the kind of a span at its end, and the name of the model before.
    """
    kind, model = _OPENINFERENCE.get(operation, ("", ""))
    reported, named = _get_attribute(span, _SPAN_KIND), _get_attribute(span, model)
    if not kind or not _same_model(named, info):
        return False
    return reported == kind or (reported is None and isinstance(named, str))


def _same_model(reported: object, info: CallInfo) -> bool:
    """Return whether a span can be about the requested model.

    It names the model with or without `models/`, or none.
    """
    model = info.models_tried[0] if info.models_tried else info.model
    return not isinstance(reported, str) or reported.endswith(model.rpartition("/")[2])


def _get_attribute(span: Span, name: str) -> object:
    """Return an attribute of a span; the API's own spans have none."""
    attributes = getattr(span, "attributes", None)
    return attributes.get(name) if attributes else None


# How the commands of one call become its spans and their events --------------------------------


class CallTracer:
    """Traces one call. Its spans start with its first command: a stream may never be read."""

    __slots__ = (
        "_acquire_since",
        "_attempt",
        "_call",
        "_call_span",
        "_ctx",
        "_degraded",
        "_info",
        "_last_failure",
        "_pool",
        "_tracer",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer, ctx: Context, info: CallInfo, pool: str, *, call_span: bool = True
    ) -> None:
        """Trace a call made in the context *ctx*; *call_span*: with a span for the whole call."""
        self._tracer = tracer
        self._ctx = ctx
        self._info = info
        self._pool = pool
        self._call_span = call_span
        self._call: LogicalSpan | None = None
        self._attempt: AttemptSpan | None = None
        """The current one, or a failed one whose span has not ended yet."""
        self._last_failure: tuple[BaseException | None, ErrorCause | None] = (None, None)
        """The exception of the last failed attempt, and its cause."""
        self._acquire_since: float | None = None
        self._degraded = False

    def before(self, command: Command) -> None:
        """Start what *command* starts."""
        call = self._call or self._open()
        if type(command) is Acquire:
            self._start_acquire()
        elif type(command) is Send:
            self._send(call, command)
        elif type(command) is Sleep:
            if command.reason == "key":
                # A call that has failed with every key waits first and acquires afterwards.
                self._start_acquire()
            if command.starts_wait:
                attributes = {
                    semconv.WAIT_SECONDS: command.seconds,
                    semconv.WAIT_REASON: command.reason,
                }
                call.add_event(semconv.EVENT_WAIT, {**attributes})

    def after(self, command: Command, reply: Any) -> None:
        """Record the result of *command*."""
        if type(command) is Settle:
            self._settle(command, reply if isinstance(reply, float) else None)
        elif type(command) is Send:
            if type(reply) is StreamOpened and self._info.stream and self._call is not None:
                self._call.record_first_chunk()
        elif type(command) is Refresh and reply is True and self._call is not None:
            self._call.add_event(semconv.EVENT_REPLACED, {semconv.KEY_ID: command.key_id})

    def attach(self) -> object:
        """Make the attempt the current span while the SDK's code runs."""
        return self._attempt.attach() if self._attempt is not None else None

    def detach(self, token: object) -> None:
        """Restore the previous current span."""
        if token is not None:
            detach_token(token)

    def finish(self, error: BaseException | None) -> None:
        """End the open spans."""
        if self._attempt is not None:
            has_failed = self._attempt.cause is not None
            self._attempt.end(semconv.FAIL if has_failed else semconv.ABANDONED, error)
            self._attempt = None
        if self._call is None:
            return
        if isinstance(error, Exhausted):
            self._call.add_event(
                semconv.EVENT_EXHAUSTED,
                {semconv.BLOCKED_KEYS: format_blocked_keys(error.unavailable.blocks)},
            )
        last_error, cause = self._last_failure
        self._call.finish(
            cause if error is not None and error is last_error else cause_from_error(error)
        )

    def _open(self) -> LogicalSpan:
        ctx, info, pool = self._ctx, self._info, self._pool
        call: LogicalSpan | None = find_foreign_span(ctx, info, pool)
        if call is None:
            call = CallSpan(self._tracer, ctx, info, pool) if self._call_span else NoSpan(ctx)
        self._call = call
        if info.models_tried:
            attributes: Attributes = {
                semconv.FALLBACK_FROM: info.models_tried[-1],
                semconv.FALLBACK_TO: info.model,
            }
            call.add_event(semconv.EVENT_FALLBACK, attributes)
        return call

    def _start_acquire(self) -> None:
        if self._acquire_since is None:
            self._acquire_since = time.monotonic()

    def _send(self, call: LogicalSpan, command: Send) -> None:
        if self._attempt is not None:
            self._attempt.end(semconv.RETRY)
        lease = command.lease
        if (lease.degraded or lease.reservation is None) and not self._degraded:
            self._degraded = True  # the shared state is down
            call.add_event(semconv.EVENT_DEGRADED, {semconv.KEY_ID: lease.key_id})
        call.add_attempt(lease.key_id)
        self._attempt = AttemptSpan(
            self._tracer, call.child_context, command, self._pool, self._acquire_since
        )
        self._acquire_since = None

    def _settle(self, command: Settle, until: float | None) -> None:
        attempt, call = self._attempt, self._call
        if attempt is None or call is None:
            return
        attempt.settle(command, until)
        self._last_failure = command.error, attempt.cause
        call.record_usage(command.outcome.usage)
        if attempt.outcome is LeaseOutcome.SUCCESS:
            attempt.end(semconv.SUCCESS)
            self._attempt = None


REFRESH_SPAN = "refresh secrets"
"""Name of the span of a background refresh that found a new value."""


class TracingObserver:
    """Traces calls, as long as the program has a tracer provider."""

    def __init__(
        self,
        pool_name: str,
        tracer_provider: TracerProvider | None = None,
        *,
        call_spans: bool = True,
    ) -> None:
        """Trace the calls of a pool.

        Args:
            pool_name: The value of `keyrot.pool.name`.
            tracer_provider: None: the global one, which may be set later.
            call_spans: Record a span for each call; False: spans for attempts only.
        """
        self._pool = pool_name
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
        return CallTracer(tracer, ctx, info, self._pool, call_span=self._call_spans)

    def on_key_replaced(self, key_id: str) -> None:
        """Record, as a span of its own, that a key has a new value."""
        tracer = self._tracer()
        if tracer is None:
            return
        attributes = {semconv.POOL: self._pool, semconv.KEY_ID: key_id}
        with tracer.start_as_current_span(REFRESH_SPAN, Context(), attributes=attributes) as span:
            span.add_event(semconv.EVENT_REPLACED, {semconv.KEY_ID: key_id})


def _get_tracer(provider: TracerProvider) -> Tracer | None:
    """Return our tracer; None if the provider records nothing."""
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(semconv.INSTRUMENTATION, __version__)
    return None if isinstance(tracer, NoOpTracer) else tracer
