"""The names of spans, the server in them, and what they never contain."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from support.scripted_pool import (
    INFO,
    PROMPT,
    STREAMED,
    Chunks,
    ScriptedPool,
    failure,
    invalid,
    minute,
)

from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.telemetry.semconv import operation_name


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


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("generativelanguage.googleapis.com", "generativelanguage.googleapis.com", None),
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:8080", "::1", 8080),
        ("::1", "::1", None),
        ("", None, None),
    ],
)
def test_the_server_is_recorded_as_far_as_it_is_known(traced, host, address, port) -> None:
    """An address with its port if the URL has one, nothing where the host is unknown."""
    ScriptedPool([traced.observer]).run(INFO._replace(host=host))
    attributes = traced.spans[-1].attributes
    assert (attributes.get("server.address"), attributes.get("server.port")) == (address, port)


def test_an_attempt_is_current_only_while_the_sdk_sends(traced: Any) -> None:
    """Spans of the SDK in a send are the attempt's children; the caller's context is untouched."""
    scripted = ScriptedPool([traced.observer])
    with traced.tracer.start_as_current_span("the caller's") as own:
        scripted.run()
        assert trace.get_current_span() is own
    assert [span.name for span in scripted.seen] == ["attempt flash_01"]
    assert traced.parent_of(traced.named("generate_content")[0]) == "the caller's"


def test_spans_hold_no_key_and_no_prompt(traced: Any) -> None:
    """Neither values of keys nor texts of errors are in any name, status, attribute or event."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {
        "flash_01": [minute(9), failure(transport="other"), Chunks(1, failed=failure(500))],
        "flash_02": [invalid()],
        "pro_01": [failure(400)],
    }
    for info in (INFO, INFO, STREAMED):
        with pytest.raises(Exception, match=PROMPT):
            list(scripted.stream(info)) if info.stream else scripted.run(info)
        scripted.clock.advance(100)
    everything = "".join(span.to_json() for span in traced.spans)
    assert everything.count("attempt ") > 3
    assert "FAKE" not in everything
    assert PROMPT not in everything
