"""Metrics, through the OpenTelemetry API alone: for whichever meter provider the program has.

The `keyrot.key.*` metrics follow those of database connection pools, since calls wait for a key in
the same way. The `gen_ai.*` metrics follow the GenAI conventions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from inspect import signature
from typing import Any, NamedTuple

from opentelemetry import context, metrics
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter, Observation

from .._version import __version__
from ..core.activity import Attempt, CallRecord
from ..core.counting import ModelNames
from ..core.flow import Exhausted
from ..core.model import HOME, CallInfo, Usage
from ..errors import handle_internal_error
from . import CallObserver, semconv
from .otel import CurrentProvider, is_suppressed
from .semconv import (
    INFERENCE,
    Attributes,
    Conventions,
    cause_from_error,
    covering_span,
    operation_name,
    request_attributes,
)


class Metric(NamedTuple):
    """One metric."""

    kind: str
    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] = ()
    """Upper bounds, advised to the program's SDK."""


_SECONDS = tuple(round(0.01 * 2.0**power, 2) for power in range(14))
_TOKENS = tuple(4.0**power for power in range(14))
_WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_POOL, _MODEL, _FAILURE = semconv.POOL, semconv.GEN_AI_REQUEST_MODEL, semconv.FAILURE_CLASS
_HISTOGRAM, _COUNTER = "Histogram", "Counter"
_GAUGE, _OBSERVED = "observable Gauge", "observable UpDownCounter"

_DURATION = Metric(_HISTOGRAM, "gen_ai.client.operation.duration", "s", "A call.", _SECONDS)
_TOKEN_USAGE = Metric(
    _HISTOGRAM, "gen_ai.client.token.usage", "{token}", "Tokens of a call's response.", _TOKENS
)
_FIRST_CHUNK = Metric(
    _HISTOGRAM, "gen_ai.client.operation.time_to_first_chunk", "s", "Of a stream.", _SECONDS
)
_NEW_DURATION = Metric(
    _HISTOGRAM, "gen_ai.client.inference.duration", "s", "A call, by the new name.", _SECONDS
)
_NEW_FIRST_CHUNK = Metric(
    _HISTOGRAM, "gen_ai.client.inference.time_to_first_chunk", "s", "Of a stream.", _SECONDS
)
_INPUT_SIZE, _OUTPUT_SIZE = (
    Metric(
        _HISTOGRAM,
        f"gen_ai.client.inference.operation.{kind}_tokens",
        "{token}",
        f"The {kind} of a call.",
        _TOKENS,
    )
    for kind in ("input", "output")
)
_INPUT, _OUTPUT, _CACHE_READ, _CACHE_WRITE, _REASONING = (
    Metric(_COUNTER, f"gen_ai.client.inference.usage.{kind}_tokens", "{token}", text)
    for kind, text in (
        ("input", "With cached ones."),
        ("output", "With thoughts."),
        ("cache_read.input", "Of the input: from a cache."),
        ("cache_write.input", "Of the input: written to a cache."),
        ("reasoning.output", "Of the output: thoughts."),
    )
)
_ATTEMPT = Metric(_HISTOGRAM, "keyrot.attempt.duration", "s", "One send.", _SECONDS)
_ATTEMPTS = Metric(
    _HISTOGRAM, "keyrot.call.attempts", "{attempt}", "Sends of a call.", (1, 2, 3, 4, 5, 8, 10)
)
_FALLBACKS = Metric(_COUNTER, "keyrot.call.model_fallbacks", "{call}", "Calls to another model.")
_WAIT_TIME = Metric(_HISTOGRAM, "keyrot.key.wait_time", "s", "Time to acquire a key.", _WAITS)
_PENDING = Metric(
    _OBSERVED, "keyrot.key.pending_requests", "{request}", "Calls that wait for a key."
)
_TIMEOUTS = Metric(_COUNTER, "keyrot.key.timeouts", "{timeout}", "Calls without an available key.")
_COOLDOWNS = Metric(_COUNTER, "keyrot.key.cooldowns", "{cooldown}", "Cooldowns and rejections.")
_HELD_BACK = Metric(_COUNTER, "keyrot.key.held_back", "{call}", "Calls kept from a full limit.")
_KEY_TOKENS = Metric(_COUNTER, "keyrot.key.tokens", "{token}", "Tokens of responses to this key.")
_KEY_COST = Metric(_COUNTER, "keyrot.key.cost", "{USD}", "Cost of requests with this key.")
_ANSWERS = Metric(_OBSERVED, "keyrot.call.answers", "{answer}", "What a call would get now.")
_PROBLEMS = Metric(_GAUGE, "keyrot.pool.problems", "{problem}", "1: what an alert reports is so.")
_KEY_COUNT = Metric(_OBSERVED, "keyrot.key.count", "{key}", "Keys by their state.")
_QUOTA_USED = Metric(_GAUGE, "keyrot.key.quota.used_ratio", "1", "Used share of a limit.")
_QUOTA_PEAK = Metric(
    _GAUGE, "keyrot.key.quota.peak_ratio", "1", "Used share of a limit in today's fullest minute."
)
_EXPIRES_IN = Metric(_GAUGE, "keyrot.key.expires_in", "d", "Until the end of a key's value.")
_DEGRADED = Metric(_OBSERVED, "keyrot.state.degraded", "{state}", "1: in-process limits are used.")
_OF_CALLS = (
    *(_DURATION, _TOKEN_USAGE, _FIRST_CHUNK, _NEW_DURATION, _NEW_FIRST_CHUNK, _INPUT, _OUTPUT),
    *(_CACHE_READ, _CACHE_WRITE, _REASONING, _INPUT_SIZE, _OUTPUT_SIZE),
    *(_ATTEMPT, _ATTEMPTS, _FALLBACKS, _WAIT_TIME),
    *(_TIMEOUTS, _COOLDOWNS, _HELD_BACK, _KEY_TOKENS, _KEY_COST),
)
_LEVELS = (
    _ANSWERS,
    _PROBLEMS,
    _PENDING,
    _KEY_COUNT,
    _QUOTA_USED,
    _QUOTA_PEAK,
    _EXPIRES_IN,
    _DEGRADED,
)
METRICS = (*_OF_CALLS, *_LEVELS)
"""In the order of the documentation."""
_HAS_BUCKETS = "explicit_bucket_boundaries_advisory" in signature(Meter.create_histogram).parameters
"""Since OpenTelemetry 1.30; with older versions the histograms have the SDK's own buckets."""


# Attribute sets of measurements, cached: creating one costs more than the measurement -------------

CACHE_SIZE = 4_096
"""The SDK keeps 2,000 series per metric and merges the rest into one."""


@lru_cache(maxsize=CACHE_SIZE)
def _labels(  # noqa: PLR0917 - keyword arguments would double the cost of a cache hit
    pool: str,
    error_type: str | None = None,
    key_id: str = "",
    model: str | None = None,
    failure: str | None = None,
    token_type: str | None = None,
) -> Attributes:
    """Return the attributes of a measurement; every home key is `home`, or each had its series."""
    values = {
        _POOL: pool,
        semconv.ERROR_TYPE: error_type,
        semconv.KEY_ID: HOME.rstrip(":") if key_id.startswith(HOME) else key_id,
        _MODEL: model,
        _FAILURE: failure,
        "gen_ai.token.type": token_type,
    }
    return {name: value for name, value in values.items() if value}


@lru_cache(maxsize=CACHE_SIZE)
def _call_labels(  # noqa: PLR0917 - as above
    pool: str,
    verb: str,
    model: str,
    host: str,
    platform: str,
    error_type: str | None = None,
    response_model: str | None = None,
    token_type: str | None = None,
    modality: str | None = None,
) -> Attributes:
    """Return the attributes of a measurement of a call, as in the GenAI conventions."""
    request = request_attributes(operation_name(verb), model, host, platform)
    named = {semconv.GEN_AI_RESPONSE_MODEL: response_model, "gen_ai.token.modality": modality}
    more = {name: value for name, value in named.items() if value}
    return request | more | _labels(pool, error_type, "", None, None, token_type)


# How the record of one call becomes measurements --------------------------------------------------


class CallMeter(CallObserver):
    """Measures one call, from its record."""

    __slots__ = ("_conventions", "_info", "_instruments", "_pool")

    def __init__(
        self,
        instruments: dict[Metric, Any],
        info: CallInfo,
        pool: str,
        conventions: Conventions | None,
    ) -> None:
        """Measure a call; without *conventions* another instrumentation has `gen_ai.*` metrics."""
        self._instruments, self._info, self._pool = instruments, info, pool
        self._conventions = conventions

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """Record the whole call."""
        instruments, pool, info, usage = self._instruments, self._pool, self._info, record.usage
        last, cause = record.attempts[-1:], cause_from_error(error, info.platform)
        error_type = cause.type if cause is not None else None
        if last and last[0].error_type and record.outcome == "failed":
            error_type = last[0].error_type
        for one in record.attempts:  # of one that was abandoned the error is that of the call
            self._attempt(one, one.error_type or (error_type if one is last[0] else None))
        instruments[_ATTEMPTS].record(len(record.attempts), _labels(pool, error_type))
        if isinstance(error, Exhausted):
            instruments[_TIMEOUTS].add(1, _labels(pool))
        call = pool, info.verb, info.model, info.host, info.platform
        counts = ("input", usage.input_tokens), ("output", usage.output_tokens)
        known = [(kind, tokens) for kind, tokens in counts if tokens is not None]
        for key_id in record.full:
            instruments[_HELD_BACK].add(1, _labels(pool, None, key_id, info.model))
        for key_id in [one.key_id for one in last]:
            for kind, tokens in known:
                attributes = _labels(pool, None, key_id, info.model, None, kind)
                instruments[_KEY_TOKENS].add(tokens, attributes)
            if usage.cost_usd is not None:
                labels = _labels(pool, None, key_id, info.model)
                instruments[_KEY_COST].add(usage.cost_usd, labels)
        if self._conventions is not None:
            self._measure_call(call, record, error_type, self._conventions)

    def _measure_call(
        self,
        call: tuple[str, str, str, str, str],
        record: CallRecord,
        error_type: str | None,
        conventions: Conventions,
    ) -> None:
        """Record the `gen_ai.*` metrics; only inference has new names."""
        instruments, usage = self._instruments, record.usage
        is_inference = operation_name(self._info.verb) in INFERENCE
        old, new = conventions.old or not is_inference, conventions.new and is_inference
        attributes = _call_labels(*call, error_type, usage.model)
        counts = zip(("input", "output"), (_INPUT_SIZE, _OUTPUT_SIZE), usage[:2], strict=False)
        known = [(kind, size, tokens) for kind, size, tokens in counts if tokens is not None]
        for metric in [_DURATION] * old + [_NEW_DURATION] * new:
            instruments[metric].record(record.seconds, attributes)
        for kind, size, tokens in known:
            if old:
                of_kind = _call_labels(*call, error_type, usage.model, kind)
                instruments[_TOKEN_USAGE].record(tokens, of_kind)
            if new and error_type is None:
                instruments[size].record(tokens, attributes)
        if new:
            self._count_usage(call, usage)
        if record.first_chunk_s:
            for metric in [_FIRST_CHUNK] * old + [_NEW_FIRST_CHUNK] * new:
                instruments[metric].record(record.first_chunk_s, _call_labels(*call))

    def _count_usage(self, call: tuple[str, str, str, str, str], usage: Usage) -> None:
        """Count the tokens of a call by their kind, and those of audio and images apart."""
        details = dict(usage.details)
        written = details.get("cache_write_tokens")
        for metric, tokens, of in (
            (_INPUT, usage.input_tokens, "input_{}_tokens"),
            (_OUTPUT, usage.output_tokens, "output_{}_tokens"),
            (_CACHE_READ, usage.cached_tokens, "cache_{}_read_tokens"),
            (_CACHE_WRITE, written, ""),
            (_REASONING, usage.thought_tokens, ""),
        ):
            left = tokens or 0
            for modality in ("audio", "image", "unknown"):
                part = details.get(of.format(modality), 0)
                part = left if modality == "unknown" else min(part, left)
                left -= part
                if part > 0:
                    labels = _call_labels(*call, None, usage.model, None, modality)
                    self._instruments[metric].add(part, labels)

    def _attempt(self, one: Attempt, error_type: str | None) -> None:
        instruments, pool = self._instruments, self._pool
        instruments[_WAIT_TIME].record(one.waited_s, _labels(pool))
        attributes = _labels(pool, error_type, one.key_id, self._info.model, one.failure)
        instruments[_ATTEMPT].record(one.seconds, attributes)
        if one.cools_down:
            instruments[_COOLDOWNS].add(1, _labels(pool, None, one.key_id, None, one.failure))


# What each collection reports ---------------------------------------------------------------------

Levels = Callable[[str], Iterable[tuple[float, dict[str, str]]]]
"""Returns the values of a metric and their attributes, by its name."""


class _Gauges:
    """The gauges of all pools of one meter provider.

    A callback cannot be removed from its instrument, and an instrument is created only once. So
    there is one object per provider, whose callbacks report the pools registered at that time.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[str, Levels]] = []
        self.created = False

    def create(self, meter: Meter) -> None:
        self.created = True
        for metric in _LEVELS:
            create: Any = meter.create_observable_up_down_counter
            if metric.kind == _GAUGE:
                create = meter.create_observable_gauge
            callback = partial(self._read, metric.name)
            create(metric.name, [callback], metric.unit, metric.description)

    def _read(self, name: str, _options: object) -> Iterator[Observation]:
        for pool, read in tuple(self.sources):  # no lock is held, since the process may fork
            try:
                found = list(read(name))
            except Exception:
                handle_internal_error("telemetry")
                continue
            for value, labels in found:
                yield Observation(value, {_POOL: pool, **labels})


_OLD = Conventions()
_global_gauges = _Gauges()
"""Of the global provider, whichever it will be."""


class MetricsObserver:
    """Measures calls, as long as the program has a meter provider."""

    def __init__(
        self,
        pool_name: str,
        meter_provider: MeterProvider | None = None,
        conventions: Conventions = _OLD,
    ) -> None:
        """Measure the calls of a pool.

        Args:
            pool_name: The value of `keyrot.pool.name`.
            meter_provider: None: the global one, which may be set later.
            conventions: Which names the `gen_ai.*` metrics have.
        """
        self._pool, self._provider = pool_name, meter_provider
        self._conventions = conventions
        self._gauges = _Gauges() if meter_provider is not None else _global_gauges
        self._models = ModelNames()
        get = metrics.get_meter_provider if meter_provider is None else lambda: meter_provider
        self._instruments = CurrentProvider(get, self._create_instruments)
        self._read: Levels | None = None

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Measure a call, unless nothing records it or instrumentation is suppressed."""
        instruments = self._instruments()
        if instruments is None:
            return None
        ctx = context.get_current()
        if is_suppressed(ctx):
            return None
        conventions = None if covering_span(ctx, info) is not None else self._conventions
        info = self._models.bounded(info, time.monotonic())
        if info.models_tried:
            attributes = _labels(self._pool, None, "", info.model)
            attributes = attributes | {semconv.FALLBACK_FROM: info.models_tried[-1]}
            instruments[_FALLBACKS].add(1, attributes)
        return CallMeter(instruments, info, self._pool, conventions)

    def register_gauges(self, read: Levels) -> None:
        """Report the levels of the pool at each collection, until `unregister_gauges()`."""
        self._read = read
        self._gauges.sources.append((self._pool, read))
        if self._gauges.created:
            return
        try:  # the API's proxy forwards to the program's provider once it is set
            self._gauges.create(
                metrics.get_meter(semconv.INSTRUMENTATION, __version__, self._provider)
            )
        except Exception:  # a provider named by OTEL_PYTHON_METER_PROVIDER that cannot be loaded
            handle_internal_error("telemetry")

    def unregister_gauges(self) -> None:
        """Stop reporting the state of the keys."""
        if self._read is not None:
            self._gauges.sources.remove((self._pool, self._read))
            self._read = None

    def _create_instruments(self, provider: MeterProvider) -> dict[Metric, Any] | None:
        """Create the instruments; return None if the provider records nothing."""
        # The API's own providers, in place until the program sets one, record nothing.
        if type(provider).__module__.startswith("opentelemetry.metrics"):
            return None
        meter = provider.get_meter(semconv.INSTRUMENTATION, __version__)
        if isinstance(meter, NoOpMeter):
            return None
        made: dict[Metric, Any] = {}
        for metric in _OF_CALLS:
            args = metric.name, metric.unit, metric.description
            if metric.kind == _HISTOGRAM:
                buckets = {"explicit_bucket_boundaries_advisory": metric.buckets}
                more: Any = buckets if _HAS_BUCKETS else {}
                made[metric] = meter.create_histogram(*args, **more)
            else:
                made[metric] = meter.create_counter(*args)
        made[_TIMEOUTS].add(0, _labels(self._pool))  # a rate exists before the first increment
        return made
