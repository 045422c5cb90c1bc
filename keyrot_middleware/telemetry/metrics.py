"""Metrics, through the OpenTelemetry API alone: for whichever meter provider the program has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import context, metrics
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter

from .._version import __version__
from ..core.model import CallInfo
from . import names
from .base import Fault, Watch
from .board import Board, Shown
from .callmeter import CallMeter
from .callspan import span_above
from .conventions import call_metrics
from .instruments import Instruments
from .levels import KeyLevel, Reading
from .measured import of_pool
from .provider import CurrentProvider
from .suppress import suppressed

__all__ = ["MetricsObserver"]

_API = "opentelemetry.metrics"
_board = Board()
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
        self._board = Board() if meter_provider is not None else _board
        get = metrics.get_meter_provider if meter_provider is None else lambda: meter_provider
        self._sheet = CurrentProvider(get, self._open)
        self._shown: Shown | None = None

    def start(self, info: CallInfo) -> Watch | None:
        """Measure a call, unless nobody counts or instrumentation is suppressed."""
        sheet = self._sheet()
        if sheet is None:
            return None
        here = context.get_current()
        if suppressed(here):
            return None
        guest = span_above(here, info, self._pool)
        if guest is not None:
            guest.label_metrics()
        return CallMeter(sheet, info, self._pool, above=guest is not None and guest.measured)

    def show(
        self,
        levels: Callable[[], Iterable[KeyLevel]],
        degraded: Callable[[], bool],
        fault: Fault,
        *,
        instant: bool,
    ) -> None:
        """Tell how the keys are whenever metrics are collected, until `hide()`.

        Args:
            levels: Gives the level of each key.
            degraded: Tells whether this process counts alone.
            fault: Told of what *levels* raises.
            instant: *levels* does no I/O.
        """
        reading = Reading(levels, fault, instant=instant)
        self._shown = Shown(self._pool, reading, degraded)
        try:
            self._board.show(self._shown, self._meter)
        except Exception:  # a provider named by OTEL_PYTHON_METER_PROVIDER that cannot be loaded
            fault("telemetry")

    def hide(self) -> None:
        """Tell of the pool no more."""
        if self._shown is not None:
            self._board.take_off(self._shown)
            self._shown = None

    def _meter(self) -> Meter:
        """Give a meter; the API's own hands on to the program's provider as soon as it is set."""
        return metrics.get_meter(names.INSTRUMENTATION, __version__, self._given)

    def _open(self, provider: MeterProvider) -> Instruments | None:
        """Make the instruments; None where what they record would go nowhere."""
        # What the API itself provides, before a program has set a provider, records nothing.
        if type(provider).__module__.startswith(_API):
            return None
        meter = provider.get_meter(names.INSTRUMENTATION, __version__)
        if isinstance(meter, NoOpMeter):
            return None
        sheet = Instruments(meter, call_metrics(meter))
        for counter in (sheet.pending, sheet.timeouts):
            counter.add(0, of_pool(self._pool))  # so that a rate is there before the first one
        return sheet
