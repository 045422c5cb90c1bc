"""The table of our metrics, and the instruments that a call records with.

Kinds, units and buckets are those of TELEMETRY in docs/telemetry.md, which a test compares with
this table. The `gen_ai.*` metrics follow the GenAI conventions (conventions.py); `keyrot.key.*`
those of database connection pools, since a pool of keys is waited for in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.metrics import Counter, Histogram, Meter, UpDownCounter

from . import semconv

if TYPE_CHECKING:
    from .conventions import CallMetrics

__all__ = [
    "METRICS",
    "NEW_METRICS",
    "Instruments",
    "Metric",
    "MetricKind",
    "make_counter",
    "make_histogram",
]


class MetricKind(StrEnum):
    """What an instrument counts, as the documentation calls it."""

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
    about: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds that are advised to the program's SDK."""


SECONDS = tuple(round(0.01 * 2.0**power, 2) for power in range(14))
"""0.01 … 81.92, of the GenAI conventions; attempts have the same, to be laid beside calls."""
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
    "From the begin of a streamed call to its first chunk.",
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
    name="gen_ai.client.embeddings.duration", about="An embeddings call with all its attempts."
)
INFERENCE_FIRST_CHUNK = Metric(
    "gen_ai.client.inference.time_to_first_chunk",
    MetricKind.HISTOGRAM,
    "s",
    "From the begin of a streamed call to its first chunk.",
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
    name="gen_ai.client.inference.usage.output_tokens", about="Output tokens, with thoughts."
)
USAGE_CACHED = USAGE_INPUT._replace(
    name="gen_ai.client.inference.usage.cache_read.input_tokens", about="Cached input tokens."
)
USAGE_THOUGHTS = USAGE_INPUT._replace(
    name="gen_ai.client.inference.usage.reasoning.output_tokens", about="Thought tokens."
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
    name="gen_ai.client.inference.operation.output_tokens", about="Output tokens of one call."
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
    "Sends of a call; 0 where no key was free.",
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
    "From wanting a key to having one.",
    (semconv.POOL,),
    WAIT_SECONDS,
)
PENDING = Metric(
    "keyrot.key.pending_requests",
    MetricKind.UP_DOWN,
    "{request}",
    "Calls that wait for a key to come free.",
    (semconv.POOL,),
)
TIMEOUTS = Metric(
    "keyrot.key.timeouts",
    MetricKind.COUNTER,
    "{timeout}",
    "Calls that sent nothing, since no key came free in time.",
    (semconv.POOL,),
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
    "Tokens that the responses to a key reported.",
    (*_ATTEMPT, semconv.TOKEN_TYPE),
)
DEGRADED = Metric(
    "keyrot.state.degraded",
    MetricKind.OBSERVED_UP_DOWN,
    "{state}",
    "1 while the shared state is out of reach and this process counts alone.",
    (semconv.POOL,),
)

METRICS = (
    OPERATION_DURATION,
    TOKEN_USAGE,
    FIRST_CHUNK,
    ATTEMPT_DURATION,
    CALL_ATTEMPTS,
    WAIT_TIME,
    PENDING,
    TIMEOUTS,
    COOLDOWNS,
    KEY_TOKENS,
    KEY_COUNT,
    QUOTA_USED,
    DEGRADED,
)
"""What we emit by default, in the order of the documentation."""
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
"""What OTEL_SEMCONV_STABILITY_OPT_IN adds, or puts in place of the first three."""


class Instruments:
    """What a call records with."""

    __slots__ = (
        "attempt_duration", "call_attempts", "calls", "cooldowns", "key_tokens",
        "pending", "timeouts", "wait_time",
    )  # fmt: skip

    def __init__(self, meter: Meter, calls: Sequence[CallMetrics]) -> None:
        """Make them; *calls* are those of the conventions."""
        self.calls = calls
        self.attempt_duration = make_histogram(meter, ATTEMPT_DURATION)
        self.call_attempts = make_histogram(meter, CALL_ATTEMPTS)
        self.wait_time = make_histogram(meter, WAIT_TIME)
        self.pending: UpDownCounter = meter.create_up_down_counter(*_words(PENDING))
        self.timeouts = make_counter(meter, TIMEOUTS)
        self.cooldowns = make_counter(meter, COOLDOWNS)
        self.key_tokens = make_counter(meter, KEY_TOKENS)


def _words(metric: Metric) -> tuple[str, str, str]:
    return metric.name, metric.unit, metric.about


def make_counter(meter: Meter, metric: Metric) -> Counter:
    """Make the counter of a metric."""
    return meter.create_counter(*_words(metric))


def make_histogram(meter: Meter, metric: Metric) -> Histogram:
    """Make the histogram of a metric, with the buckets that are advised for it."""
    return meter.create_histogram(
        *_words(metric), explicit_bucket_boundaries_advisory=metric.buckets
    )
