"""install() at start-up, and the spans of one call as a tree.

Needs the extra `otlp` (the OpenTelemetry SDK). If your program already sets a tracer provider,
install() is all you need.
"""

from __future__ import annotations

from google import genai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import keyrot_middleware
from keyrot_middleware.testing.span_tree import format_tree


def main() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)

    keyrot_middleware.install()

    client = genai.Client()
    answer = client.models.generate_content(model="gemini-flash-latest", contents="Say hello.")
    print(answer.text)
    print(format_tree(spans.get_finished_spans(), durations=True))


if __name__ == "__main__":
    main()
