"""Spans: one for the call unless somebody above has one, and one for each attempt inside it.

Nothing is held current while the caller's code runs. The context of the call is captured when
it starts, every span is started with an explicit parent, and an attempt is the current span only
between `attach` and `detach`, around the SDK's own code.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import MutableMapping
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
from ..core.commands import Acquire, Command, Opened, Refresh, Send, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, LeaseOutcome, Usage, Verdict, project_label
from . import semconv
from .attributes import (
    ErrorCause,
    blame,
    of_error,
    of_verdict,
    opening,
    operation_of,
    usage_attributes,
)
from .log_text import blocked
from .observer import CallObserver
from .otel_api import CurrentProvider, suppressed

__all__ = [
    "AttemptSpan",
    "CallSpan",
    "CallTracer",
    "ForeignSpan",
    "NoSpan",
    "OwnSpan",
    "TracingObserver",
    "find_parent_instrumentation_span",
    "leave",
    "span_of_stream",
]

# The span of one attempt: INTERNAL, open from Send to Settle, current only when asked ----------


_OK = 200
"""Of every success: the SDK raises for all other codes, and keeps this one nowhere."""


class AttemptSpan:
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
                semconv.POOL: pool,
                semconv.KEY_ID: lease.key_id,
                semconv.KEY_PROJECT: project_label(lease.project),
                semconv.ATTEMPT_NUMBER: send.attempt,
                semconv.KEYS_EXCLUDED: send.excluded,
                semconv.WAIT_TIME: self._began - wanted if wanted is not None else 0.0,
            },
        )
        self._context = set_span_in_context(self._span, parent)
        self._settled_ns: int | None = None
        self._failure: dict[str, AttributeValue] = {}
        self.kind = LeaseOutcome.ABANDONED
        self.cause: ErrorCause | None = None

    def enter(self) -> object:
        """Make it the current span; give the token that `leave` takes."""
        return context.attach(self._context)

    def settle(self, command: Settle, until: float | None) -> None:
        """Take note of what came of it, and until when a key is cooling down (epoch seconds)."""
        self.kind, verdict, _ = command.outcome
        if self.kind is not LeaseOutcome.SUCCESS:  # which is closed at once
            self._settled_ns = time.time_ns()
        if verdict is None:
            return
        self.cause = of_verdict(verdict, command.error)
        self._failure[semconv.FAILURE_CLASS] = verdict.failure
        if verdict.code is not None:
            self._failure[semconv.HTTP_STATUS] = verdict.code
        if until is not None:
            self._rest(command.lease.key_id, verdict, until)

    def _rest(self, key_id: str, verdict: Verdict, until: float) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.KEY_ID: key_id,
            semconv.FAILURE_CLASS: verdict.failure,
            semconv.COOLDOWN_SCOPE: verdict.scope.value,
        }
        passed = time.monotonic() - self._began
        seconds = round(max(until - self._lent - passed, 0.0), 3)
        attributes[semconv.COOLDOWN_DURATION] = self._failure[semconv.COOLDOWN_DURATION] = seconds
        event = semconv.EVENT_RETIRED if verdict.rejected else semconv.EVENT_COOLDOWN
        self._span.add_event(event, attributes)

    def close(self, outcome: str, error: BaseException | None = None) -> None:
        """End the span, at the time of the Settle if there was one.

        Args:
            outcome: A value of `keyrot.attempt.outcome`.
            error: What ended the call, for an attempt that nobody judged.
        """
        span = self._span
        span.set_attribute(semconv.ATTEMPT_OUTCOME, outcome)
        if self.kind is LeaseOutcome.SUCCESS:
            span.set_attribute(semconv.HTTP_STATUS, _OK)
        elif self._failure:
            span.set_attributes(self._failure)
        cause = self.cause or of_error(error)
        if cause is not None:
            blame(span, cause)
        span.end(self._settled_ns)


def leave(token: object) -> None:
    """Undo `AttemptSpan.enter`.

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


# The span of a whole call: our own, or that of an instrumentation above us ---------------------
#
# Nobody wants two inference spans for one request: backends count the tokens of both. Where the
# official instrumentation (or another that follows the GenAI or the OpenInference conventions) is
# above us, its span is the logical one: we add `keyrot.*` to it, and our attempts inside.


Attributes = dict[str, AttributeValue]


class CallSpan(Protocol):
    """The logical span, whoever made it."""

    inside: Context
    """The parent of attempts."""

    def attempt(self, key_id: str) -> None:
        """Count an attempt that starts with this key."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event."""

    def first_chunk(self) -> None:
        """Take note that a stream's first chunk is here."""

    def usage(self, usage: Usage) -> None:
        """Record what the response reported of itself."""

    def finish(self, cause: ErrorCause | None) -> None:
        """End it, if it is ours."""


class OwnSpan:
    """A CLIENT span of ours: nobody above has one."""

    __slots__ = ("_attempts", "_began", "_first_chunk", "_key_id", "_span", "_usage", "inside")

    def __init__(self, tracer: Tracer, here: Context, info: CallInfo, pool: str) -> None:
        name, attributes = opening(info.verb, info.model, info.host, info.stream, pool)
        self._began = time.monotonic() if info.stream else 0.0
        self._span = tracer.start_span(name, here, SpanKind.CLIENT, attributes)
        self.inside = set_span_in_context(self._span, here)
        self._attempts = 0
        self._key_id: str | None = None
        self._first_chunk: float | None = None
        self._usage = NO_USAGE

    def attempt(self, key_id: str) -> None:
        """Count it."""
        self._attempts += 1
        self._key_id = key_id

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event."""
        self._span.add_event(name, attributes)

    def first_chunk(self) -> None:
        """Take note of the seconds since the call began."""
        self._first_chunk = time.monotonic() - self._began

    def usage(self, usage: Usage) -> None:
        """Take note of the usage and the response's own names."""
        self._usage = usage

    def finish(self, cause: ErrorCause | None) -> None:
        """Say all that became known, at once since each time costs a lock, and end it."""
        attributes = usage_attributes(self._usage)
        attributes[semconv.ATTEMPT_COUNT] = self._attempts
        if self._key_id is not None:
            attributes[semconv.KEY_ID] = self._key_id
        if self._first_chunk is not None:
            attributes[semconv.GEN_AI_FIRST_CHUNK] = self._first_chunk
        self._span.set_attributes(attributes)
        if cause is not None:
            blame(self._span, cause)
        self._span.end()


class ForeignSpan:
    """Another's span. It knows request, response and usage by itself, and ends by itself."""

    __slots__ = ("_data", "_pool", "_span", "inside", "measured")

    def __init__(self, here: Context, data: Any, pool: str, *, measured: bool = True) -> None:
        """Take the current span of a context.

        Args:
            here: The context; attempts are started in it.
            data: What opentelemetry-util-genai keeps of the operation; None: nothing.
            pool: The pool's name.
            measured: The owner records the metrics of the conventions too.
        """
        self.inside = here
        self._span = get_current_span(here)
        self._data = data
        self._pool = pool
        self.measured = measured

    def attempt(self, key_id: str) -> None:
        """Count it; an operation of several requests (automatic tool calls) counts them all."""
        if self._data is None:
            if self._span.is_recording():
                count = _read(self._span, semconv.ATTEMPT_COUNT)
                self._span.set_attributes(self._outcome_attributes(key_id, count))
            return
        attributes: MutableMapping[str, Any] = self._data.attributes
        attributes.update(self._outcome_attributes(key_id, attributes.get(semconv.ATTEMPT_COUNT)))
        self.label_metrics()

    def label_metrics(self) -> None:
        """Have the owner's metrics tell the pool, where it takes more attributes for them."""
        if self._data is not None:
            self._data.metric_attributes[semconv.POOL] = self._pool

    def _outcome_attributes(self, key_id: str, count: object) -> Attributes:
        number = count + 1 if isinstance(count, int) else 1
        return {semconv.POOL: self._pool, semconv.KEY_ID: key_id, semconv.ATTEMPT_COUNT: number}

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event, unless it has ended: its owner did not wait for us."""
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def first_chunk(self) -> None:
        """Leave it to the owner."""

    def usage(self, usage: Usage) -> None:
        """Leave it to the owner."""

    def finish(self, cause: ErrorCause | None) -> None:
        """Leave it to the owner."""


class NoSpan(ForeignSpan):
    """None, since the program wants attempts alone; events go to whatever span is current."""

    __slots__ = ()

    def __init__(self, here: Context) -> None:
        super().__init__(here, None, "", measured=False)

    def attempt(self, key_id: str) -> None:
        """Leave the current span as it is: it may be about anything."""


_INFERENCE = frozenset({"chat", "generate_content", "text_completion"})
"""Operations that are one and the same request under different names."""

_DATA_OF = {
    "embeddings": "opentelemetry.genai.client.embedding.context",
    "get": "opentelemetry.genai.client.fetch_response.context",
    "generate_content": "opentelemetry.genai.client.inference.context",
}
"""Where opentelemetry-util-genai keeps what inner layers add to the operation under way; these
are its public CLIENT_*_CONTEXT_KEY, spelt out because it need not be installed."""

_OPENINFERENCE = {
    "embeddings": ("EMBEDDING", "embedding.model_name"),
    "generate_content": ("LLM", "llm.model_name"),
}
"""Kind and model's attribute of a span by OpenInference's conventions, by operation."""
_SPAN_KIND = "openinference.span.kind"
_ITS_STREAMS = "openinference.instrumentation.google_genai._stream"


def find_parent_instrumentation_span(
    here: Context, info: CallInfo, pool: str
) -> ForeignSpan | None:
    """Find another's span for this very request; None where there is none.

    What the context holds of an operation is held for all that happens inside, for the functions
    that its automatic tool calls run too, and the requests that these make are others.
    """
    if not here:
        return None
    operation, span = operation_of(info.verb), get_current_span(here)
    reported = _read(span, semconv.GEN_AI_OPERATION)
    same = reported == operation or (reported in _INFERENCE and operation in _INFERENCE)
    if not _same_model(_read(span, semconv.GEN_AI_REQUEST_MODEL), info.model):
        return None
    data = here.get(_DATA_OF.get(operation, ""))
    if (same or reported is None) and isinstance(getattr(data, "attributes", None), dict):
        return ForeignSpan(here, data, pool)
    # Older versions leave nothing in the context; nor do other instrumentations. A span of an
    # agent or a tool is no reason to stay silent: only one of the same request is.
    if same:
        return ForeignSpan(here, None, pool)
    return ForeignSpan(here, None, pool, measured=False) if _is_llm(span, operation, info) else None


def span_of_stream(here: Context, info: CallInfo, pool: str) -> ForeignSpan | None:
    """Find OpenInference's span for a stream, which is not current while the stream is read.

    It stays in the iterator of OpenInference that reads us, and there is no other way to it.
    """
    if not info.stream or _ITS_STREAMS not in sys.modules:
        return None
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _ITS_STREAMS and "self" in frame.f_locals:
            holder = getattr(frame.f_locals["self"], "_with_span", None)
            span = getattr(holder, "_span", None)
            if not isinstance(span, Span) or not _is_llm(span, operation_of(info.verb), info):
                return None
            return ForeignSpan(set_span_in_context(span, here), None, pool, measured=False)
        frame = frame.f_back
    return None


def _is_llm(span: Span, operation: str, info: CallInfo) -> bool:
    """Tell whether a span is about this request by the conventions of OpenInference.

    Its own tracer sets the kind of a span when the span ends; the model's name is there before.
    """
    kind, model = _OPENINFERENCE.get(operation, ("", ""))
    reported, named = _read(span, _SPAN_KIND), _read(span, model)
    if not kind or not _same_model(named, info.model):
        return False
    return reported == kind or (reported is None and isinstance(named, str))


def _same_model(reported: object, model: str) -> bool:
    """Tell whether a span can be about *model*: `models/…` before it is the same, none may be."""
    return not isinstance(reported, str) or reported.endswith(model.rpartition("/")[2])


def _read(span: Span, name: str) -> object:
    """Read an attribute of the SDK's spans, which have them, as the API's do not."""
    attributes = getattr(span, "attributes", None)
    return attributes.get(name) if attributes else None


# How the commands of one call become its spans and their events --------------------------------


class CallTracer:
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
        self._attempt: AttemptSpan | None = None
        """The one under way, or one that failed and is not closed yet."""
        self._last: tuple[BaseException | None, ErrorCause | None] = (None, None)
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
                attributes = {
                    semconv.WAIT_SECONDS: command.seconds,
                    semconv.WAIT_REASON: command.why,
                }
                call.event(semconv.EVENT_WAIT, {**attributes})

    def after(self, command: Command, reply: Any) -> None:
        """Take note of what came of *command*."""
        if type(command) is Settle:
            self._settle(command, reply if isinstance(reply, float) else None)
        elif type(command) is Send:
            if type(reply) is Opened and self._call is not None:
                self._call.first_chunk()
        elif type(command) is Refresh and reply is True and self._call is not None:
            self._call.event(semconv.EVENT_REPLACED, {semconv.KEY_ID: command.key_id})

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
            self._attempt.close(semconv.FAIL if judged else semconv.ABANDONED, error)
            self._attempt = None
        if self._call is None:
            return
        if isinstance(error, Exhausted):
            self._call.event(semconv.EVENT_EXHAUSTED, {semconv.BLOCKED_KEYS: blocked(error)})
        known, cause = self._last
        self._call.finish(cause if error is not None and error is known else of_error(error))

    def _open(self) -> CallSpan:
        here, info, pool = self._here, self._info, self._pool
        call: CallSpan | None = find_parent_instrumentation_span(
            here, info, pool
        ) or span_of_stream(here, info, pool)
        if call is None:
            call = OwnSpan(self._tracer, here, info, pool) if self._own else NoSpan(here)
        self._call = call
        return call

    def _want(self) -> None:
        if self._wanted is None:
            self._wanted = time.monotonic()

    def _send(self, call: CallSpan, command: Send) -> None:
        if self._attempt is not None:
            self._attempt.close(semconv.RETRY)
        lease = command.lease
        if (lease.degraded or lease.books is None) and not self._degraded:
            self._degraded = True  # the state is down: booked by this process alone, or nowhere
            call.event(semconv.EVENT_DEGRADED, {semconv.KEY_ID: lease.key_id})
        call.attempt(lease.key_id)
        self._attempt = AttemptSpan(self._tracer, call.inside, command, self._pool, self._wanted)
        self._wanted = None

    def _settle(self, command: Settle, until: float | None) -> None:
        attempt, call = self._attempt, self._call
        if attempt is None or call is None:
            return
        attempt.settle(command, until)
        self._last = command.error, attempt.cause
        call.usage(command.outcome.usage)
        if attempt.kind is LeaseOutcome.SUCCESS:
            attempt.close(semconv.SUCCESS)
            self._attempt = None


REFRESH = "refresh secrets"
"""Name of the span of a look-up that no call waited for, and that found something new."""


class TracingObserver:
    """Trace calls, as long as the program has a tracer provider."""

    def __init__(
        self,
        pool_name: str,
        tracer_provider: TracerProvider | None = None,
        *,
        call_spans: bool = True,
    ) -> None:
        """Trace calls of a pool.

        Args:
            pool_name: Seen as `keyrot.pool.name`.
            tracer_provider: None: the global one, whenever it is set.
            call_spans: A span for each call; False: spans for its attempts alone.
        """
        self._pool = pool_name
        self._call_spans = call_spans
        get = trace.get_tracer_provider if tracer_provider is None else lambda: tracer_provider
        self._tracer = CurrentProvider(get, _tracer_of)

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Trace a call, unless nobody records or instrumentation is suppressed."""
        tracer = self._tracer()
        if tracer is None:
            return None
        here = context.get_current()
        if suppressed(here):
            return None
        return CallTracer(tracer, here, info, self._pool, own=self._call_spans)

    def on_key_replaced(self, key_id: str) -> None:
        """Record that a key has a new value while no call waits for it: a span of its own."""
        tracer = self._tracer()
        if tracer is None:
            return
        about = {semconv.POOL: self._pool, semconv.KEY_ID: key_id}
        with tracer.start_as_current_span(REFRESH, Context(), attributes=about) as span:
            span.add_event(semconv.EVENT_REPLACED, {semconv.KEY_ID: key_id})


def _tracer_of(provider: TracerProvider) -> Tracer | None:
    """Give our tracer; None where spans would go nowhere."""
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(semconv.INSTRUMENTATION, __version__)
    return None if isinstance(tracer, NoOpTracer) else tracer
