"""A call in the metrics of the GenAI conventions, by their old names, their new ones, or both.

The conventions' first release of their own, 0.1.0, gives each operation metrics of its own. Who has
dashboards by the old names keeps them until OTEL_SEMCONV_STABILITY_OPT_IN says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from opentelemetry.metrics import Meter

from ..core.model import Usage
from . import instruments as table
from .attributes import of_call
from .instruments import make_counter, make_histogram

__all__ = ["Asked", "CallMetrics", "call_metrics", "known_tokens"]

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
_NEW, _BOTH = "gen_ai_latest_experimental", "gen_ai_latest_experimental/dup"
_INFERENCE, _EMBEDDINGS = "generate_content", "embeddings"
_UNKNOWN = "unknown"
"""The modality of tokens of which the response does not say what they are."""

Asked = tuple[str, str, str, str]
"""Pool, operation, model and host."""


class CallMetrics(Protocol):
    """What one version of the conventions asks of a client."""

    def first_chunk(self, asked: Asked, seconds: float) -> None:
        """Record how long a stream's first chunk took."""

    def call(self, asked: Asked, seconds: float, usage: Usage, why: str | None) -> None:
        """Record a call that is over; *why* it failed is its `error.type`."""


class _OldNames:
    """The names before 0.1.0: one metric for all operations."""

    def __init__(self, meter: Meter) -> None:
        self._duration = make_histogram(meter, table.OPERATION_DURATION)
        self._tokens = make_histogram(meter, table.TOKEN_USAGE)
        self._first_chunk = make_histogram(meter, table.FIRST_CHUNK)

    def first_chunk(self, asked: Asked, seconds: float) -> None:
        self._first_chunk.record(seconds, of_call(*asked))

    def call(self, asked: Asked, seconds: float, usage: Usage, why: str | None) -> None:
        self._duration.record(seconds, of_call(*asked, usage.model, None, why))
        for kind, tokens in known_tokens(usage):
            self._tokens.record(tokens, of_call(*asked, usage.model, kind, why))


class _NewNames:
    """The names of 0.1.0: inference and embeddings apart, tokens as counters."""

    def __init__(self, meter: Meter) -> None:
        self._durations = {
            _INFERENCE: make_histogram(meter, table.INFERENCE_DURATION),
            _EMBEDDINGS: make_histogram(meter, table.EMBEDDINGS_DURATION),
        }
        self._other = make_histogram(meter, table.OPERATION_DURATION)
        self._first_chunk = make_histogram(meter, table.INFERENCE_FIRST_CHUNK)
        self._input = make_counter(meter, table.USAGE_INPUT)
        self._output = make_counter(meter, table.USAGE_OUTPUT)
        self._cached = make_counter(meter, table.USAGE_CACHED)
        self._thoughts = make_counter(meter, table.USAGE_THOUGHTS)
        self._inputs = make_histogram(meter, table.OPERATION_INPUT)
        self._outputs = make_histogram(meter, table.OPERATION_OUTPUT)

    def first_chunk(self, asked: Asked, seconds: float) -> None:
        self._first_chunk.record(seconds, of_call(*asked))

    def call(self, asked: Asked, seconds: float, usage: Usage, why: str | None) -> None:
        operation = asked[1]
        duration = self._durations.get(operation, self._other)
        duration.record(seconds, of_call(*asked, usage.model, None, why))
        if operation == _INFERENCE:
            self._spent(asked, usage)
            self._distribution(asked, usage, why)

    def _spent(self, asked: Asked, usage: Usage) -> None:
        """Count tokens, and 0 of a call that failed: the conventions ask for both."""
        about = of_call(*asked, usage.model, None, None, _UNKNOWN)
        self._input.add(usage.input_tokens or 0, about)
        self._output.add(usage.output_tokens or 0, about)
        if usage.cached_tokens is not None:
            self._cached.add(usage.cached_tokens, about)
        if usage.thought_tokens is not None:
            self._thoughts.add(usage.thought_tokens, about)

    def _distribution(self, asked: Asked, usage: Usage, why: str | None) -> None:
        about = of_call(*asked, usage.model, None, why)
        if usage.input_tokens is not None:
            self._inputs.record(usage.input_tokens, about)
        if usage.output_tokens is not None:
            self._outputs.record(usage.output_tokens, about)


def call_metrics(meter: Meter) -> Sequence[CallMetrics]:
    """Make the instruments of the versions that the environment asks for."""
    asked = {word.strip() for word in os.environ.get(OPT_IN, "").split(",")}
    if _BOTH in asked:
        return (_OldNames(meter), _NewNames(meter))
    return (_NewNames(meter) if _NEW in asked else _OldNames(meter),)


def known_tokens(usage: Usage) -> tuple[tuple[str, int], ...]:
    """List what is known of a response's tokens; nothing is recorded of what is not."""
    known = (("input", usage.input_tokens), ("output", usage.output_tokens))
    return tuple((kind, tokens) for kind, tokens in known if tokens is not None)
