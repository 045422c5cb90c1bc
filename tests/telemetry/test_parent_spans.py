"""Other instrumentations above us, suppression, and programs without tracing."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind
from support.scripted_pool import ScriptedPool, invalid, minute

from keyrot_middleware.core.model import CallInfo

INFERENCE = "opentelemetry.genai.client.inference.context"
EMBEDDING = "opentelemetry.genai.client.embedding.context"


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


def test_the_official_span_is_the_logical_one(traced: Any) -> None:
    """Under it we add no call span, our attempts are its children, it has our attributes."""
    scripted = ScriptedPool([traced.observer], keys=("flash_01", "exp_02"))
    scripted.script = {"flash_01": [minute(9)]}
    with Official(traced):
        scripted.run()
    assert [span.name for span in traced.spans] == ["attempt flash_01", "attempt exp_02", "theirs"]
    assert {traced.parent_of(span) for span in traced.named("attempt")} == {"theirs"}
    assert dict(traced.named("theirs")[0].attributes) == {
        "keyrot.attempt.count": 2,
        "keyrot.cost": pytest.approx(77.52e-6),
        "keyrot.key.id": "exp_02",
        "keyrot.pool.name": "test",
    }


def test_errors_do_not_change_the_official_span(traced: Any) -> None:
    """A call that fails does not change the status of the official span."""
    scripted = ScriptedPool([traced.observer], keys=("a1",), script={"a1": [invalid()]})
    with Official(traced), pytest.raises(Exception, match="400"):
        scripted.run()
    assert traced.named("theirs")[0].status.status_code.name == "UNSET"
    assert traced.named("attempt")[0].attributes["keyrot.attempt.outcome"] == "failure"


@pytest.mark.parametrize(
    ("key", "verb", "own"),
    [
        (INFERENCE, "generateContent", False),
        (INFERENCE, "streamGenerateContent", False),
        (INFERENCE, "countTokens", True),
        (INFERENCE, "embedContent", True),
        (EMBEDDING, "embedContent", False),
        (EMBEDDING, "generateContent", True),
        (INFERENCE, "files", True),
    ],
)
def test_data_of_another_operation_is_not_used(traced: Any, key: str, verb: str, own: bool) -> None:
    """A tool's own requests inside an operation of another kind are not counted to it."""
    with Official(traced, key):
        ScriptedPool([traced.observer]).run(CallInfo("m", verb))
    assert len(traced.spans) == (3 if own else 2)
    assert ("keyrot.attempt.count" in traced.named("theirs")[0].attributes) is not own


@pytest.mark.parametrize("key", [INFERENCE, None], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("operation", "model", "own"),
    [
        ("generate_content", "gemini-2.5-flash", False),
        ("chat", "models/gemini-2.5-flash", False),
        ("generate_content", "gemini-2.5-flash-lite", True),
        ("execute_tool", "gemini-2.5-flash", True),
        ("invoke_agent", "gemini-2.5-flash", True),
    ],
)
def test_only_a_span_of_this_request_is_used(traced, key, operation, model, own) -> None:
    """The spans around a tool or another model's operation have spans of their own inside."""
    attributes = {"gen_ai.operation.name": operation, "gen_ai.request.model": model}
    with Official(traced, key, **attributes):
        ScriptedPool([traced.observer]).run()
    assert len(traced.named("generate_content")) == own
    assert ("keyrot.attempt.count" in traced.named("theirs")[0].attributes) is not own


@pytest.mark.parametrize(
    "key",
    [context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"],
    ids=["opentelemetry", "earlier"],
)
def test_suppressed_calls_leave_no_span(traced: Any, key: str) -> None:
    """Both spellings of the key silence us; the call is sent as usual."""
    token = context.attach(context.set_value(key, True))
    assert ScriptedPool([traced.observer]).run() == "answer"
    context.detach(token)
    assert traced.spans == []
