"""The span of a whole call: our own, or that of an instrumentation above us.

Nobody wants two inference spans for one request: backends count the tokens of both. Where the
official instrumentation (or another that follows the GenAI or the OpenInference conventions) is
above us, its span is the logical one: we add `keyrot.*` to it, and our attempts inside.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanKind,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from ..core.model import NO_USAGE, CallInfo, Usage
from . import names
from .cause import Cause, blame
from .request import opening, operation_of, usage_attributes

__all__ = ["CallSpan", "GuestSpan", "NoSpan", "OwnSpan", "span_above", "span_of_stream"]

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
        """Say what the response told of itself."""

    def finish(self, cause: Cause | None) -> None:
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

    def finish(self, cause: Cause | None) -> None:
        """Say all that became known, at once since each time costs a lock, and end it."""
        told = usage_attributes(self._usage)
        told[names.ATTEMPT_COUNT] = self._attempts
        if self._key_id is not None:
            told[names.KEY_ID] = self._key_id
        if self._first_chunk is not None:
            told[names.GEN_AI_FIRST_CHUNK] = self._first_chunk
        self._span.set_attributes(told)
        if cause is not None:
            blame(self._span, cause)
        self._span.end()


class GuestSpan:
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
                count = _read(self._span, names.ATTEMPT_COUNT)
                self._span.set_attributes(self._told(key_id, count))
            return
        attributes: MutableMapping[str, Any] = self._data.attributes
        attributes.update(self._told(key_id, attributes.get(names.ATTEMPT_COUNT)))
        self.label_metrics()

    def label_metrics(self) -> None:
        """Have the owner's metrics tell the pool, where it takes more attributes for them."""
        if self._data is not None:
            self._data.metric_attributes[names.POOL] = self._pool

    def _told(self, key_id: str, count: object) -> Attributes:
        number = count + 1 if isinstance(count, int) else 1
        return {names.POOL: self._pool, names.KEY_ID: key_id, names.ATTEMPT_COUNT: number}

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event, unless it has ended: its owner did not wait for us."""
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def first_chunk(self) -> None:
        """Leave it to the owner."""

    def usage(self, usage: Usage) -> None:
        """Leave it to the owner."""

    def finish(self, cause: Cause | None) -> None:
        """Leave it to the owner."""


class NoSpan(GuestSpan):
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


def span_above(here: Context, info: CallInfo, pool: str) -> GuestSpan | None:
    """Find another's span for this very request; None where there is none.

    What the context holds of an operation is held for all that happens inside, for the functions
    that its automatic tool calls run too, and the requests that these make are others.
    """
    if not here:
        return None
    operation, span = operation_of(info.verb), get_current_span(here)
    told = _read(span, names.GEN_AI_OPERATION)
    same = told == operation or (told in _INFERENCE and operation in _INFERENCE)
    if not _same_model(_read(span, names.GEN_AI_REQUEST_MODEL), info.model):
        return None
    data = here.get(_DATA_OF.get(operation, ""))
    if (same or told is None) and isinstance(getattr(data, "attributes", None), dict):
        return GuestSpan(here, data, pool)
    # Older versions leave nothing in the context; nor do other instrumentations. A span of an
    # agent or a tool is no reason to stay silent: only one of the same request is.
    if same:
        return GuestSpan(here, None, pool)
    return GuestSpan(here, None, pool, measured=False) if _is_llm(span, operation, info) else None


def span_of_stream(here: Context, info: CallInfo, pool: str) -> GuestSpan | None:
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
            return GuestSpan(set_span_in_context(span, here), None, pool, measured=False)
        frame = frame.f_back
    return None


def _is_llm(span: Span, operation: str, info: CallInfo) -> bool:
    """Tell whether a span is about this request by the conventions of OpenInference.

    Its own tracer sets the kind of a span when the span ends; the model's name is there before.
    """
    kind, model = _OPENINFERENCE.get(operation, ("", ""))
    told, named = _read(span, _SPAN_KIND), _read(span, model)
    if not kind or not _same_model(named, info.model):
        return False
    return told == kind or (told is None and isinstance(named, str))


def _same_model(told: object, model: str) -> bool:
    """Tell whether a span can be about *model*: `models/…` before it is the same, none may be."""
    return not isinstance(told, str) or told.endswith(model.rpartition("/")[2])


def _read(span: Span, name: str) -> object:
    """Read an attribute of the SDK's spans, which have them, as the API's do not."""
    attributes = getattr(span, "attributes", None)
    return attributes.get(name) if attributes else None
