"""The table of our metrics, and the instruments that a call records with.

Kinds, units and buckets are those of TELEMETRY in docs/telemetry.md, which a test compares with
this table. The two `gen_ai.*` metrics follow the GenAI conventions; `keyrot.key.*` those of
database connection pools, since a pool of keys is waited for in the same way.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from opentelemetry.metrics import Counter, Histogram, Meter, UpDownCounter

from . import names

__all__ = ["METRICS", "Instruments", "Metric", "MetricKind"]


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
    names.GEN_AI_OPERATION,
    names.GEN_AI_PROVIDER,
    names.GEN_AI_REQUEST_MODEL,
    names.GEN_AI_RESPONSE_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
    names.ERROR_TYPE,
    names.POOL,
)
_ATTEMPT = (names.POOL, names.GEN_AI_REQUEST_MODEL, names.KEY_ID)

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
    (*_CALL, names.TOKEN_TYPE),
    TOKENS,
)
FIRST_CHUNK = Metric(
    "gen_ai.client.operation.time_to_first_chunk",
    MetricKind.HISTOGRAM,
    "s",
    "From the begin of a streamed call to its first chunk.",
    tuple(n for n in _CALL if n not in (names.GEN_AI_RESPONSE_MODEL, names.ERROR_TYPE)),
    SECONDS,
)
ATTEMPT_DURATION = Metric(
    "keyrot.attempt.duration",
    MetricKind.HISTOGRAM,
    "s",
    "One send.",
    (*_ATTEMPT, names.ERROR_TYPE, names.FAILURE_CLASS),
    SECONDS,
)
CALL_ATTEMPTS = Metric(
    "keyrot.call.attempts",
    MetricKind.HISTOGRAM,
    "{attempt}",
    "Sends of a call; 0 where no key was free.",
    (names.POOL, names.ERROR_TYPE),
    (1, 2, 3, 4, 5, 8, 10),
)
KEY_COUNT = Metric(
    "keyrot.key.count",
    MetricKind.OBSERVED_UP_DOWN,
    "{key}",
    "Keys of the pool by their state.",
    (names.POOL, names.KEY_STATE),
)
QUOTA_USED = Metric(
    "keyrot.key.quota.used_ratio",
    MetricKind.OBSERVED_GAUGE,
    "1",
    "Used share of a limit of the key's project.",
    (*_ATTEMPT, names.QUOTA),
)
WAIT_TIME = Metric(
    "keyrot.key.wait_time",
    MetricKind.HISTOGRAM,
    "s",
    "From wanting a key to having one.",
    (names.POOL,),
    WAIT_SECONDS,
)
PENDING = Metric(
    "keyrot.key.pending_requests",
    MetricKind.UP_DOWN,
    "{request}",
    "Calls that wait for a key to come free.",
    (names.POOL,),
)
TIMEOUTS = Metric(
    "keyrot.key.timeouts",
    MetricKind.COUNTER,
    "{timeout}",
    "Calls that sent nothing, since no key came free in time.",
    (names.POOL,),
)
COOLDOWNS = Metric(
    "keyrot.key.cooldowns",
    MetricKind.COUNTER,
    "{cooldown}",
    "Failures after which the key, its project or its account rests or is retired.",
    (names.POOL, names.KEY_ID, names.FAILURE_CLASS),
)
KEY_TOKENS = Metric(
    "keyrot.key.tokens",
    MetricKind.COUNTER,
    "{token}",
    "Tokens that the responses to a key told.",
    (*_ATTEMPT, names.TOKEN_TYPE),
)
DEGRADED = Metric(
    "keyrot.state.degraded",
    MetricKind.OBSERVED_UP_DOWN,
    "{state}",
    "1 while the shared state is out of reach and this process counts alone.",
    (names.POOL,),
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
"""All that we emit, in the order of the documentation."""


class Instruments:
    """What a call records with."""

    __slots__ = (
        "attempt_duration", "call_attempts", "cooldowns", "first_chunk", "key_tokens",
        "operation_duration", "pending", "timeouts", "token_usage", "wait_time",
    )  # fmt: skip

    def __init__(self, meter: Meter) -> None:
        self.operation_duration = _histogram(meter, OPERATION_DURATION)
        self.token_usage = _histogram(meter, TOKEN_USAGE)
        self.first_chunk = _histogram(meter, FIRST_CHUNK)
        self.attempt_duration = _histogram(meter, ATTEMPT_DURATION)
        self.call_attempts = _histogram(meter, CALL_ATTEMPTS)
        self.wait_time = _histogram(meter, WAIT_TIME)
        self.pending: UpDownCounter = meter.create_up_down_counter(*_words(PENDING))
        self.timeouts = _counter(meter, TIMEOUTS)
        self.cooldowns = _counter(meter, COOLDOWNS)
        self.key_tokens = _counter(meter, KEY_TOKENS)


def _words(metric: Metric) -> tuple[str, str, str]:
    return metric.name, metric.unit, metric.about


def _counter(meter: Meter, metric: Metric) -> Counter:
    return meter.create_counter(*_words(metric))


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        *_words(metric), explicit_bucket_boundaries_advisory=metric.buckets
    )
