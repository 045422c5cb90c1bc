"""Metrics, through the OpenTelemetry API alone: for whichever meter provider the program has."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opentelemetry import context, metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, NoOpMeter, Observation

from .._version import __version__
from ..core.availability import KEY_STATES, KeyState
from ..core.commands import Acquire, Command, Send, Settle, Sleep, StreamOpened
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, LeaseOutcome
from . import semconv
from .attributes import (
    ErrorCause,
    attempt_attributes,
    cause_from_error,
    cause_from_verdict,
    operation_name,
    pool_attributes,
)
from .instruments import (
    DEGRADED,
    KEY_COUNT,
    QUOTA_USED,
    CallKey,
    Instruments,
    reported_tokens,
)
from .observer import CallObserver, OnInternalError
from .otel_api import CurrentProvider, is_suppressed
from .tracing import find_foreign_span

__all__ = [
    "CachedSnapshot",
    "CallMeter",
    "GaugeSource",
    "KeySnapshot",
    "MetricsObserver",
    "PoolGauges",
    "QuotaUtilization",
]

# The state of the keys when metrics are collected -----------------------------------------------
#
# A shared state is read over the network, which must not delay a collection. So it is read in a
# thread, with a timeout; a collection that times out reports no keys.


MAX_WAIT_S = 2.0
"""Longest wait of a collection; Prometheus allows a scrape ten seconds."""
CACHE_S = 0.25
"""The metrics of a collection are observed one after the other; one snapshot serves all."""


class QuotaUtilization(NamedTuple):
    """How much of one limit is used."""

    model: str
    """The model, or Google's name for several models with one quota; empty for a budget."""
    quota: str
    """`rpm`, `tpm`, `rpd` or `usd`."""
    ratio: float
    """From 0 to 1."""


class KeySnapshot(NamedTuple):
    """The state of a key."""

    key_id: str
    state: KeyState
    used: tuple[QuotaUtilization, ...] = ()
    """Of known limits, for models that were used."""


class CachedSnapshot:
    """The latest snapshot of all keys, refreshed once it is older than `CACHE_S`."""

    def __init__(
        self,
        read: Callable[[], Iterable[KeySnapshot]],
        on_error: OnInternalError,
        *,
        is_local: bool,
    ) -> None:
        """Read nothing yet.

        Args:
            read: Returns a snapshot of each key; may be slow and may raise, unless *is_local*.
            on_error: Called when *read* raises.
            is_local: *read* does no I/O, so it is called without a thread.
        """
        self._read = read
        self._on_error = on_error
        self._is_local = is_local
        self._thread: threading.Thread | None = None
        self._last: tuple[float, Sequence[KeySnapshot]] = (float("-inf"), ())

    def __call__(self, timeout_s: float) -> Sequence[KeySnapshot]:
        """Return a snapshot of each key; nothing if that takes longer than *timeout_s* seconds.

        No lock is held, since the process may fork: two concurrent collections read twice.
        """
        begin = time.monotonic()
        if begin - self._last[0] > CACHE_S:
            if self._is_local:
                self._refresh()
            elif (thread := self._refresh_thread()) is not None:
                thread.join(min(timeout_s, MAX_WAIT_S))
        at, keys = self._last
        return keys if at >= begin - CACHE_S else ()

    def _refresh_thread(self) -> threading.Thread | None:
        """Return the thread that refreshes; None while the interpreter shuts down."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._refresh, name="keyrot-metrics", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return None
            self._thread = thread
        return thread

    def _refresh(self) -> None:
        try:
            keys = tuple(self._read())
        except Exception:
            keys = ()
            self._on_error("telemetry")
        self._last = (time.monotonic(), keys)


# What each collection reports: the keys by state, the used quota, degradation -------------------


@dataclass(frozen=True, slots=True)
class GaugeSource:
    """An installed pool."""

    pool: str
    keys: CachedSnapshot
    is_degraded: Callable[[], bool]


class PoolGauges:
    """The gauges of all pools of one meter provider.

    A callback cannot be removed from its instrument, and an instrument is created only once. So
    there is one object per provider, whose callbacks report the pools registered at that time.
    """

    def __init__(self) -> None:
        self._sources: dict[int, GaugeSource] = {}
        self._created = False

    def register(self, source: GaugeSource, get_meter: Callable[[], Meter]) -> None:
        """Report a pool from now on."""
        self._sources[id(source)] = source
        if self._created:
            return
        self._created = True
        meter = get_meter()
        meter.create_observable_up_down_counter(
            KEY_COUNT.name, [self._states], KEY_COUNT.unit, KEY_COUNT.description
        )
        meter.create_observable_gauge(
            QUOTA_USED.name, [self._quotas], QUOTA_USED.unit, QUOTA_USED.description
        )
        meter.create_observable_up_down_counter(
            DEGRADED.name, [self._degraded], DEGRADED.unit, DEGRADED.description
        )

    def unregister(self, source: GaugeSource) -> None:
        """Stop reporting a pool."""
        self._sources.pop(id(source), None)

    def _states(self, options: CallbackOptions) -> Iterator[Observation]:
        for source in tuple(self._sources.values()):
            keys = source.keys(options.timeout_millis / 1000)
            counts = Counter(key.state for key in keys)
            for state in KEY_STATES if keys else ():
                attributes = {semconv.POOL: source.pool, semconv.KEY_STATE: state}
                yield Observation(counts[state], attributes)

    def _quotas(self, options: CallbackOptions) -> Iterator[Observation]:
        for source in tuple(self._sources.values()):
            for key in source.keys(options.timeout_millis / 1000):
                for model, quota, ratio in key.used:
                    attributes = attempt_attributes(source.pool, key.key_id, model)
                    yield Observation(ratio, {**attributes, semconv.QUOTA: quota})

    def _degraded(self, _options: CallbackOptions) -> Iterator[Observation]:
        for source in tuple(self._sources.values()):
            yield Observation(int(source.is_degraded()), pool_attributes(source.pool))


# How the commands of one call become measurements ----------------------------------------------


class CallMeter:
    """Measures one call, from the moment it is made."""

    __slots__ = (
        "_abandoned", "_acquire_since", "_attempts", "_foreign_metrics", "_info", "_instruments",
        "_key_id", "_last_failure", "_pool", "_sent_at", "_started", "_usage",
    )  # fmt: skip

    def __init__(
        self,
        instruments: Instruments,
        info: CallInfo,
        pool: str,
        *,
        foreign_metrics: bool,
    ) -> None:
        """Start to measure.

        Args:
            instruments: Record the measurements.
            info: The call.
            pool: The pool's name.
            foreign_metrics: Another instrumentation records the `gen_ai.*` metrics of this call.
        """
        self._started = time.perf_counter()
        self._instruments = instruments
        self._info = info
        self._pool = pool
        self._foreign_metrics = foreign_metrics
        self._key_id: str | None = None
        """The key of the request in flight."""
        self._attempts = 0
        self._sent_at = 0.0
        self._usage = NO_USAGE
        self._acquire_since: float | None = None
        self._abandoned: tuple[str, float] | None = None
        """Key and seconds of an abandoned attempt; its `error.type` is known at the call's end."""
        self._last_failure: tuple[BaseException | None, ErrorCause | None] = (None, None)

    def before(self, command: Command) -> None:
        """Start what *command* starts."""
        if isinstance(command, Acquire):
            self._start_acquire()
        elif isinstance(command, Send):
            self._send(command)
        elif isinstance(command, Sleep) and command.reason == "key":
            # A call that has failed with every key waits first and acquires afterwards.
            self._start_acquire()
            self._instruments.pending.add(1, pool_attributes(self._pool))

    def after(self, command: Command, reply: Any) -> None:
        """Record the result of *command*."""
        if isinstance(command, Settle):
            self._settle(command, cooling_down=isinstance(reply, int | float))
        elif isinstance(command, Send):
            is_stream = isinstance(reply, StreamOpened) and self._info.stream
            if is_stream and not self._foreign_metrics:
                seconds = time.perf_counter() - self._started
                for metrics in self._instruments.calls:
                    metrics.first_chunk(self._call_key(), seconds)
        elif isinstance(command, Sleep) and command.reason == "key":
            self._instruments.pending.add(-1, pool_attributes(self._pool))

    def attach(self) -> None:
        """Do nothing: a measurement has no context."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Record the whole call."""
        now = time.perf_counter()
        seconds = now - self._started
        if self._key_id is not None:  # an async stream that was dropped unread, and not settled
            self._abandoned = self._key_id, now - self._sent_at
        instruments, pool, info = self._instruments, self._pool, self._info
        last_error, cause = self._last_failure
        if error is None or error is not last_error:
            cause = cause_from_error(error)
        error_type = cause.type if cause is not None else None
        if self._abandoned is not None:
            key_id, duration = self._abandoned
            attributes = attempt_attributes(pool, key_id, info.model, None, None, error_type)
            instruments.attempt_duration.record(duration, attributes)
        instruments.call_attempts.record(self._attempts, pool_attributes(pool, error_type))
        if isinstance(error, Exhausted):
            instruments.timeouts.add(1, pool_attributes(pool))
        if not self._foreign_metrics:
            for metrics in instruments.calls:
                metrics.call(self._call_key(), seconds, self._usage, error_type)

    def _start_acquire(self) -> None:
        if self._acquire_since is None:
            self._acquire_since = time.perf_counter()

    def _send(self, command: Send) -> None:
        now = time.perf_counter()
        waited = now - self._acquire_since if self._acquire_since is not None else 0.0
        self._instruments.wait_time.record(waited, pool_attributes(self._pool))
        self._acquire_since, self._sent_at = None, now
        self._attempts += 1
        self._key_id = command.lease.key_id

    def _settle(self, command: Settle, *, cooling_down: bool) -> None:
        seconds = time.perf_counter() - self._sent_at
        self._key_id = None
        pool, key_id, model = self._pool, command.lease.key_id, self._info.model
        outcome, verdict, self._usage = command.outcome
        for token_type, tokens in reported_tokens(self._usage):
            attributes = attempt_attributes(pool, key_id, model, token_type)
            self._instruments.key_tokens.add(tokens, attributes)
        cost = self._usage.cost_usd
        if cost is not None:
            self._instruments.key_cost.add(cost, attempt_attributes(pool, key_id, model))
        failure = error_type = None
        if verdict is not None:
            cause = cause_from_verdict(verdict, command.error)
            self._last_failure = command.error, cause
            failure, error_type = verdict.failure, cause.type
            if cooling_down:
                attributes = attempt_attributes(pool, key_id, None, None, failure)
                self._instruments.cooldowns.add(1, attributes)
        elif outcome is not LeaseOutcome.SUCCESS:
            self._abandoned = key_id, seconds
            return
        attributes = attempt_attributes(pool, key_id, model, None, failure, error_type)
        self._instruments.attempt_duration.record(seconds, attributes)

    def _call_key(self) -> CallKey:
        info = self._info
        return self._pool, operation_name(info.verb), info.model, info.host, info.platform


_API = "opentelemetry.metrics"
_global_gauges = PoolGauges()
"""Of the global provider, whichever it will be."""


class MetricsObserver:
    """Measures calls, as long as the program has a meter provider."""

    def __init__(self, pool_name: str, meter_provider: MeterProvider | None = None) -> None:
        """Measure the calls of a pool.

        Args:
            pool_name: The value of `keyrot.pool.name`.
            meter_provider: None: the global one, which may be set later.
        """
        self._pool = pool_name
        self._provider = meter_provider
        self._gauges = PoolGauges() if meter_provider is not None else _global_gauges
        get = metrics.get_meter_provider if meter_provider is None else lambda: meter_provider
        self._instruments = CurrentProvider(get, self._create_instruments)
        self._source: GaugeSource | None = None

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Measure a call, unless nothing records it or instrumentation is suppressed."""
        instruments = self._instruments()
        if instruments is None:
            return None
        ctx = context.get_current()
        if is_suppressed(ctx):
            return None
        foreign = find_foreign_span(ctx, info, self._pool)
        if foreign is not None:
            foreign.label_metrics()
        foreign_metrics = foreign is not None and foreign.has_metrics
        if info.models_tried:
            attributes = {semconv.FALLBACK_FROM: info.models_tried[-1]}
            attributes |= {semconv.POOL: self._pool, semconv.GEN_AI_REQUEST_MODEL: info.model}
            instruments.model_fallbacks.add(1, attributes)
        return CallMeter(instruments, info, self._pool, foreign_metrics=foreign_metrics)

    def register_gauges(
        self,
        read_keys: Callable[[], Iterable[KeySnapshot]],
        is_degraded: Callable[[], bool],
        on_error: OnInternalError,
        *,
        is_local: bool,
    ) -> None:
        """Report the state of the keys at each collection, until `unregister_gauges()`.

        Args:
            read_keys: Returns a snapshot of each key.
            is_degraded: Returns whether the shared state is down.
            on_error: Called when *read_keys* raises.
            is_local: *read_keys* does no I/O.
        """
        snapshot = CachedSnapshot(read_keys, on_error, is_local=is_local)
        self._source = GaugeSource(self._pool, snapshot, is_degraded)
        try:
            self._gauges.register(self._source, self._get_meter)
        except Exception:  # a provider named by OTEL_PYTHON_METER_PROVIDER that cannot be loaded
            on_error("telemetry")

    def unregister_gauges(self) -> None:
        """Stop reporting the state of the keys."""
        if self._source is not None:
            self._gauges.unregister(self._source)
            self._source = None

    def _get_meter(self) -> Meter:
        """Return a meter; the API's proxy forwards to the program's provider once it is set."""
        return metrics.get_meter(semconv.INSTRUMENTATION, __version__, self._provider)

    def _create_instruments(self, provider: MeterProvider) -> Instruments | None:
        """Create the instruments; return None if the provider records nothing."""
        # The API's own providers, in place until the program sets one, record nothing.
        if type(provider).__module__.startswith(_API):
            return None
        meter = provider.get_meter(semconv.INSTRUMENTATION, __version__)
        if isinstance(meter, NoOpMeter):
            return None
        instruments = Instruments(meter)
        for counter in (instruments.pending, instruments.timeouts):
            counter.add(0, pool_attributes(self._pool))  # a rate exists before the first increment
        return instruments
