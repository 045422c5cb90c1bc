"""Which provider the program has set, asked for each call.

While none is set, the API's own `get_tracer_provider()` and `get_meter_provider()` look into the
environment every time, which costs a microsecond each: more than all the rest of a call that
nobody watches. So it is the variables behind them that are asked whether anything has changed, and
the functions only where it has, and once at the beginning.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import metrics, trace

__all__ = ["UNKNOWN", "meter_provider_set", "tracer_provider_set"]

UNKNOWN: Final = object()
"""What no provider is: nothing was asked yet."""

_METRICS: Any = getattr(metrics, "_internal", metrics)


def tracer_provider_set() -> object:
    """Give the tracer provider that is set; None for none."""
    try:
        return trace._TRACER_PROVIDER
    except AttributeError:  # another version of the API
        return trace.get_tracer_provider()


def meter_provider_set() -> object:
    """Give the meter provider that is set; None for none."""
    try:
        return _METRICS._METER_PROVIDER
    except AttributeError:  # another version of the API
        return metrics.get_meter_provider()
