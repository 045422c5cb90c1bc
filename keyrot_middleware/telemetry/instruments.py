"""The table of our metrics, and the instruments that record a call.

Types, units and buckets are those of docs/telemetry.md; a test compares the two. The `keyrot.key.*`
metrics follow those of database connection pools, since calls wait for a key in the same way. The
`gen_ai.*` metrics follow the GenAI conventions, whose release 0.1.0 renamed them: the old names
stay until OTEL_SEMCONV_STABILITY_OPT_IN selects the new ones or both.
"""

from __future__ import annotations

import os
from enum import StrEnum
from inspect import signature
from typing import NamedTuple, Protocol

from opentelemetry.metrics import Counter, Histogram, Meter

from ..core.model import Platform, Usage
from . import semconv
from .attributes import call_attributes

__all__ = [
    "METRICS",
    "NEW_METRICS",
    "CallKey",
    "CallMetrics",
    "Instruments",
    "Metric",
    "MetricKind",
    "reported_tokens",
]


class MetricKind(StrEnum):
    """The type of an instrument, as in the documentation."""

    COUNTER = "Counter"
    UP_DOWN = "UpDownCounter"
    HISTOGRAM = "Histogram"
    OBSERVED_UP_DOWN = "observable UpDownCounter"
    OBSERVED_GAUGE = "observable Gauge"


class Metric(NamedTuple):
    """One metric."""

    name: str
    kind: MetricKind
    unit: str
    description: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds, advised to the program's SDK."""

    @property
    def args(self) -> tuple[str, str, str]:
        """Return name, unit and description, as a meter takes them."""
        return self.name, self.unit, self.description


SECONDS = tuple(round(0.01 * 2.0**power, 2) for power in range(14))
"""0.01 … 81.92, of the GenAI conventions; attempts have the same, for comparison with calls."""
TOKENS = tuple(4.0**power for power in range(14))
"""1 … 67108864."""
WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

_CALL = (
    semconv.GEN_AI_OPERATION,
    semconv.GEN_AI_PROVIDER,
    semconv.GEN_AI_REQUEST_MODEL,
    semconv.GEN_AI_RESPONSE_MODEL,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
    semconv.ERROR_TYPE,
    semconv.POOL,
)
_FIRST_CHUNK = tuple(
    n for n in _CALL if n not in (semconv.GEN_AI_RESPONSE_MODEL, semconv.ERROR_TYPE)
)
_ATTEMPT = (semconv.POOL, semconv.GEN_AI_REQUEST_MODEL, semconv.KEY_ID)

OPERATION_DURATION = Metric(
    "gen_ai.client.operation.duration",
    MetricKind.HISTOGRAM,
    "s",
    "A call with all its attempts.",
    _CALL,
    SECONDS,
)
TOKEN_USAGE = Metric(
    "gen_ai.client.token.usage",
    MetricKind.HISTOGRAM,
    "{token}",
    "Tokens of a call's response.",
    (*_CALL, semconv.TOKEN_TYPE),
    TOKENS,
)
FIRST_CHUNK = Metric(
    "gen_ai.client.operation.time_to_first_chunk",
    MetricKind.HISTOGRAM,
    "s",
    "From the start of a streamed call to its first chunk.",
    _FIRST_CHUNK,
    SECONDS,
)
_USAGE = (*(n for n in _CALL if n != semconv.ERROR_TYPE), semconv.TOKEN_MODALITY)
INFERENCE_DURATION = Metric(
    "gen_ai.client.inference.duration",
    MetricKind.HISTOGRAM,
    "s",
    "A generate_content call with all its attempts.",
    _CALL,
    SECONDS,
)
EMBEDDINGS_DURATION = INFERENCE_DURATION._replace(
    name="gen_ai.client.embeddings.duration",
    description="An embeddings call with all its attempts.",
)
INFERENCE_FIRST_CHUNK = Metric(
    "gen_ai.client.inference.time_to_first_chunk",
    MetricKind.HISTOGRAM,
    "s",
    "From the start of a streamed call to its first chunk.",
    _FIRST_CHUNK,
    SECONDS,
)
USAGE_INPUT = Metric(
    "gen_ai.client.inference.usage.input_tokens",
    MetricKind.COUNTER,
    "{token}",
    "Input tokens, with cached ones.",
    _USAGE,
)
USAGE_OUTPUT = USAGE_INPUT._replace(
    name="gen_ai.client.inference.usage.output_tokens", description="Output tokens, with thoughts."
)
USAGE_CACHED = USAGE_INPUT._replace(
    name="gen_ai.client.inference.usage.cache_read.input_tokens", description="Cached input tokens."
)
USAGE_THOUGHTS = USAGE_INPUT._replace(
    name="gen_ai.client.inference.usage.reasoning.output_tokens", description="Thought tokens."
)
OPERATION_INPUT = Metric(
    "gen_ai.client.inference.operation.input_tokens",
    MetricKind.HISTOGRAM,
    "{token}",
    "Input tokens of one call.",
    _CALL,
    TOKENS,
)
OPERATION_OUTPUT = OPERATION_INPUT._replace(
    name="gen_ai.client.inference.operation.output_tokens", description="Output tokens of one call."
)
ATTEMPT_DURATION = Metric(
    "keyrot.attempt.duration",
    MetricKind.HISTOGRAM,
    "s",
    "One send.",
    (*_ATTEMPT, semconv.ERROR_TYPE, semconv.FAILURE_CLASS),
    SECONDS,
)
CALL_ATTEMPTS = Metric(
    "keyrot.call.attempts",
    MetricKind.HISTOGRAM,
    "{attempt}",
    "Sends of a call; 0 if no key was available.",
    (semconv.POOL, semconv.ERROR_TYPE),
    (1, 2, 3, 4, 5, 8, 10),
)
KEY_COUNT = Metric(
    "keyrot.key.count",
    MetricKind.OBSERVED_UP_DOWN,
    "{key}",
    "Keys of the pool by their state.",
    (semconv.POOL, semconv.KEY_STATE),
)
QUOTA_USED = Metric(
    "keyrot.key.quota.used_ratio",
    MetricKind.OBSERVED_GAUGE,
    "1",
    "Used share of a limit of the key's project.",
    (*_ATTEMPT, semconv.QUOTA),
)
WAIT_TIME = Metric(
    "keyrot.key.wait_time",
    MetricKind.HISTOGRAM,
    "s",
    "Time to acquire a key.",
    (semconv.POOL,),
    WAIT_SECONDS,
)
PENDING = Metric(
    "keyrot.key.pending_requests",
    MetricKind.UP_DOWN,
    "{request}",
    "Calls that wait for a key to become available.",
    (semconv.POOL,),
)
TIMEOUTS = Metric(
    "keyrot.key.timeouts",
    MetricKind.COUNTER,
    "{timeout}",
    "Calls that sent nothing because no key became available in time.",
    (semconv.POOL,),
)
MODEL_FALLBACKS = Metric(
    "keyrot.call.model_fallbacks",
    MetricKind.COUNTER,
    "{call}",
    "Calls to another model of a chain than the requested one.",
    (semconv.POOL, semconv.GEN_AI_REQUEST_MODEL, semconv.FALLBACK_FROM),
)
COOLDOWNS = Metric(
    "keyrot.key.cooldowns",
    MetricKind.COUNTER,
    "{cooldown}",
    "Failures after which the key, its project or its account is cooling down or rejected.",
    (semconv.POOL, semconv.KEY_ID, semconv.FAILURE_CLASS),
)
KEY_TOKENS = Metric(
    "keyrot.key.tokens",
    MetricKind.COUNTER,
    "{token}",
    "Tokens reported by the responses to requests with this key.",
    (*_ATTEMPT, semconv.TOKEN_TYPE),
)
KEY_COST = Metric(
    "keyrot.key.cost",
    MetricKind.COUNTER,
    "{USD}",
    "Cost of the requests with this key, by the price list.",
    _ATTEMPT,
)
DEGRADED = Metric(
    "keyrot.state.degraded",
    MetricKind.OBSERVED_UP_DOWN,
    "{state}",
    "1 while the shared state is down and the process uses in-process limits.",
    (semconv.POOL,),
)

METRICS = (
    OPERATION_DURATION,
    TOKEN_USAGE,
    FIRST_CHUNK,
    ATTEMPT_DURATION,
    CALL_ATTEMPTS,
    MODEL_FALLBACKS,
    WAIT_TIME,
    PENDING,
    TIMEOUTS,
    COOLDOWNS,
    KEY_TOKENS,
    KEY_COST,
    KEY_COUNT,
    QUOTA_USED,
    DEGRADED,
)
"""The default metrics, in the order of the documentation."""
NEW_METRICS = (
    INFERENCE_DURATION,
    EMBEDDINGS_DURATION,
    INFERENCE_FIRST_CHUNK,
    USAGE_INPUT,
    USAGE_OUTPUT,
    USAGE_CACHED,
    USAGE_THOUGHTS,
    OPERATION_INPUT,
    OPERATION_OUTPUT,
)
"""The metrics that OTEL_SEMCONV_STABILITY_OPT_IN adds, or that replace the first three."""


# A whole call, in the old names of the conventions and in the new ones --------------------------


OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
_NEW, _BOTH = "gen_ai_latest_experimental", "gen_ai_latest_experimental/dup"
_INFERENCE, _EMBEDDINGS = "generate_content", "embeddings"
_UNKNOWN = "unknown"
"""The modality of tokens, which is not read from the response."""

CallKey = tuple[str, str, str, str, Platform]
"""Pool, operation, model, host and platform."""


class CallMetrics(Protocol):
    """The metrics of a call in one version of the conventions."""

    def first_chunk(self, call: CallKey, seconds: float) -> None:
        """Record the time to a stream's first chunk."""

    def call(self, call: CallKey, seconds: float, usage: Usage, error_type: str | None) -> None:
        """Record a finished call."""


class _OldMetrics:
    """The names before 0.1.0: one metric for all operations."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _histogram(meter, OPERATION_DURATION)
        self._tokens = _histogram(meter, TOKEN_USAGE)
        self._first_chunk = _histogram(meter, FIRST_CHUNK)

    def first_chunk(self, call: CallKey, seconds: float) -> None:
        self._first_chunk.record(seconds, call_attributes(*call))

    def call(self, call: CallKey, seconds: float, usage: Usage, error_type: str | None) -> None:
        self._duration.record(seconds, call_attributes(*call, usage.model, None, error_type))
        for token_type, tokens in reported_tokens(usage):
            attributes = call_attributes(*call, usage.model, token_type, error_type)
            self._tokens.record(tokens, attributes)


class _NewMetrics:
    """The names of 0.1.0: separate metrics for inference and embeddings, tokens as counters."""

    def __init__(self, meter: Meter) -> None:
        self._durations = {
            _INFERENCE: _histogram(meter, INFERENCE_DURATION),
            _EMBEDDINGS: _histogram(meter, EMBEDDINGS_DURATION),
        }
        self._other = _histogram(meter, OPERATION_DURATION)
        self._first_chunk = _histogram(meter, INFERENCE_FIRST_CHUNK)
        self._input = _counter(meter, USAGE_INPUT)
        self._output = _counter(meter, USAGE_OUTPUT)
        self._cached = _counter(meter, USAGE_CACHED)
        self._thoughts = _counter(meter, USAGE_THOUGHTS)
        self._inputs = _histogram(meter, OPERATION_INPUT)
        self._outputs = _histogram(meter, OPERATION_OUTPUT)

    def first_chunk(self, call: CallKey, seconds: float) -> None:
        self._first_chunk.record(seconds, call_attributes(*call))

    def call(self, call: CallKey, seconds: float, usage: Usage, error_type: str | None) -> None:
        attributes = call_attributes(*call, usage.model, None, error_type)
        operation = call[1]
        self._durations.get(operation, self._other).record(seconds, attributes)
        if operation != _INFERENCE:
            return
        if usage.input_tokens is not None:
            self._inputs.record(usage.input_tokens, attributes)
        if usage.output_tokens is not None:
            self._outputs.record(usage.output_tokens, attributes)
        # The conventions ask for totals of a failed call too: 0.
        attributes = call_attributes(*call, usage.model, None, None, _UNKNOWN)
        self._input.add(usage.input_tokens or 0, attributes)
        self._output.add(usage.output_tokens or 0, attributes)
        if usage.cached_tokens is not None:
            self._cached.add(usage.cached_tokens, attributes)
        if usage.thought_tokens is not None:
            self._thoughts.add(usage.thought_tokens, attributes)


def reported_tokens(usage: Usage) -> tuple[tuple[str, int], ...]:
    """Return the tokens that a response reported, by type; none for what it did not report."""
    counts = (("input", usage.input_tokens), ("output", usage.output_tokens))
    return tuple((token_type, count) for token_type, count in counts if count is not None)


class Instruments:
    """The instruments that record calls."""

    __slots__ = (
        "attempt_duration", "call_attempts", "calls", "cooldowns", "key_cost", "key_tokens",
        "model_fallbacks", "pending", "timeouts", "wait_time",
    )  # fmt: skip

    def __init__(self, meter: Meter) -> None:
        """Create them; the environment selects the versions of the conventions."""
        self.calls: tuple[CallMetrics, ...] = _call_metrics(meter)
        self.attempt_duration = _histogram(meter, ATTEMPT_DURATION)
        self.call_attempts = _histogram(meter, CALL_ATTEMPTS)
        self.model_fallbacks = _counter(meter, MODEL_FALLBACKS)
        self.wait_time = _histogram(meter, WAIT_TIME)
        self.pending = meter.create_up_down_counter(*PENDING.args)
        self.timeouts = _counter(meter, TIMEOUTS)
        self.cooldowns = _counter(meter, COOLDOWNS)
        self.key_tokens = _counter(meter, KEY_TOKENS)
        self.key_cost = _counter(meter, KEY_COST)


def _call_metrics(meter: Meter) -> tuple[CallMetrics, ...]:
    selected = {item.strip() for item in os.environ.get(OPT_IN, "").split(",")}
    if _BOTH in selected:
        return (_OldMetrics(meter), _NewMetrics(meter))
    return (_NewMetrics(meter) if _NEW in selected else _OldMetrics(meter),)


def _counter(meter: Meter, metric: Metric) -> Counter:
    return meter.create_counter(*metric.args)


_TAKES_BUCKETS = (
    "explicit_bucket_boundaries_advisory" in signature(Meter.create_histogram).parameters
)
"""Since OpenTelemetry 1.30; with older versions the histograms have the SDK's own buckets."""


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    if not _TAKES_BUCKETS:
        return meter.create_histogram(*metric.args)
    return meter.create_histogram(*metric.args, explicit_bucket_boundaries_advisory=metric.buckets)
