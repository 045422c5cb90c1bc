"""What is told whenever metrics are collected: the keys by state, the used quota, degradation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ..core.availability import KEY_STATES
from . import names
from .instruments import DEGRADED, KEY_COUNT, QUOTA_USED, Metric
from .levels import Reading
from .measured import of_attempt, of_pool

__all__ = ["Board", "Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A pool that is in place."""

    pool: str
    levels: Reading
    degraded: Callable[[], bool]


class Board:
    """The pools that are shown through the instruments of one meter provider.

    A callback cannot be taken off its instrument, and an instrument is made once only. So there
    is one board for each provider, whose callbacks tell of the pools that are on it just then.
    """

    def __init__(self) -> None:
        self._shown: dict[int, Shown] = {}
        self._made = False

    def show(self, shown: Shown, meter: Callable[[], Meter]) -> None:
        """Tell of a pool from now on."""
        self._shown[id(shown)] = shown
        if not self._made:
            self._made = True
            self._make(meter())

    def take_off(self, shown: Shown) -> None:
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
                attributes = {names.POOL: shown.pool, names.KEY_STATE: state}
                yield Observation(counts[state], attributes)

    def _quotas(self, options: CallbackOptions) -> Iterator[Observation]:
        for shown in tuple(self._shown.values()):
            for key in shown.levels(options.timeout_millis / 1000):
                for model, quota, ratio in key.used:
                    about = of_attempt(shown.pool, key.key_id, model)
                    yield Observation(ratio, {**about, names.QUOTA: quota})

    def _degraded(self, _options: CallbackOptions) -> Iterator[Observation]:
        for shown in tuple(self._shown.values()):
            yield Observation(int(shown.degraded()), of_pool(shown.pool))


def _words(metric: Metric) -> tuple[str, str]:
    return metric.unit, metric.about
