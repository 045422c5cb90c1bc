"""Successful and failing calls, one trace each, to look at in Jaeger.

A fake Gemini API in this process answers, so no key and no network are needed. README.md explains
how to start Jaeger.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calls import tracer
from cases import CASES, Case
from google import genai
from google.genai.errors import APIError
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

KEYS = ("free_1", "free_2", "paid_1")


@contextmanager
def installed_pool(gemini: FakeGemini, case: Case) -> Iterator[genai.Client]:
    """Install a pool for one case, so that cases share no cooldowns."""
    gemini.clear_scripts()
    for key, reply in case.first.items():
        gemini.script(key, reply)
    keyrot_middleware.install(
        keys_file=Path(__file__).with_name("pool.json"),
        allowed_hosts=[gemini.host],
        strategy="fill",
    )
    try:
        yield genai.Client(http_options=gemini.http_options)
    finally:
        keyrot_middleware.uninstall()


def run(gemini: FakeGemini, case: Case) -> None:
    with installed_pool(gemini, case) as client, tracer.start_as_current_span(case.name):
        try:
            print(f"{case.name}: {case.call(client)}")
        except APIError as error:
            print(f"{case.name}: {error.code} {error.status}")


async def run_async(gemini: FakeGemini, case: Case) -> None:
    name = f"{case.name}, async"
    with installed_pool(gemini, case) as client, tracer.start_as_current_span(name):
        try:
            print(f"{name}: {await case.call_async(client)}")
        except APIError as error:
            print(f"{name}: {error.code} {error.status}")


def main() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    with FakeGemini() as gemini:
        for key in KEYS:
            os.environ[f"GEMINI_KEY_{key}"] = gemini.add_key(key).value
        for case in CASES:
            run(gemini, case)
            asyncio.run(run_async(gemini, case))


if __name__ == "__main__":
    main()
