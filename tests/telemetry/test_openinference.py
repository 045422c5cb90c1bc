"""Under OpenInference (Phoenix, Langfuse) a whole call is one LLM span, and a stream two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openinference.instrumentation import OITracer, TraceConfig
from opentelemetry import metrics, trace
from support.modes import MODEL, MODES, STREAMS, ask, run
from support.otel import RecordedMetrics
from support.other_instrumentations import OPENINFERENCE, instrumented, plain_sdk

import keyrot_middleware
from keyrot_middleware.testing import Reply

USAGE = ("gen_ai.usage.input_tokens", "llm.token_count.prompt")
OURS = "keyrot_middleware"
WHOLE = tuple(mode for mode in MODES if mode not in STREAMS)


@pytest.fixture(autouse=True)
def one_provider(traced: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send all spans to one provider, and restore the SDK afterwards."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)
    with plain_sdk():
        yield


def with_usage(traced: Any) -> list[Any]:
    """List the spans by which a backend counts tokens."""
    return [span for span in traced.spans if any(name in span.attributes for name in USAGE)]


def scopes(traced: Any) -> list[str]:
    """List the scope of each span, in the order in which they ended."""
    return [span.instrumentation_scope.name for span in traced.spans]


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("order", ["pool first", "pool last"])
def test_there_is_one_llm_span_and_it_holds_the_attempts(
    order, mode, traced, gemini, pool, connect
) -> None:
    """Sync and async: their span has the attempts as its children in its trace."""
    gemini.add_key("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    if order == "pool first":
        pool("A", "B", strategy="fill")
    with instrumented(traced.provider, OPENINFERENCE):
        if order == "pool last":
            pool("A", "B", strategy="fill")
        assert ask(mode, connect()) == "ok from B"
        keyrot_middleware.uninstall()
    (theirs,) = with_usage(traced)
    assert theirs.instrumentation_scope.name == OPENINFERENCE
    assert theirs.attributes["openinference.span.kind"] == "LLM"
    assert theirs.attributes["keyrot.attempt.count"] == 2
    assert theirs.attributes["keyrot.key.id"] == "B"
    assert [span.name for span in traced.spans] == ["attempt A", "attempt B", theirs.name]
    parents = {span.parent.span_id for span in traced.named("attempt")}
    assert parents == {theirs.context.span_id}
    assert len({span.context.trace_id for span in traced.spans}) == 1


@pytest.mark.parametrize("mode", WHOLE)
def test_the_spans_of_the_program_stay_where_they_are(mode, traced, pool, connect) -> None:
    """Their span is the child of the program's span, and ours of theirs."""
    pool("A")
    with (
        instrumented(traced.provider, OPENINFERENCE),
        traced.tracer.start_as_current_span("the program's") as above,
    ):
        ask(mode, connect())
    attempt, theirs, outer = traced.spans
    assert outer.name == "the program's"
    assert theirs.parent.span_id == above.get_span_context().span_id
    assert attempt.parent.span_id == theirs.context.span_id
    assert "keyrot.key.id" not in outer.attributes


@pytest.mark.parametrize("call_spans", [True, False])
@pytest.mark.parametrize("order", ["pool first", "pool last"])
@pytest.mark.parametrize("mode", STREAMS)
def test_a_stream_has_a_span_of_ours_beside_theirs(
    mode, order, call_spans, traced, gemini, pool, connect
) -> None:
    """Both have its tokens and are in the program's span; without the spans of calls one has."""
    gemini.add_key("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    if order == "pool first":
        pool("A", "B", strategy="fill", call_spans=call_spans)
    with (
        instrumented(traced.provider, OPENINFERENCE),
        traced.tracer.start_as_current_span("the program's") as above,
    ):
        if order == "pool last":
            pool("A", "B", strategy="fill", call_spans=call_spans)
        assert ask(mode, connect()) == "ok from B"
        keyrot_middleware.uninstall()
    program = above.get_span_context().span_id
    (theirs,) = traced.named("GenerateContentStream") + traced.named("AsyncGenerateContentStream")
    ours = traced.named("generate_content")
    assert with_usage(traced) == [*ours, theirs]
    assert len(ours) == call_spans
    assert {span.parent.span_id for span in [theirs, *ours]} == {program}
    holder = ours[0].context.span_id if call_spans else program
    assert [span.parent.span_id for span in traced.named("attempt")] == [holder] * 2


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_embedding_is_one_span_too(way, traced, gemini, pool, connect) -> None:
    """Of the kind EMBEDDING."""
    pool("A")
    client = connect()
    request = {"model": "gemini-embedding-001", "contents": "hello"}
    with instrumented(traced.provider, OPENINFERENCE):
        if way == "sync":
            client.models.embed_content(**request)
        else:
            run(client, lambda: client.aio.models.embed_content(**request))
    assert scopes(traced) == [OURS, OPENINFERENCE]
    assert traced.spans[0].name == "attempt A"
    assert traced.spans[1].attributes["keyrot.attempt.count"] == 1


def weather(city: str) -> str:
    """Return the weather."""
    return f"sunny in {city}"


@pytest.mark.parametrize("mode", WHOLE)
def test_both_requests_of_a_tool_call_are_in_their_one_span(mode, traced, pool, connect) -> None:
    """Their one span covers everything that the method call does."""
    pool("A")
    with instrumented(traced.provider, OPENINFERENCE):
        ask(mode, connect(), config={"tools": [weather]})
    assert [s.name for s in traced.spans][:2] == ["attempt A", "attempt A"]
    assert scopes(traced)[2:] == [OPENINFERENCE]
    assert traced.spans[2].attributes["keyrot.attempt.count"] == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_call_while_a_stream_is_read_has_its_own_span(mode, traced, pool, connect) -> None:
    """The program makes another call between two chunks of a stream: that is another request."""
    pool("A")
    client = connect()
    with instrumented(traced.provider, OPENINFERENCE):
        for _ in client.models.generate_content_stream(model=MODEL, contents="outer"):
            client.models.count_tokens(model=MODEL, contents="inner")
            ask(mode, connect())
            break
    (count,) = traced.named("count_tokens")
    assert count.parent is None
    theirs = {s.context.span_id for s in traced.named("GenerateContentStream")}
    assert not theirs & {s.parent.span_id for s in traced.named("attempt")}


def test_an_open_span_of_the_kind_llm_is_adopted(traced, pool, connect) -> None:
    """By the conventions' own tracer or by hand; not of another kind, nor of another model."""
    pool("A")
    client = connect()
    tracer = OITracer(traced.tracer, TraceConfig())
    by_hand = {"openinference.span.kind": "LLM"}
    with traced.tracer.start_as_current_span("by hand", attributes=by_hand):
        ask("sync", client)
    with tracer.start_as_current_span("by theirs", openinference_span_kind="llm") as span:
        span.set_attribute("llm.model_name", MODEL)
        ask("sync", client)
    adopted = [span.name for span in traced.spans]
    assert adopted == ["attempt A", "by hand", "attempt A", "by theirs"]
    for attributes in (
        {"openinference.span.kind": "AGENT", "llm.model_name": MODEL},
        {"openinference.span.kind": "LLM", "llm.model_name": "gpt-5"},
        {"llm.model_name": "gpt-5"},
        {},
    ):
        with traced.tracer.start_as_current_span("other", attributes=attributes):
            ask("sync", client)
    assert len(traced.named("generate_content")) == 4


@pytest.mark.parametrize("mode", MODES)
def test_metrics_are_ours(mode, traced, pool, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are counted, which OpenInference does not do."""
    metered = RecordedMetrics()
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", metered.provider)
    pool("A")
    with instrumented(traced.provider, OPENINFERENCE):
        ask(mode, connect())
    assert metered.by("gen_ai.client.operation.duration", "gen_ai.request.model") == {MODEL: 1}


@pytest.mark.parametrize("setting", ["argument", "variable"])
@pytest.mark.parametrize("mode", MODES)
def test_the_span_of_a_call_can_be_left_out(
    mode, setting, traced, gemini, pool, connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts alone, inside the program's span; the call's result is in them."""
    gemini.add_key("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    if setting == "variable":
        monkeypatch.setenv("KEYROT_CALL_SPANS", "false")
    pool("A", "B", strategy="fill", **({"call_spans": False} if setting == "argument" else {}))
    with traced.tracer.start_as_current_span("the program's"):
        ask(mode, connect())
    assert [span.name for span in traced.spans] == ["attempt A", "attempt B", "the program's"]
    assert with_usage(traced) == []
    above = traced.spans[-1]
    assert all(span.parent.span_id == above.context.span_id for span in traced.spans[:2])
    assert dict(above.attributes) == {}


@pytest.mark.parametrize("mode", STREAMS)
def test_without_the_span_of_a_call_an_exhausted_pool_is_an_event(
    mode, traced, gemini, pool, connect
) -> None:
    """On the program's own span, if there is one; only the span is omitted."""
    pool("A", call_spans=False, max_wait_s=0)
    gemini.script("A", Reply.QUOTA_DAY)
    client = connect()
    with pytest.raises(Exception, match="429"):
        ask(mode, client)
    with (
        traced.tracer.start_as_current_span("the program's"),
        pytest.raises(keyrot_middleware.KeyPoolExhausted),
    ):
        ask(mode, client)
    assert [event.name for event in traced.spans[-1].events][:1] == ["keyrot.pool.exhausted"]
