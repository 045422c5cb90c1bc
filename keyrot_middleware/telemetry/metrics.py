"""Metrics, through the OpenTelemetry API alone: for whichever meter provider the program has.

The `keyrot.key.*` metrics follow those of database connection pools, since calls wait for a key in
the same way. The `gen_ai.*` metrics follow the GenAI conventions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

from opentelemetry import context, metrics
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter, Observation

from .._version import __version__
from ..core.availability import KEY_STATES, KeyState
from ..core.commands import Acquire, Command, Send, Settle, Sleep, StreamOpened
from ..core.flow import Exhausted
from ..core.model import HOME, NO_USAGE, CallInfo, LeaseOutcome, Usage
from ..core.model_names import ModelNames
from ..errors import handle_internal_error
from . import CallObserver, semconv
from .otel import CurrentProvider, is_suppressed
from .semconv import (
    Attributes,
    ErrorCause,
    cause_from_error,
    cause_from_verdict,
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
_HISTOGRAM, _COUNTER, _UP_DOWN = "Histogram", "Counter", "UpDownCounter"
_GAUGE, _OBSERVED = "observable Gauge", "observable UpDownCounter"

_DURATION = Metric(_HISTOGRAM, "gen_ai.client.operation.duration", "s", "A call.", _SECONDS)
_TOKEN_USAGE = Metric(
    _HISTOGRAM, "gen_ai.client.token.usage", "{token}", "Tokens of a call's response.", _TOKENS
)
_FIRST_CHUNK = Metric(
    _HISTOGRAM, "gen_ai.client.operation.time_to_first_chunk", "s", "Of a stream.", _SECONDS
)
_ATTEMPT = Metric(_HISTOGRAM, "keyrot.attempt.duration", "s", "One send.", _SECONDS)
_ATTEMPTS = Metric(
    _HISTOGRAM, "keyrot.call.attempts", "{attempt}", "Sends of a call.", (1, 2, 3, 4, 5, 8, 10)
)
_FALLBACKS = Metric(_COUNTER, "keyrot.call.model_fallbacks", "{call}", "Calls to another model.")
_WAIT_TIME = Metric(_HISTOGRAM, "keyrot.key.wait_time", "s", "Time to acquire a key.", _WAITS)
_PENDING = Metric(
    _UP_DOWN, "keyrot.key.pending_requests", "{request}", "Calls that wait for a key."
)
_TIMEOUTS = Metric(_COUNTER, "keyrot.key.timeouts", "{timeout}", "Calls without an available key.")
_COOLDOWNS = Metric(_COUNTER, "keyrot.key.cooldowns", "{cooldown}", "Cooldowns and rejections.")
_KEY_TOKENS = Metric(_COUNTER, "keyrot.key.tokens", "{token}", "Tokens of responses to this key.")
_KEY_COST = Metric(_COUNTER, "keyrot.key.cost", "{USD}", "Cost of requests with this key.")
_KEY_COUNT = Metric(_OBSERVED, "keyrot.key.count", "{key}", "Keys by their state.")
_QUOTA_USED = Metric(_GAUGE, "keyrot.key.quota.used_ratio", "1", "Used share of a limit.")
_DEGRADED = Metric(_OBSERVED, "keyrot.state.degraded", "{state}", "1: in-process limits are used.")
_OF_CALLS = (
    *(_DURATION, _TOKEN_USAGE, _FIRST_CHUNK, _ATTEMPT, _ATTEMPTS, _FALLBACKS, _WAIT_TIME, _PENDING),
    *(_TIMEOUTS, _COOLDOWNS, _KEY_TOKENS, _KEY_COST),
)
METRICS = (*_OF_CALLS, _KEY_COUNT, _QUOTA_USED, _DEGRADED)
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
) -> Attributes:
    """Return the attributes of a measurement of a call, as in the GenAI conventions."""
    request = request_attributes(operation_name(verb), model, host, platform)
    more = {semconv.GEN_AI_RESPONSE_MODEL: response_model} if response_model else {}
    return request | more | _labels(pool, error_type, "", None, None, token_type)


# How the commands of one call become measurements -------------------------------------------------


class CallMeter(CallObserver):
    """Measures one call, from the moment it is made."""

    __slots__ = (
        "_abandoned", "_acquire_since", "_count", "_info", "_instruments", "_is_covered", "_key_id",
        "_last_failure", "_pool", "_sent_at", "_started", "_usage",
    )  # fmt: skip

    def __init__(
        self, instruments: dict[Metric, Any], info: CallInfo, pool: str, *, is_covered: bool
    ) -> None:
        """Start to measure; *is_covered*: another instrumentation has the `gen_ai.*` metrics."""
        self._started = time.perf_counter()
        self._instruments, self._info, self._pool = instruments, info, pool
        self._is_covered = is_covered
        self._key_id: str | None = None
        """The key of the request in flight."""
        self._count, self._sent_at = 0, 0.0
        self._usage = NO_USAGE
        self._acquire_since: float | None = None
        self._abandoned: tuple[str, float] | None = None
        """Key and seconds of an abandoned attempt; its `error.type` is known at the call's end."""
        self._last_failure: tuple[BaseException | None, ErrorCause | None] = (None, None)

    def before(self, command: Command) -> None:
        """Start what *command* starts."""
        is_wait = isinstance(command, Sleep) and command.reason == "key"
        if isinstance(command, Send):
            now = time.perf_counter()
            since = now if self._acquire_since is None else self._acquire_since
            self._instruments[_WAIT_TIME].record(now - since, _labels(self._pool))
            self._acquire_since, self._sent_at = None, now
            self._key_id, self._count = command.lease.key_id, self._count + 1
        elif self._acquire_since is None and (is_wait or isinstance(command, Acquire)):
            self._acquire_since = time.perf_counter()
        if is_wait:
            self._instruments[_PENDING].add(1, _labels(self._pool))

    def after(self, command: Command, reply: Any) -> None:
        """Record the result of *command*."""
        if isinstance(command, Settle):
            self._settle(command, cooling_down=isinstance(reply, int | float))
        elif isinstance(command, Send):
            is_stream = isinstance(reply, StreamOpened) and self._info.stream
            if is_stream and not self._is_covered:
                seconds = time.perf_counter() - self._started
                self._instruments[_FIRST_CHUNK].record(seconds, _call_labels(*self._call))
        elif isinstance(command, Sleep) and command.reason == "key":
            self._instruments[_PENDING].add(-1, _labels(self._pool))

    def finish(self, error: BaseException | None) -> None:
        """Record the whole call."""
        now, instruments, pool = time.perf_counter(), self._instruments, self._pool
        if self._key_id is not None:  # an async stream that was dropped unread, and not settled
            self._abandoned = self._key_id, now - self._sent_at
        last_error, cause = self._last_failure
        if error is None or error is not last_error:
            cause = cause_from_error(error)
        error_type = cause.type if cause is not None else None
        if self._abandoned is not None:
            key_id, duration = self._abandoned
            attributes = _labels(pool, error_type, key_id, self._info.model)
            instruments[_ATTEMPT].record(duration, attributes)
        instruments[_ATTEMPTS].record(self._count, _labels(pool, error_type))
        if isinstance(error, Exhausted):
            instruments[_TIMEOUTS].add(1, _labels(pool))
        if self._is_covered:
            return
        call, model = self._call, self._usage.model
        instruments[_DURATION].record(now - self._started, _call_labels(*call, error_type, model))
        for kind, tokens in _tokens(self._usage):
            if tokens is not None:
                attributes = _call_labels(*call, error_type, model, kind)
                instruments[_TOKEN_USAGE].record(tokens, attributes)

    def _settle(self, command: Settle, *, cooling_down: bool) -> None:
        seconds = time.perf_counter() - self._sent_at
        self._key_id = None
        instruments, pool = self._instruments, self._pool
        key_id, model = command.lease.key_id, self._info.model
        outcome, verdict, self._usage, _ = command.outcome
        for kind, tokens in _tokens(self._usage):
            if tokens is not None:
                attributes = _labels(pool, None, key_id, model, None, kind)
                instruments[_KEY_TOKENS].add(tokens, attributes)
        if self._usage.cost_usd is not None:
            attributes = _labels(pool, None, key_id, model)
            instruments[_KEY_COST].add(self._usage.cost_usd, attributes)
        failure = error_type = None
        if verdict is not None:
            cause = cause_from_verdict(verdict, command.error)
            self._last_failure = command.error, cause
            failure, error_type = verdict.failure, cause.type
            if cooling_down:
                instruments[_COOLDOWNS].add(1, _labels(pool, None, key_id, None, failure))
        elif outcome is not LeaseOutcome.SUCCESS:
            self._abandoned = key_id, seconds
            return
        attributes = _labels(pool, error_type, key_id, model, failure)
        instruments[_ATTEMPT].record(seconds, attributes)

    @property
    def _call(self) -> tuple[str, str, str, str, str]:
        info = self._info
        return self._pool, info.verb, info.model, info.host, info.platform


def _tokens(usage: Usage) -> tuple[tuple[str, int | None], ...]:
    return ("input", usage.input_tokens), ("output", usage.output_tokens)


# What each collection reports: the keys by state, the used quota, degradation ---------------------


class QuotaUtilization(NamedTuple):
    """How much of one limit is used."""

    model: str
    """The model, or Google's name for several models with one quota; empty for a budget."""
    quota: str
    """`rpm`, `tpm`, `rpd`, `usd_10m`, `usd` or `usd_month`."""
    ratio: float
    """From 0 to 1."""


class KeySnapshot(NamedTuple):
    """The state of a key."""

    key_id: str
    state: KeyState
    used: tuple[QuotaUtilization, ...] = ()
    """Of known limits, for models that were used."""


class _Source:
    """An installed pool."""

    def __init__(
        self, pool: str, read: Callable[[], Iterable[KeySnapshot]], is_degraded: Callable[[], bool]
    ) -> None:
        self.pool, self._look, self.is_degraded = pool, read, is_degraded

    def read(self) -> Sequence[KeySnapshot]:
        """Return how each key is; no lock is held, since the process may fork."""
        try:
            return tuple(self._look())
        except Exception:
            handle_internal_error("telemetry")
            return ()


class _Gauges:
    """The gauges of all pools of one meter provider.

    A callback cannot be removed from its instrument, and an instrument is created only once. So
    there is one object per provider, whose callbacks report the pools registered at that time.
    """

    def __init__(self) -> None:
        self.sources: list[_Source] = []
        self.created = False

    def create(self, meter: Meter) -> None:
        self.created = True
        for create, metric, callback in (
            (meter.create_observable_up_down_counter, _KEY_COUNT, self._states),
            (meter.create_observable_gauge, _QUOTA_USED, self._quotas),
            (meter.create_observable_up_down_counter, _DEGRADED, self._degraded),
        ):
            create(metric.name, [callback], metric.unit, metric.description)

    def _states(self, _options: object) -> Iterator[Observation]:
        for source in tuple(self.sources):
            counts = Counter(key.state for key in source.read())
            for state in KEY_STATES if counts else ():
                yield Observation(counts[state], {_POOL: source.pool, "keyrot.key.state": state})

    def _quotas(self, _options: object) -> Iterator[Observation]:
        for source in tuple(self.sources):
            for key in source.read():
                for model, quota, ratio in key.used:
                    labels = _labels(source.pool, None, key.key_id, model)
                    yield Observation(ratio, {**labels, "keyrot.quota": quota})

    def _degraded(self, _options: object) -> Iterator[Observation]:
        for source in tuple(self.sources):
            yield Observation(int(source.is_degraded()), _labels(source.pool))


_global_gauges = _Gauges()
"""Of the global provider, whichever it will be."""


class MetricsObserver:
    """Measures calls, as long as the program has a meter provider."""

    def __init__(self, pool_name: str, meter_provider: MeterProvider | None = None) -> None:
        """Measure the calls of a pool.

        Args:
            pool_name: The value of `keyrot.pool.name`.
            meter_provider: None: the global one, which may be set later.
        """
        self._pool, self._provider = pool_name, meter_provider
        self._gauges = _Gauges() if meter_provider is not None else _global_gauges
        self._models = ModelNames()
        get = metrics.get_meter_provider if meter_provider is None else lambda: meter_provider
        self._instruments = CurrentProvider(get, self._create_instruments)
        self._source: _Source | None = None

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Measure a call, unless nothing records it or instrumentation is suppressed."""
        instruments = self._instruments()
        if instruments is None:
            return None
        ctx = context.get_current()
        if is_suppressed(ctx):
            return None
        is_covered = covering_span(ctx, info) is not None
        info = self._models.bounded(info, time.monotonic())
        if info.models_tried:
            attributes = _labels(self._pool, None, "", info.model)
            attributes = attributes | {semconv.FALLBACK_FROM: info.models_tried[-1]}
            instruments[_FALLBACKS].add(1, attributes)
        return CallMeter(instruments, info, self._pool, is_covered=is_covered)

    def register_gauges(
        self, read_keys: Callable[[], Iterable[KeySnapshot]], is_degraded: Callable[[], bool]
    ) -> None:
        """Report the state of the keys at each collection, until `unregister_gauges()`."""
        self._source = _Source(self._pool, read_keys, is_degraded)
        self._gauges.sources.append(self._source)
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
        if self._source is not None:
            self._gauges.sources.remove(self._source)
            self._source = None

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
            elif metric.kind == _COUNTER:
                made[metric] = meter.create_counter(*args)
            else:
                made[metric] = meter.create_up_down_counter(*args)
        for metric in (_PENDING, _TIMEOUTS):  # a rate exists before the first increment
            made[metric].add(0, _labels(self._pool))
        return made
