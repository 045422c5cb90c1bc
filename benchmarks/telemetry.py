"""The cost of telemetry: with recorded spans, and for a call without any observer."""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from keyrot_middleware.core.commands import Settle
from keyrot_middleware.core.model import (
    CallInfo,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Usage,
)
from keyrot_middleware.errors import handle_internal_error
from keyrot_middleware.prices import PriceList
from keyrot_middleware.providers.gemini.replies import parse_usage_text
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder, RunningCall
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.telemetry import Observer, observe
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.tracing import TracingObserver

__all__ = ["recording", "traced", "untraced", "without_sdk"]

INFO = CallInfo("gemini-3.1-flash-lite", "generateContent", 100, host="127.0.0.1:8080")
LEASE = Lease("key_1", "project_1", "account_1", INFO.model, INFO.verb, 100, 1, 0.0, reservation=())
ANSWER = json.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": "A mean. " * 10}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 42, "candidatesTokenCount": 17},
        "modelVersion": INFO.model,
        "responseId": "abc",
    }
)
NUMBER, REPEAT = 1_000, 50


class _Nowhere(SpanExporter):
    """Drop the spans, as an exporter does when it has sent them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


_PROVIDER = TracerProvider()
_PROVIDER.add_span_processor(BatchSpanProcessor(_Nowhere()))


@contextmanager
def untraced() -> Iterator[None]:
    """Run the program without an SDK, as most do."""
    with _use(None):
        yield


@contextmanager
def traced() -> Iterator[None]:
    """Record spans with the SDK's batch processor."""
    with _use(_PROVIDER):
        yield


@contextmanager
def _use(provider: Any) -> Iterator[None]:
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = before


def without_sdk() -> float:
    """Time the telemetry of a call while no provider is set; microseconds."""
    observers: tuple[Observer, ...] = (
        TracingObserver("default"),
        LogObserver("default"),
        MetricsObserver("default"),
    )
    with untraced():
        assert observe(observers, INFO, handle_internal_error) is None, "a call is observed"
        times = timeit.repeat(
            lambda: observe(observers, INFO, handle_internal_error), number=NUMBER, repeat=REPEAT
        )
    return min(times) / NUMBER * 1e6


def recording() -> float:
    """Time what it takes to record a call, and to count and price it later; microseconds."""
    prices, settled = PriceList(), Settle(LEASE, Outcome(LeaseOutcome.SUCCESS, None, _usage()))
    activity = ActivityRecorder(
        MemoryState(RetryPolicy(), time.time),
        time.time,
        lambda record: prices.cost(record.usage, record.model, record.at),
    )

    def record() -> None:
        call = RunningCall(activity, INFO)
        call.send()
        call.settle(settled)
        call.finish(None)

    record()
    activity.send()  # the first price imports the list
    times = timeit.repeat(record, number=NUMBER, repeat=REPEAT)
    return min(times) / NUMBER * 1e6


def _usage() -> Usage:
    return parse_usage_text(ANSWER, in_full=False)[0]
