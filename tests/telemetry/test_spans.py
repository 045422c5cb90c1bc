"""Spans of real calls through a real pool: whole trees as text, names, parents, streams."""

from __future__ import annotations

import gc
from textwrap import dedent
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind
from support.replies import invalid
from support.scripted_pool import INFO, PROMPT, STREAMED, Chunks, ScriptedPool, failure, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.telemetry.semconv import operation_name


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text(tree: str) -> str:
    return dedent(tree).strip()


def test_a_call_that_succeeds_at_once(traced: Any, way: str) -> None:
    """One logical span with request and usage, one attempt in it, both UNSET."""
    ScriptedPool([traced.observer]).all_modes()[way]()
    assert traced.tree == text("""
        generate_content gemini-3.1-flash-lite  CLIENT
            gen_ai.operation.name=generate_content
            gen_ai.provider.name=gcp.gemini
            gen_ai.request.model=gemini-3.1-flash-lite
            gen_ai.response.finish_reasons=stop
            gen_ai.response.id=resp-1
            gen_ai.response.model=gemini-2.5-flash-001
            gen_ai.usage.cache_read.input_tokens=4
            gen_ai.usage.input_tokens=12
            gen_ai.usage.output_tokens=30
            gen_ai.usage.reasoning.output_tokens=8
            keyrot.attempt.count=1
            keyrot.cost=0.000047
            keyrot.key.id=flash_01
            keyrot.pool.name=test
            server.address=gemini.test
            server.port=8443
          attempt flash_01  INTERNAL
              http.response.status_code=200
              keyrot.acquire.wait_time=…
              keyrot.attempt.number=1
              keyrot.attempt.outcome=success
              keyrot.cost=0.000047
              keyrot.key.id=flash_01
              keyrot.key.project=project-fla
              keyrot.pool.name=test
    """)


def brief(tree: str) -> str:
    kept = (
        line
        for line in tree.splitlines()
        if not any(
            name in line for name in ("    gen_ai.", "    server.", "wait_time=", "pool.name")
        )
    )
    return "\n".join(kept)


def test_a_call_that_succeeds_with_the_third_key(traced: Any, way: str) -> None:
    """Failed attempts are ERROR with code and class; the call's span has no error of them."""
    scripted = ScriptedPool([traced.observer], keys=("flash_01", "exp_02", "pro_01"))
    scripted.script = {"flash_01": [minute(20)], "exp_02": [invalid()]}
    scripted.all_modes()[way]()
    assert brief(traced.tree) == text("""
        generate_content gemini-3.1-flash-lite  CLIENT
            keyrot.attempt.count=3
            keyrot.cost=0.000047
            keyrot.key.id=pro_01
          attempt flash_01  INTERNAL  ERROR 429 quota_minute
              error.type=429
              http.response.status_code=429
              keyrot.attempt.number=1
              keyrot.attempt.outcome=failure
              keyrot.failure.class=quota_minute
              keyrot.failure.message=You exceeded your current quota
              keyrot.key.id=flash_01
              keyrot.key.project=project-fla
              ! keyrot.cooldown keyrot.cooldown.duration=20 keyrot.cooldown.scope=project_model keyrot.failure.class=quota_minute keyrot.key.id=flash_01
          attempt exp_02  INTERNAL  ERROR 400 key_invalid
              error.type=400
              http.response.status_code=400
              keyrot.attempt.number=2
              keyrot.attempt.outcome=failure
              keyrot.failure.class=key_invalid
              keyrot.failure.message=API key not valid. Please pass a valid API key.
              keyrot.key.id=exp_02
              keyrot.key.project=project-exp
              ! keyrot.key.retired keyrot.cooldown.duration=900 keyrot.cooldown.scope=key keyrot.failure.class=key_invalid keyrot.key.id=exp_02
          attempt pro_01  INTERNAL
              http.response.status_code=200
              keyrot.attempt.number=3
              keyrot.attempt.outcome=success
              keyrot.cost=0.000047
              keyrot.key.id=pro_01
              keyrot.key.project=project-pro
    """)  # noqa: E501


def shape(tree: str) -> str:
    marks = ("INTERNAL", "CLIENT", "! ", "outcome", "error.type", "attempt.count")
    return "\n".join(line for line in tree.splitlines() if any(mark in line for mark in marks))


def test_no_key_is_available(traced: Any, way: str) -> None:
    """The call's span is a 429 without an attempt, and has the reasons."""
    scripted = ScriptedPool(
        [traced.observer], keys=("flash_01",), script={"flash_01": [minute(40)]}
    )
    with pytest.raises(Exception, match="429"):
        scripted.run()
    before = len(traced.tree.splitlines())
    with pytest.raises(Exhausted):
        scripted.all_modes()[way]()
    assert shape("\n".join(traced.tree.splitlines()[before:])) == text("""
        generate_content gemini-3.1-flash-lite  CLIENT  ERROR no key can serve
            error.type=429
            keyrot.attempt.count=0
            ! keyrot.pool.exhausted keyrot.pool.blocked_keys=flash_01: quota_minute until 2026-01-01 12:31:10Z
    """)  # noqa: E501


def test_a_stream(traced: Any, way: str) -> None:
    """A stream's attempt lives to its end, and has the reads as its children."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {"flash_01": [Chunks(2, tracer=traced.tracer)]}
    assert scripted.all_modes(stream=True)[way]() == [0, 1]
    attributes = traced.named("generate_content")[0].attributes
    assert attributes["gen_ai.request.stream"] is True
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < 10
    assert attributes["gen_ai.usage.output_tokens"] == 30
    assert shape(traced.tree) == text("""
        generate_content gemini-3.1-flash-lite  CLIENT
            keyrot.attempt.count=1
          attempt flash_01  INTERNAL
              keyrot.attempt.outcome=success
            HTTP read  INTERNAL
            HTTP read  INTERNAL
            HTTP read  INTERNAL
    """)


def test_a_stream_that_breaks(traced: Any, way: str) -> None:
    """A failure after the first chunk is the attempt's and the call's; usage so far is recorded."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {"flash_01": [Chunks(1, failed=failure(500))]}
    with pytest.raises(Exception, match="500"):
        scripted.all_modes(stream=True)[way]()
    assert traced.named("generate_content")[0].attributes["gen_ai.usage.input_tokens"] == 12
    assert shape(traced.tree) == text("""
        generate_content gemini-3.1-flash-lite  CLIENT  ERROR 500 server_error
            error.type=500
            keyrot.attempt.count=1
          attempt flash_01  INTERNAL  ERROR 500 server_error
              error.type=500
              keyrot.attempt.outcome=failure
    """)


@pytest.mark.parametrize(
    ("verb", "model", "name"),
    [
        ("generateContent", "m", "generate_content m"),
        ("streamGenerateContent", "m", "generate_content m"),
        ("embedContent", "m", "embeddings m"),
        ("batchEmbedContents", "m", "embeddings m"),
        ("countTokens", "m", "count_tokens m"),
        ("predictLongRunning", "m", "predict_long_running m"),
        ("list", "", "list"),
    ],
)
def test_a_call_is_named_by_operation_and_model(traced, verb, model, name) -> None:
    """Both verbs of a generation share one operation; a request without a model has a bare name."""
    ScriptedPool([traced.observer]).run(CallInfo(model, verb))
    call = traced.spans[-1]
    assert call.name == name
    assert call.attributes["gen_ai.operation.name"] == operation_name(verb)
    assert ("gen_ai.request.model" in call.attributes) == bool(model)


def test_an_attempt_is_current_only_while_the_sdk_sends(traced: Any) -> None:
    """Spans of the SDK in a send are the attempt's children; the caller's context is untouched."""
    scripted = ScriptedPool([traced.observer])
    with traced.tracer.start_as_current_span("the caller's") as own:
        scripted.run()
        assert trace.get_current_span() is own
    assert [span.name for span in scripted.seen] == ["attempt flash_01"]
    assert traced.parent_of(traced.named("generate_content")[0]) == "the caller's"


@pytest.mark.promise(number=4)
def test_spans_hold_no_key_and_no_prompt(traced: Any) -> None:
    """Neither values of keys nor errors of a request are in a name, status, attribute or event."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {
        "flash_01": [minute(9), failure(transport="other"), Chunks(1, failed=failure(500))],
        "flash_02": [invalid()],
        "pro_01": [failure(400)],
    }
    for info in (INFO, INFO, STREAMED):
        with pytest.raises(Exception, match=f"{PROMPT}|internal error"):
            list(scripted.stream(info)) if info.stream else scripted.run(info)
        scripted.clock.advance(100)
    everything = "".join(span.to_json() for span in traced.spans)
    assert everything.count("attempt ") > 3
    assert "FAKE" not in everything
    assert PROMPT not in everything


INFERENCE = "opentelemetry.genai.client.inference.context"


class Official:
    """The context that the official instrumentation sets around a call."""

    def __init__(self, traced: Any, key: str | None = INFERENCE, **attributes: str) -> None:
        self._span = traced.tracer.start_span("theirs", kind=SpanKind.CLIENT, attributes=attributes)
        here = trace.set_span_in_context(self._span)
        self._here = context.set_value(key, object(), here) if key else here

    def __enter__(self) -> Official:
        self._token = context.attach(self._here)
        return self

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)
        self._span.end()


def scripted(traced: Any, streams: int = 1, chunks: int = 3) -> ScriptedPool:
    made = ScriptedPool([traced.observer], keys=("flash_01",))
    made.script = {"flash_01": [Chunks(chunks, tracer=traced.tracer) for _ in range(streams)]}
    return made


def outcomes(traced: Any) -> set[Any]:
    return {span.attributes["keyrot.attempt.outcome"] for span in traced.named("attempt")}


def statuses(traced: Any) -> set[str]:
    spans = [*traced.named("attempt"), *traced.named("generate_content")]
    return {span.status.status_code.name for span in spans}


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stream_that_its_reader_abandons(traced: Any, how: str) -> None:
    """Closed or dropped, the spans end at once, are no error, and are abandoned."""
    stream = scripted(traced).stream()
    next(stream)
    if how == "close":
        stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert outcomes(traced) == {"abandoned"}
    assert statuses(traced) == {"UNSET"}
