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
from ..core.commands import Acquire, Command, Opened, Send, Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, LeaseOutcome, Usage
from . import semconv
from .attributes import ErrorCause, of_attempt, of_error, of_pool, of_verdict, operation_of
from .conventions import Asked, call_metrics, known_tokens
from .instruments import DEGRADED, KEY_COUNT, QUOTA_USED, Instruments, Metric
from .observer import CallObserver, OnInternalError
from .otel_api import CurrentProvider, suppressed
from .tracing import find_parent_instrumentation_span

__all__ = [
    "CachedSnapshot",
    "CallMeter",
    "GaugeSource",
    "KeySnapshot",
    "MetricsObserver",
    "PoolGauges",
    "QuotaUtilization",
]

# How the keys are when metrics are collected: what is reported, and how it is read -------------
#
# A shared state is asked over the network, and nobody who collects may be held up by that. So it
# is read in a thread of its own, and waited for a while only; where it takes longer, this
# collection tells nothing of the keys.


PATIENCE_S = 2.0
"""How long a collection waits; Prometheus gives a scrape ten seconds."""
FRESH_S = 0.25
"""One reading serves all metrics of a collection, which follow upon each other."""


class QuotaUtilization(NamedTuple):
    """How much of one limit is used."""

    model: str
    """The model, or Google's name for several that are counted as one."""
    quota: str
    """`rpm`, `tpm` or `rpd`."""
    ratio: float
    """0 for nothing, 1 for all of it."""


class KeySnapshot(NamedTuple):
    """How a key is."""

    key_id: str
    state: KeyState
    used: tuple[QuotaUtilization, ...] = ()
    """Of limits that are known, for models that were asked for."""


class CachedSnapshot:
    """The latest levels, read anew where they are not those of this moment."""

    def __init__(
        self, read: Callable[[], Iterable[KeySnapshot]], fault: OnInternalError, *, instant: bool
    ) -> None:
        """Read nothing yet.

        Args:
            read: Gives the level of each key; may be slow and may raise, unless *instant*.
            fault: Called with what it raises.
            instant: It does no I/O, and so is called as it is.
        """
        self._read = read
        self._fault = fault
        self._instant = instant
        self._thread: threading.Thread | None = None
        self._last: tuple[float, Sequence[KeySnapshot]] = (float("-inf"), ())

    def __call__(self, patience_s: float) -> Sequence[KeySnapshot]:
        """Give the levels; nothing where they are not there within *patience_s* seconds.

        No lock is held, since a process may fork meanwhile: two who collect at once read twice.
        """
        begin = time.monotonic()
        if begin - self._last[0] > FRESH_S:
            if self._instant:
                self._take()
            elif (reader := self._reader()) is not None:
                reader.join(min(patience_s, PATIENCE_S))
        at, levels = self._last
        return levels if at >= begin - FRESH_S else ()

    def _reader(self) -> threading.Thread | None:
        """Give the thread that reads; None where the interpreter is about to end."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._take, name="keyrot-metrics", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return None
            self._thread = thread
        return thread

    def _take(self) -> None:
        try:
            levels = tuple(self._read())
        except Exception:
            levels = ()
            self._fault("telemetry")
        self._last = (time.monotonic(), levels)


# What is reported at each collection: the keys by state, the used quota, degradation -----------


@dataclass(frozen=True, slots=True)
class GaugeSource:
    """A pool that is in place."""

    pool: str
    levels: CachedSnapshot
    degraded: Callable[[], bool]


class PoolGauges:
    """The pools that are shown through the instruments of one meter provider.

    A callback cannot be taken off its instrument, and an instrument is made once only. So there
    is one board for each provider, whose callbacks tell of the pools that are on it just then.
    """

    def __init__(self) -> None:
        self._shown: dict[int, GaugeSource] = {}
        self._made = False

    def register_gauges(self, shown: GaugeSource, meter: Callable[[], Meter]) -> None:
        """Tell of a pool from now on."""
        self._shown[id(shown)] = shown
        if not self._made:
            self._made = True
            self._make(meter())

    def take_off(self, shown: GaugeSource) -> None:
        """Tell of a pool no more."""
        self._shown.pop(id(shown), None)

    def _make(self, meter: Meter) -> None:
        states, quotas, degraded = [self._states], [self._quotas], [self._degraded]
        meter.create_observable_up_down_counter(KEY_COUNT.name, states, *_words(KEY_COUNT))
        meter.create_observable_gauge(QUOTA_USED.name, quotas, *_words(QUOTA_USED))
        meter.create_observable_up_down_counter(DEGRADED.name, degraded, *_words(DEGRADED))

    def _states(self, options: CallbackOptions) -> Iterator[Observation]:
        for shown in tuple(self._shown.values()):
            levels = shown.levels(options.timeout_millis / 1000)
            counts = Counter(level.state for level in levels)
            for state in KEY_STATES if levels else ():
                attributes = {semconv.POOL: shown.pool, semconv.KEY_STATE: state}
                yield Observation(counts[state], attributes)

    def _quotas(self, options: CallbackOptions) -> Iterator[Observation]:
        for shown in tuple(self._shown.values()):
            for key in shown.levels(options.timeout_millis / 1000):
                for model, quota, ratio in key.used:
                    about = of_attempt(shown.pool, key.key_id, model)
                    yield Observation(ratio, {**about, semconv.QUOTA: quota})

    def _degraded(self, _options: CallbackOptions) -> Iterator[Observation]:
        for shown in tuple(self._shown.values()):
            yield Observation(int(shown.degraded()), of_pool(shown.pool))


def _words(metric: Metric) -> tuple[str, str]:
    return metric.unit, metric.about


# How the commands of one call become measurements ----------------------------------------------


class CallMeter:
    """Follow one call, from the moment in which it is made."""

    __slots__ = (
        "_above", "_began", "_info", "_key_id", "_last", "_left", "_pool",
        "_sends", "_sent_at", "_sheet", "_usage", "_wanted",
    )  # fmt: skip

    def __init__(
        self,
        sheet: Instruments,
        info: CallInfo,
        pool: str,
        *,
        above: bool,
    ) -> None:
        """Begin.

        Args:
            sheet: Where to record.
            info: What is asked.
            pool: The pool's name.
            above: Another's instrumentation measures the call; only what is ours is recorded.
        """
        self._began = time.perf_counter()
        self._sheet = sheet
        self._info = info
        self._pool = pool
        self._key_id: str | None = None
        """The key with which a request is under way."""
        self._above = above
        self._sends = 0
        self._sent_at = 0.0
        self._usage = NO_USAGE
        self._wanted: float | None = None
        """Since when a key is wanted."""
        self._left: tuple[str, float] | None = None
        """Key and seconds of an attempt that was abandoned: why, the end of the call tells."""
        self._last: tuple[BaseException | None, ErrorCause | None] = (None, None)
        """The exception of the last failed attempt, and what was said of it."""

    def before(self, command: Command) -> None:
        """Begin to measure what *command* begins."""
        if isinstance(command, Acquire):
            self._want()
        elif isinstance(command, Send):
            self._send(command)
        elif isinstance(command, Sleep) and command.why == "key":
            self._want()  # a call that has failed with every key asks for none before it waits
            self._sheet.pending.add(1, of_pool(self._pool))

    def after(self, command: Command, reply: Any) -> None:
        """Record what came of *command*."""
        if isinstance(command, Settle):
            self._settle(command, cooling_down=isinstance(reply, int | float))
        elif isinstance(command, Send):
            if isinstance(reply, Opened) and not self._above:
                seconds = time.perf_counter() - self._began
                for metrics in self._sheet.calls:
                    metrics.first_chunk(self._names, seconds)
        elif isinstance(command, Sleep) and command.why == "key":
            self._sheet.pending.add(-1, of_pool(self._pool))

    def attach(self) -> None:
        """Do nothing: a measurement makes nothing current."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Record the call as a whole."""
        now = time.perf_counter()
        seconds = now - self._began
        if self._key_id is not None:  # an async stream that was dropped unread, and not settled
            self._left = self._key_id, now - self._sent_at
        sheet, pool, info = self._sheet, self._pool, self._info
        known, cause = self._last
        if error is None or error is not known:
            cause = of_error(error)
        why = cause.type if cause is not None else None
        if self._left is not None:
            key_id, lasted = self._left
            about = of_attempt(pool, key_id, info.model, None, None, why)
            sheet.attempt_duration.record(lasted, about)
        sheet.call_attempts.record(self._sends, of_pool(pool, why))
        if isinstance(error, Exhausted):
            sheet.timeouts.add(1, of_pool(pool))
        if not self._above:
            for metrics in sheet.calls:
                metrics.call(self._names, seconds, self._usage, why)

    def _want(self) -> None:
        if self._wanted is None:
            self._wanted = time.perf_counter()

    def _send(self, command: Send) -> None:
        now = time.perf_counter()
        waited = now - self._wanted if self._wanted is not None else 0.0
        self._sheet.wait_time.record(waited, of_pool(self._pool))
        self._wanted, self._sent_at = None, now
        self._sends += 1
        self._key_id = command.lease.key_id

    def _settle(self, command: Settle, *, cooling_down: bool) -> None:
        seconds = time.perf_counter() - self._sent_at
        self._key_id = None
        key_id, model = command.lease.key_id, self._info.model
        kind, verdict, self._usage = command.outcome
        self._count(key_id, self._usage)
        failure = why = None
        if verdict is not None:
            cause = of_verdict(verdict, command.error)
            self._last = command.error, cause
            failure, why = verdict.failure, cause.type
            if cooling_down:
                about = of_attempt(self._pool, key_id, None, None, failure)
                self._sheet.cooldowns.add(1, about)
        elif kind is not LeaseOutcome.SUCCESS:
            self._left = key_id, seconds
            return
        about = of_attempt(self._pool, key_id, model, None, failure, why)
        self._sheet.attempt_duration.record(seconds, about)

    def _count(self, key_id: str, usage: Usage) -> None:
        for kind, tokens in known_tokens(usage):
            about = of_attempt(self._pool, key_id, self._info.model, kind)
            self._sheet.key_tokens.add(tokens, about)

    @property
    def _names(self) -> Asked:
        info = self._info
        return self._pool, operation_of(info.verb), info.model, info.host


_API = "opentelemetry.metrics"
_board = PoolGauges()
"""Of the global provider, whichever it will be."""


class MetricsObserver:
    """Measure calls, as long as the program has a meter provider."""

    def __init__(self, pool_name: str, meter_provider: MeterProvider | None = None) -> None:
        """Measure calls of a pool.

        Args:
            pool_name: Seen as `keyrot.pool.name`.
            meter_provider: None: the global one, whenever it is set.
        """
        self._pool = pool_name
        self._given = meter_provider
        self._board = PoolGauges() if meter_provider is not None else _board
        get = metrics.get_meter_provider if meter_provider is None else lambda: meter_provider
        self._sheet = CurrentProvider(get, self._open)
        self._shown: GaugeSource | None = None

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Measure a call, unless nobody counts or instrumentation is suppressed."""
        sheet = self._sheet()
        if sheet is None:
            return None
        here = context.get_current()
        if suppressed(here):
            return None
        guest = find_parent_instrumentation_span(here, info, self._pool)
        if guest is not None:
            guest.label_metrics()
        return CallMeter(sheet, info, self._pool, above=guest is not None and guest.measured)

    def register_gauges(
        self,
        levels: Callable[[], Iterable[KeySnapshot]],
        degraded: Callable[[], bool],
        fault: OnInternalError,
        *,
        instant: bool,
    ) -> None:
        """Tell how the keys are whenever metrics are collected, until `hide()`.

        Args:
            levels: Gives the level of each key.
            degraded: Tells whether this process counts alone.
            fault: Called with what *levels* raises.
            instant: *levels* does no I/O.
        """
        reading = CachedSnapshot(levels, fault, instant=instant)
        self._shown = GaugeSource(self._pool, reading, degraded)
        try:
            self._board.register(self._shown, self._meter)
        except Exception:  # a provider named by OTEL_PYTHON_METER_PROVIDER that cannot be loaded
            fault("telemetry")

    def unregister_gauges(self) -> None:
        """Tell of the pool no more."""
        if self._shown is not None:
            self._board.take_off(self._shown)
            self._shown = None

    def _meter(self) -> Meter:
        """Give a meter; the API's own hands on to the program's provider as soon as it is set."""
        return metrics.get_meter(semconv.INSTRUMENTATION, __version__, self._given)

    def _open(self, provider: MeterProvider) -> Instruments | None:
        """Make the instruments; None where what they record would go nowhere."""
        # What the API itself provides, before a program has set a provider, records nothing.
        if type(provider).__module__.startswith(_API):
            return None
        meter = provider.get_meter(semconv.INSTRUMENTATION, __version__)
        if isinstance(meter, NoOpMeter):
            return None
        sheet = Instruments(meter, call_metrics(meter))
        for counter in (sheet.pending, sheet.timeouts):
            counter.add(0, of_pool(self._pool))  # so that a rate is there before the first one
        return sheet
