"""Under Traceloop's instrumentation (OpenLLMetry) a call is one span, and its tokens count once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context, metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.semconv_ai import SUPPRESS_LANGUAGE_MODEL_INSTRUMENTATION_KEY
from support.modes import MODEL, MODES, STREAMS, ask
from support.otel import RecordedMetrics
from support.other_instrumentations import OFFICIAL, TRACELOOP, instrumented, plain_sdk

import keyrot_middleware
from keyrot_middleware.testing import Reply

USAGE = "gen_ai.usage.input_tokens"
OURS = "keyrot_middleware"


@pytest.fixture(autouse=True)
def one_provider(traced: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send all spans to one provider, and restore the SDK afterwards."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)
    with plain_sdk():
        yield


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> RecordedMetrics:
    """Send all metrics to one provider."""
    made = RecordedMetrics()
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", made.provider)
    return made


def with_usage(traced: Any) -> list[Any]:
    """List the spans by which a backend counts tokens."""
    return [span for span in traced.spans if USAGE in span.attributes]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ["pool first", "pool last"])
def test_its_span_holds_the_attempts(order, mode, traced, gemini, pool, connect) -> None:
    """Sync, async and streams: one span with tokens, theirs; the attempts are its children."""
    gemini.add_key("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    if order == "pool first":
        pool("A", "B", strategy="fill")
    with instrumented(traced.provider, TRACELOOP):
        if order == "pool last":
            pool("A", "B", strategy="fill")
        assert ask(mode, connect()) == "ok from B"
    (theirs,) = with_usage(traced)
    assert theirs.instrumentation_scope.name == TRACELOOP
    assert theirs.attributes["keyrot.attempt.count"] == 2
    assert theirs.attributes["keyrot.key.id"] == "B"
    assert [span.name for span in traced.spans] == ["attempt A", "attempt B", theirs.name]
    assert {s.parent.span_id for s in traced.named("attempt")} == {theirs.context.span_id}


@pytest.mark.parametrize("mode", MODES)
def test_tokens_and_calls_are_counted_once(
    mode, traced, gemini, pool, connect, metered: RecordedMetrics
) -> None:
    """By its own metrics; by ours where these are off."""
    pool("A")
    with instrumented(traced.provider, TRACELOOP):
        ask(mode, connect())
    usage = metered.by("gen_ai.client.token.usage", "gen_ai.token.type")
    assert usage == {"input": 1, "output": 1}
    assert metered.by("gen_ai.client.operation.duration", "keyrot.pool.name") == {None: 1}


def test_without_its_metrics_ours_count(
    traced, pool, connect, metered: RecordedMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRACELOOP_METRICS_ENABLED=false."""
    monkeypatch.setenv("TRACELOOP_METRICS_ENABLED", "false")
    pool("A")
    with instrumented(traced.provider, TRACELOOP):
        ask("sync", connect())
    usage = metered.by("gen_ai.client.token.usage", "gen_ai.token.type", "keyrot.pool.name")
    assert usage == {("input", "default"): 1, ("output", "default"): 1}
    assert len(with_usage(traced)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_what_it_samples_out_stays_out(mode, pool, connect, metered: RecordedMetrics) -> None:
    """Its span records nothing, and we make none in its place; the tokens are in our metrics."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    pool("A")
    with instrumented(provider, TRACELOOP):
        assert ask(mode, connect()) == "ok from A"
    ours = [span.name for span in kept.get_finished_spans()]
    assert ours == []
    usage = metered.by("gen_ai.client.token.usage", "gen_ai.token.type")
    assert usage == {"input": 1, "output": 1}


def weather(city: str) -> str:
    """Return the weather."""
    return f"sunny in {city}"


@pytest.mark.parametrize("mode", MODES)
def test_both_requests_of_a_tool_call_are_in_its_one_span(mode, traced, pool, connect) -> None:
    """Its one span covers everything that the method call does."""
    pool("A")
    with instrumented(traced.provider, TRACELOOP):
        ask(mode, connect(), config={"tools": [weather]})
    assert [span.instrumentation_scope.name for span in traced.spans] == [OURS, OURS, TRACELOOP]
    assert traced.spans[2].attributes["keyrot.attempt.count"] == 2


def test_requests_of_a_tool_have_their_own_spans(traced, pool, connect) -> None:
    """Another call of the tool is another span of Traceloop's; other methods have ours."""
    pool("A")
    client = connect()

    def look_up(city: str) -> str:
        """Look it up."""
        client.models.count_tokens(model=MODEL, contents="inner")
        token = context.attach(context.set_value(SUPPRESS_LANGUAGE_MODEL_INSTRUMENTATION_KEY, True))
        try:
            client.models.generate_content(model=MODEL, contents="suppressed by Traceloop")
        finally:
            context.detach(token)
        return str(client.models.generate_content(model=MODEL, contents="inner").text)

    with instrumented(traced.provider, TRACELOOP):
        ask("sync", client, config={"tools": [look_up]})
    spans = Counter((s.instrumentation_scope.name, s.name) for s in traced.spans)
    assert spans[TRACELOOP, f"generate_content {MODEL}"] == 2
    assert spans[OURS, f"generate_content {MODEL}"] == 1
    assert spans[OURS, f"count_tokens {MODEL}"] == 1
    assert spans[OURS, "attempt A"] == 5
    counts = [
        span.attributes["keyrot.attempt.count"]
        for span in traced.named("generate_content")
        if span.instrumentation_scope.name == TRACELOOP
    ]
    assert counts == [1, 2]


def test_interleaved_streams_and_tasks_keep_their_spans(traced, pool, connect) -> None:
    """Each request finds the span of its own call, whichever was made last."""
    pool("A")
    client = connect()
    request = {"model": MODEL, "contents": "hello"}

    async def many() -> None:
        calls = (client.aio.models.generate_content(**request) for _ in range(10))
        await asyncio.gather(*calls)
        await client.aio.aclose()

    with instrumented(traced.provider, TRACELOOP):
        first = iter(client.models.generate_content_stream(**request))
        second = iter(client.models.generate_content_stream(**request))
        assert "".join(chunk.text for chunk in second) == "ok from A"
        assert "".join(chunk.text for chunk in first) == "ok from A"
        asyncio.run(many())
    theirs = [s for s in traced.spans if s.instrumentation_scope.name == TRACELOOP]
    assert len(theirs) == len(with_usage(traced)) == 12
    assert {span.attributes["keyrot.attempt.count"] for span in theirs} == {1}
    parents = Counter(span.parent.span_id for span in traced.named("attempt"))
    assert parents == Counter(span.context.span_id for span in theirs)


@pytest.mark.parametrize("mode", MODES)
def test_an_exhausted_pool_is_an_error_of_its_span(mode, traced, gemini, pool, connect) -> None:
    """With our event in it; the span of a stream that fails is never ended by Traceloop."""
    pool("A", max_wait_s=0)
    gemini.script("A", Reply.QUOTA_DAY)
    client = connect()
    with pytest.raises(Exception, match="429"):
        ask(mode, client)
    before = len(traced.spans)
    with (
        instrumented(traced.provider, TRACELOOP),
        pytest.raises(keyrot_middleware.KeyPoolExhausted),
    ):
        ask(mode, client)
    spans = traced.spans[before:]
    ended = [] if mode in STREAMS else [TRACELOOP]
    assert [span.instrumentation_scope.name for span in spans] == ended
    assert all("keyrot.pool.exhausted" in [e.name for e in span.events] for span in spans)


@pytest.mark.parametrize("mode", MODES)
def test_under_the_official_one_too_none_of_the_tokens_is_ours(mode, traced, pool, connect) -> None:
    """Both record the tokens, as without a pool; we add no third span of the call."""
    pool("A")
    with instrumented(traced.provider, TRACELOOP, OFFICIAL):
        ask(mode, connect())
    ours = [s.name for s in traced.spans if s.instrumentation_scope.name == OURS]
    assert ours == ["attempt A"]
