"""install() at start-up, and the spans of one call.

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


def main() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)

    keyrot_middleware.install()

    client = genai.Client()
    answer = client.models.generate_content(model="gemini-3.8-flash", contents="Say hello.")
    print(answer.text)
    for span in sorted(spans.get_finished_spans(), key=lambda one: one.start_time or 0):
        print(f"{'  ' if span.parent else ''}{span.name}  {span.status.description or 'ok'}")
        for name, value in (span.attributes or {}).items():
            print(f"      {name}={value}")


if __name__ == "__main__":
    main()
