"""Traces with the other real instrumentations, above us and beside us."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from support.modes import MODEL, MODES, ask
from support.other_instrumentations import OFFICIAL, instrumented, plain_sdk

from keyrot_middleware.testing import Reply

CALL = f"generate_content {MODEL}"


@pytest.fixture(autouse=True)
def one_provider(traced: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)
    with plain_sdk():
        yield


def tree(traced: Any) -> list[str]:
    spans = {span.context.span_id: span for span in traced.spans}

    def path(span: Any) -> str:
        above = spans.get(span.parent.span_id) if span.parent is not None else None
        scope = span.instrumentation_scope.name.split(".")[0]
        own = f"{scope}: {span.name}"
        return own if above is None else f"{path(above)} > {own}"

    return [path(span) for span in traced.spans]


@pytest.mark.parametrize("mode", MODES)
def test_the_official_span_holds_our_attempts(mode, traced, gemini, pool, connect) -> None:
    """One inference span for the request, theirs; it has the attempts, and is not an error."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    with instrumented(traced.provider, OFFICIAL):
        assert ask(mode, connect()) == "ok from B"
    above = f"opentelemetry: {CALL} > keyrot_middleware: attempt "
    assert tree(traced) == [f"{above}A", f"{above}B", f"opentelemetry: {CALL}"]
    span = traced.named(CALL)[0]
    assert span.attributes["keyrot.attempt.count"] == 2
    assert span.attributes["keyrot.key.id"] == "B"
    assert span.attributes["gen_ai.usage.input_tokens"] > 0
    assert "error.type" not in span.attributes
    assert span.status.status_code.name != "ERROR"
