"""Traces of calls through the HTTP libraries, beside their instrumentations."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from support.docs_blocks import ROOT
from support.http_modes import MODEL, send

from keyrot_middleware.testing import Reply

TELEMETRY = ROOT / "docs" / "telemetry.md"
USAGE = "gen_ai.usage.input_tokens"


@pytest.fixture(autouse=True)
def _one_provider(traced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)


@contextmanager
def instrumented(instrumentor: Any, order: str, pool: Any, traced: Any) -> Iterator[None]:
    if order == "before":
        instrumentor.instrument(tracer_provider=traced.provider)
    pool("A", "B", strategy="fill")
    if order == "after":
        instrumentor.instrument(tracer_provider=traced.provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@pytest.mark.parametrize("order", ["before", "after"])
def test_opentelemetry_has_a_span_for_each_send(order, gemini, pool, traced) -> None:
    """The HTTP span of each attempt is below it, and each token is in one span."""
    library = pytest.importorskip("opentelemetry.instrumentation.httpx")
    gemini.add_key("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    wrapped = instrumented(library.HTTPXClientInstrumentor(), order, pool, traced)
    with wrapped, httpx.Client() as client:
        assert send(httpx, client, gemini.url, "keyrot-pool") == "ok from B"
    assert [traced.parent_of(span) for span in traced.named("POST")] == ["attempt A", "attempt B"]
    counted = [s for s in traced.spans if USAGE in (s.attributes or {})]
    assert [span.name for span in counted] == [f"generate_content {MODEL}"]
    assert not any(
        key in str(span.attributes) for span in traced.spans for key in [gemini.key("A").value]
    )


@pytest.mark.parametrize("header", ["x-goog-api-key", "authorization"])
def test_captured_headers_hold_no_key_with_the_setting_of_the_docs(
    header, gemini, pool, traced, monkeypatch
) -> None:
    """Whoever captures all headers hides the one with the key, in either protocol."""
    library = pytest.importorskip("opentelemetry.instrumentation.httpx")
    capture = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS"
    (hides,) = re.findall(f"{capture}_SANITIZE_FIELDS='(.+)'", TELEMETRY.read_text("utf-8"))
    monkeypatch.setenv(f"{capture}_CLIENT_REQUEST", ".*")
    monkeypatch.setenv(f"{capture}_SANITIZE_FIELDS", hides)
    path = f"models/{MODEL}:generateContent" if "goog" in header else "openai/chat/completions"
    value = "keyrot-pool" if "goog" in header else "Bearer keyrot-pool"
    with instrumented(library.HTTPXClientInstrumentor(), "after", pool, traced):
        httpx.post(f"{gemini.url}/v1beta/{path}", json=REQUEST, headers={header: value})
    (span,) = traced.named("POST")
    sent = span.attributes[f"http.request.header.{header.replace('-', '_')}"]
    assert sent == ("[REDACTED]",)


REQUEST: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
