"""A real SDK that keeps its metrics in memory, and reads them."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.semconv import conventions_of

HAS_BUCKETS = "explicit_bucket_boundaries_advisory" in str(signature(Meter.create_histogram))
"""Whether this OpenTelemetry takes the buckets of a histogram: 1.30 and newer do."""


class Point(NamedTuple):
    attributes: dict[str, Any]
    value: float
    """Of a counter or gauge; the sum of a histogram."""
    count: int
    """Measurements in a histogram; 0 for the others."""
    bounds: tuple[float, ...] = ()


class RecordedMetrics:
    def __init__(self, conventions: str = "old") -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.observer = MetricsObserver("test", self.provider, conventions_of(conventions))

    def _metrics(self) -> list[Any]:
        data: Any = self._reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else ()
        scopes = [scope for one in resources for scope in one.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]

    def collect(self) -> dict[str, Any]:
        return {metric.name: metric for metric in self._metrics()}

    def points(self, name: str) -> list[Point]:
        found = [metric for metric in self._metrics() if metric.name == name]
        return [_point(point) for metric in found for point in metric.data.data_points]

    def by(self, name: str, *attributes: str) -> Mapping[Any, Any]:
        """Give the values of a counter, or the counts of a histogram, by some attributes."""
        found: dict[Any, Any] = {}
        for point in self.points(name):
            labels = tuple(point.attributes.get(attribute) for attribute in attributes)
            key = labels[0] if len(labels) == 1 else labels
            found[key] = found.get(key, 0) + (point.count or point.value)
        return found


def _point(point: Any) -> Point:
    attributes = dict(point.attributes)
    if hasattr(point, "bucket_counts"):
        return Point(attributes, point.sum, point.count, tuple(point.explicit_bounds))
    return Point(attributes, point.value, 0)
