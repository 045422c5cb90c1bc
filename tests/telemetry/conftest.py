"""A real SDK that keeps its spans in memory, and a check that it logged no complaint."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.span_tree import format_attribute, format_tree

from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.telemetry.semconv import conventions_of
from keyrot_middleware.telemetry.tracing import TracingObserver


class RecordedSpans:
    """A provider, our observer on it, and what it has recorded so far."""

    def __init__(self, conventions: str = "old") -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        names = conventions_of(conventions)
        self.observer = TracingObserver("test", self.provider, conventions=names)
        self.tracer = self.provider.get_tracer("the program")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Finished spans in the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, prefix: str) -> list[ReadableSpan]:
        """Finished spans whose name has a prefix."""
        return [span for span in self.spans if span.name.startswith(prefix)]

    @property
    def tree(self) -> str:
        """All finished spans as a tree, without times."""
        return format_tree(self.spans, _timeless)

    def parent_of(self, span: ReadableSpan) -> str | None:
        ids: dict[int, str] = {s.context.span_id: s.name for s in self.spans}
        return ids.get(span.parent.span_id) if span.parent is not None else None


def _timeless(name: str, value: Any) -> str:
    if "wait_time" in name or "first_chunk" in name:
        return f"{name}=…"
    return format_attribute(name, round(value) if "cooldown.duration" in name else value)


@pytest.fixture
def traced(caplog: pytest.LogCaptureFixture) -> Iterator[RecordedSpans]:
    traced = RecordedSpans()
    with raise_internal_errors():
        yield traced
    ended = Counter(span.context.span_id for span in traced.spans)
    assert all(times == 1 for times in ended.values())
    complaints = [r for r in caplog.get_records("call") if r.name.startswith("opentelemetry")]
    assert [record.getMessage() for record in complaints if record.levelno > logging.INFO] == []


@pytest.fixture
def spans_of() -> type[RecordedSpans]:
    """Return what records the spans of some conventions."""
    return RecordedSpans
