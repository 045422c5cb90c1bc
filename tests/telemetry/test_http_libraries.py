"""Traces of calls through the HTTP libraries, beside their instrumentations."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from opentelemetry import trace
from support.http_modes import MODEL, send

from keyrot_middleware.testing import Reply


@pytest.fixture(autouse=True)
def _one_provider(traced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send all spans to one provider."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)


@pytest.mark.parametrize("order", ["before", "after"])
def test_opentelemetry_has_a_span_for_each_send(order, gemini, pool, traced) -> None:
    """The HTTP span of each attempt is below it, and each token is in one span."""
    library = pytest.importorskip("opentelemetry.instrumentation.httpx")
    instrumentor = library.HTTPXClientInstrumentor()
    if order == "before":
        instrumentor.instrument(tracer_provider=traced.provider)
    pool("A", "B", strategy="fill")
    if order == "after":
        instrumentor.instrument(tracer_provider=traced.provider)
    gemini.script("A", Reply.QUOTA_MINUTE)
    try:
        with httpx.Client() as client:
            assert send(httpx, client, gemini.url, "unused") == "ok from B"
    finally:
        instrumentor.uninstrument()
    assert [traced.parent_of(span) for span in traced.named("POST")] == ["attempt A", "attempt B"]
    counted = [s for s in traced.spans if "gen_ai.usage.input_tokens" in (s.attributes or {})]
    assert [span.name for span in counted] == [f"generate_content {MODEL}"]
    assert not any(
        key in str(span.attributes) for span in traced.spans for key in [gemini.key("A").value]
    )


def test_openinference_counts_each_token_once(gemini, pool, traced) -> None:
    """Where OpenInference has a span for a call of openai, ours are its attempts."""
    oi = pytest.importorskip("openinference.instrumentation.openai")
    openai = pytest.importorskip("openai")
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    instrumentor = oi.OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=traced.provider)
    try:
        with openai.OpenAI(api_key="x", base_url=f"{gemini.url}/v1beta/openai/") as client:
            ask = client.chat.completions.create
            ask(model=MODEL, messages=[{"role": "user", "content": "hi"}])
            list(ask(model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True))
    finally:
        instrumentor.uninstrument()
    names = [span.name for span in traced.spans]
    assert names == ["attempt A", "attempt B", "ChatCompletion", "attempt B", "ChatCompletion"]
    assert all(traced.parent_of(span) == "ChatCompletion" for span in traced.named("attempt"))
