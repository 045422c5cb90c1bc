"""The cost of calls by the price list, in metrics, spans and the report."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import genai_prices
import pytest
from google import genai
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.otel import RecordedMetrics

from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.telemetry.tracing import TracingObserver
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

MILLIONTH = 1e-6
CALLS = [
    # model, prompt, cached, answer, thoughts, tool results
    ("gemini-3.1-flash-lite", 1_000, 400, 150, 50, 0),
    ("gemini-3.1-flash-lite", 12, 0, 3, 0, 0),
    ("gemini-3.1-flash-lite", 0, 0, 0, 0, 0),
    ("gemini-2.5-flash-lite", 90_000, 89_000, 8_000, 0, 100),
    ("gemini-3.1-pro-preview", 200_000, 0, 1_000, 30_000, 0),
    ("gemini-3.1-pro-preview", 200_001, 150_000, 1_000, 30_000, 0),
    ("gemini-3.8-flash", 1_000, 400, 50, 150, 0),
    ("gemini-3.1-pro-preview", 500_000, 1, 65_000, 0, 7),
    ("gemini-3-flash-preview", 777, 77, 7, 7_777, 77),
    ("gemini-3.5-flash-lite", 1, 1, 1, 1, 1),
]


def body(call: tuple[Any, ...]) -> dict[str, Any]:
    model, prompt, cached, answer, thoughts, tools = call
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP"}
        ],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": cached,
            "candidatesTokenCount": answer,
            "thoughtsTokenCount": thoughts,
            "toolUsePromptTokenCount": tools,
        },
        "modelVersion": model,
        "responseId": "r",
    }


def price(call: tuple[Any, ...], clock: FakeClock) -> float:
    usage = genai_prices.extract_usage(body(call), provider_id="google").usage
    found = genai_prices.calc_price(
        usage,
        call[0],
        provider_id="google",
        genai_request_timestamp=datetime.fromtimestamp(clock.time(), UTC),
    )
    return float(found.total_price)


class ObservedPool:
    def __init__(self, pool: Any) -> None:
        self.metrics, self.spans = RecordedMetrics(), InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        observers = (TracingObserver("test", provider), self.metrics.observer)
        pool.observers = observers
        self.report = source_of(pool)

    def costs(self, name: str) -> list[Any]:
        spans = [span for span in self.spans.get_finished_spans() if span.name.startswith(name)]
        return [span.attributes.get("keyrot.cost") for span in spans if span.attributes is not None]


def make_calls(gemini: FakeGemini, client: genai.Client, mode: str) -> None:
    for call in CALLS:
        gemini.script("paid", Reply.custom(200, body(call)))
    models = [call[0] for call in CALLS]
    if mode == "sync":
        for model in models:
            client.models.generate_content(model=model, contents="hi")
        return

    async def all_of_them() -> None:
        for model in models:
            await client.aio.models.generate_content(model=model, contents="hi")
        await client.aio.aclose()

    asyncio.run(all_of_them())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_ten_calls_have_the_cost_of_the_price_list(gemini, clock, pool, connect, mode) -> None:
    """To a millionth of a dollar: in the metric, on both spans, in the report."""
    observed = ObservedPool(pool({"key_id": "paid", "project": "web"}))
    make_calls(gemini, connect(), mode)
    want = [price(call, clock) for call in CALLS]
    for name in ("generate_content", "attempt"):
        assert observed.costs(name) == [pytest.approx(cost, abs=MILLIONTH / 1000) for cost in want]
    (by_key,) = observed.metrics.by("keyrot.key.cost", "keyrot.key.id").items()
    assert by_key == ("paid", pytest.approx(sum(want), abs=MILLIONTH))
    flash = observed.metrics.by("keyrot.key.cost", "gen_ai.request.model")["gemini-3.1-flash-lite"]
    assert flash == pytest.approx(sum(want[:3]), abs=MILLIONTH)
    status = observed.report.status()
    assert status["cost_known"] is True
    assert status["summary"]["today"]["cost_usd"] == pytest.approx(sum(want), abs=MILLIONTH)
    assert status["keys"][0]["usd_today"] == pytest.approx(sum(want), abs=MILLIONTH)


def test_a_stream_has_the_cost_of_its_last_chunk(gemini, clock, pool, connect) -> None:
    """Its chunks repeat the usage so far; one that is closed early has cost that much."""
    installed = pool("paid")
    observed = ObservedPool(installed)
    gemini.tokens(lambda _body: 5_000)
    client = connect()
    model = "gemini-3.1-flash-lite"
    chunks = list(client.models.generate_content_stream(model=model, contents="hi"))
    meta = chunks[-1].usage_metadata
    assert meta is not None
    answer, thoughts = meta.candidates_token_count or 0, meta.thoughts_token_count or 0
    want = price((model, 5_000, 0, answer, thoughts, 0), clock)
    assert observed.costs("generate_content") == [pytest.approx(want, abs=MILLIONTH / 1000)]
    stream = client.models.generate_content_stream(model=model, contents="hi")
    next(iter(stream))
    stream.close()
    installed.settle_abandoned()
    assert observed.costs("generate_content")[1] >= price((model, 5_000, 0, 0, 0, 0), clock)


def test_without_genai_prices_calls_are_still_reported(gemini, pool, connect, monkeypatch) -> None:
    """Calls are made, observed and reported; their cost is unknown."""
    monkeypatch.setattr("keyrot_middleware.prices.find_spec", lambda _name: None)
    observed = ObservedPool(pool("paid"))
    make_calls(gemini, connect(), "sync")
    assert observed.costs("generate_content") == [None] * len(CALLS)
    assert observed.metrics.points("keyrot.key.cost") == []
    status = observed.report.status()
    assert status["cost_known"] is False
    assert status["summary"]["today"]["cost_usd"] is status["keys"][0]["usd_today"] is None
    assert status["summary"]["today"]["input_tokens"] > 0
