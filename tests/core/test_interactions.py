"""What requests about interactions name, and what their responses report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyrot_middleware.core.interactions import (
    BodyLedger,
    EventLedger,
    ResponseLedger,
    call_info,
    collection_of,
)
from keyrot_middleware.core.model import NO_USAGE, CallInfo

NEW = "https://host.example/v1beta/interactions"
USAGE = {
    "total_input_tokens": 10,
    "total_tool_use_tokens": 2,
    "total_output_tokens": 5,
    "total_thought_tokens": 3,
    "total_cached_tokens": 4,
}


def new(**body: Any) -> CallInfo:
    """Read a request for a new interaction."""
    return call_info("POST", NEW, {"input": "hello", **body})


def test_a_new_interaction_may_use_any_key() -> None:
    """It counts in the quota of its model, and is not repeated after a 5xx."""
    info = new(model="models/gemini-2.5-flash")
    assert info == CallInfo(
        "gemini-2.5-flash", "interactions", 2 + 0, 2, 1, idempotent=False, bound_to_owner=False
    )


@pytest.mark.parametrize(
    ("asked", "tier"),
    [({}, ""), ({"service_tier": "standard"}, ""), ({"service_tier": "flex"}, "flex")],
)
def test_the_service_tier_of_a_request(asked: dict[str, str], tier: str) -> None:
    """Standard is the tier of a request that names none; the response names the served one."""
    assert new(model="m", **asked).service_tier == tier
    ledger = BodyLedger("interactions")
    ledger.read({"id": "v1_a", "usage": USAGE, **asked})
    assert ledger.usage.service_tier == asked.get("service_tier")


def test_an_agent_counts_in_no_models_quota() -> None:
    """Its name may be Google's own, so the owner matters only if it is known."""
    info = new(agent="deep-research-preview")
    assert (info.model, info.counts_in_quota, info.requests) == ("", False, 0)
    assert (info.bound_to_owner, info.resources) == (False, ("agents/deep-research-preview",))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"previous_interaction_id": "v1_a"}, ("interactions/v1_a",)),
        ({"continuation_token": "abc"}, ("continuation:abc",)),
        ({"input": [{"type": "image", "uri": "https://x.example/v1beta/files/f"}]}, ("files/f",)),
        ({"cached_content": "cachedContents/c"}, ("cachedContents/c",)),
        ({"previous_interaction_id": "i", "agent": "a"}, ("interactions/i", "agents/a")),
    ],
)
def test_what_names_a_stored_thing_is_bound_to_its_owner(body: Any, names: Any) -> None:
    """The certain names come first: their owner counts."""
    info = new(model="m", **body)
    assert (info.bound_to_owner, info.resources) == (True, names)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"environment": "e"}, "environments/e"),
        ({"environment": {"environment_id": "e"}}, "environments/e"),
        ({"environment": {"env": {"TOKEN": {"credential": "c"}}}}, "credentials/c"),
        ({"environment": {"network": {"allowlist": [{"credential": "c"}]}}}, "credentials/c"),
        ({"generation_config": {"speech_config": [{"voice": "v"}]}}, "voices/v"),
        ({"interaction": {"agent": "a"}}, "agents/a"),
        ({"base_agent": "a"}, "agents/a"),
        ({"base_environment": {"environment_id": "e"}}, "environments/e"),
        ({"from_environment": "e"}, "environments/e"),
        ({"voice": {"prompted": {"base_voice": "v"}}}, "voices/v"),
    ],
)
def test_ids_are_recognized_by_their_key(body: Any, name: str) -> None:
    """They have no collection in them."""
    assert new(**body).resources == (name,)
    assert not new(**body).bound_to_owner


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"type": "function_result", "result": {"agent": "a", "voice": ["v"]}}]},
        {"tools": [{"parameters": {"environment": "e"}}]},
        {"environment": {"env": {"credential": "a text"}, "sources": [{"agent": "x"}]}},
        {"labels": {"agent": "a"}, "agent": "", "environment": None},
    ],
)
def test_the_data_of_programs_names_nothing(body: Any) -> None:
    """The same keys in arguments, results, schemas and variables mean nothing."""
    assert new(**body).resources in ((), ("voices/v",))


@pytest.mark.parametrize(
    ("method", "path", "names"),
    [
        ("GET", "/v1beta/interactions/v1_a", ("interactions/v1_a",)),
        ("POST", "/v1beta/interactions/v1_a/cancel", ("interactions/v1_a",)),
        ("DELETE", "/v1beta/agents/mine", ("agents/mine",)),
        ("POST", "/v1beta/agents", ()),
        ("GET", "/v1beta/environments?page_token=t", ("page:t",)),
    ],
)
def test_all_else_is_bound(method: str, path: str, names: Any) -> None:
    """An agent that a path names is stored, and what is created has an owner from then on."""
    info = call_info(method, path, {})
    assert (info.bound_to_owner, info.resources, info.counts_in_quota) == (True, names, False)
    assert info.idempotent == (method == "GET")


def test_a_decision_is_like_a_generate() -> None:
    """It stores nothing, and any key may make it."""
    info = call_info("POST", "/v1/decisions", {"model": "models/m", "input": "x"})
    assert (info.verb, info.model, info.bound_to_owner) == ("decisions", "m", False)


@pytest.mark.parametrize(
    ("method", "path", "collection"),
    [
        ("POST", NEW, "interactions"),
        ("GET", f"{NEW}/v1_a", "interactions"),
        ("POST", f"{NEW}/v1_a/cancel", "interactions"),
        ("POST", f"{NEW}/v1_a/auth_tokens", ""),
        ("POST", "/v1/agents", "agents"),
        ("GET", "/v1/environments", "environments"),
        ("POST", "/v1/triggers/t/executions", ""),
        ("POST", "/v1/decisions", ""),
        ("DELETE", "/v1/agents/a", ""),
    ],
)
def test_the_collection_of_an_id(method: str, path: str, collection: str) -> None:
    """The `id` of a response belongs to what was created or read."""
    assert collection_of(method, path) == collection


# Responses --------------------------------------------------------------------------------------


def read(body: Any, collection: str = "interactions") -> ResponseLedger:
    """Read a whole body, in two pieces."""
    ledger, text = BodyLedger(collection), json.dumps(body).encode()
    ledger.feed(text[:5])
    ledger.feed(text[5:])
    ledger.finish()
    assert ledger.is_over
    assert not ledger.failed_at_once
    return ledger


def test_an_interaction_is_read() -> None:
    """Its id, its environment, the token of its continuation, its tokens."""
    ledger = read(
        {
            "id": "v1_a",
            "model": "models/m",
            "environment_id": "e",
            "continuation_token": "t",
            "usage": USAGE,
        }
    )
    assert ledger.names == ("interactions/v1_a", "continuation:t", "environments/e")
    assert ledger.usage[:6] == (12, 8, 4, 3, "m", "v1_a")


def test_a_list_is_read() -> None:
    """Each item has an owner, and so has the token of the next page."""
    body = {"agents": [{"id": "a"}, {"id": "b"}, "no agent"], "next_page_token": "t"}
    assert read(body, "agents").names == ("page:t", "agents/a", "agents/b")


def test_other_names_are_read() -> None:
    """A run of a trigger names its interaction, a token for Live itself."""
    assert read({"id": "x", "interaction_id": "i"}, "").names == ("interactions/i",)
    assert read({"name": "auth_tokens/t"}, "").names == ("auth_tokens/t",)


@pytest.mark.parametrize("body", [[], "text", {"agents": "x", "usage": 3, "id": 7}, {"id": ""}])
def test_other_bodies_report_nothing(body: Any) -> None:
    """Whatever comes, nothing is raised."""
    ledger = read(body, "agents")
    assert (ledger.names, ledger.usage, ledger.error) == ((), NO_USAGE, None)


def test_counts_that_are_no_numbers_are_unknown() -> None:
    """They are not taken for 0."""
    usage = {"total_input_tokens": "7", "total_output_tokens": True, "total_cached_tokens": -1}
    assert read({"usage": usage}).usage == NO_USAGE


def test_bytes_that_are_no_json_report_nothing() -> None:
    """A file of an environment, or half a body."""
    for ledger in (ResponseLedger("environments"), BodyLedger("environments")):
        ledger.feed(b'{"id": "e')
        ledger.finish()
        assert ledger.names == ()


CREATED = {"event_type": "interaction.created", "interaction": {"id": "v1_a"}}
DELTA = {"event_type": "step.delta", "delta": {"type": "text", "text": 'an "error" is'}}
STATUS = {
    "event_type": "interaction.status_update",
    "interaction_id": "v1_a",
    "continuation_token": "t",
}
COMPLETED = {
    "event_type": "interaction.completed",
    "interaction": {"id": "v1_a", "model": "m", "usage": USAGE},
}
ERROR = {"event_type": "error", "error": {"code": "too_many_requests", "message": "Slow."}}


def sse(*events: Any, end: str = "\n") -> bytes:
    """Write events."""
    return b"".join(
        f"event: {event['event_type']}{end}data: {json.dumps(event)}{end}{end}".encode()
        for event in events
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_stream_is_read_in_any_pieces(size: int, end: str) -> None:
    """Ids, the token of a continuation and the tokens, wherever the bytes are cut."""
    data = sse(CREATED, DELTA, STATUS, DELTA, COMPLETED, end=end)
    ledger = EventLedger("interactions")
    for start in range(0, len(data), size):
        ledger.feed(data[start : start + size])
    ledger.finish()
    assert ledger.names == ("interactions/v1_a", "continuation:t")
    assert ledger.usage[:6] == (12, 8, 4, 3, "m", "v1_a")
    assert (ledger.is_over, ledger.error, ledger.failed_at_once) == (True, None, False)


def test_a_stream_is_over_with_its_last_event() -> None:
    """The SDK reads no further, and closes it."""
    ledger = EventLedger("interactions")
    ledger.feed(sse(CREATED, DELTA))
    assert not ledger.is_over
    ledger.feed(b"event: done\ndata: [DONE]\n\n")
    assert ledger.is_over


@pytest.mark.parametrize("before", [(), (CREATED,), (DELTA,)])
def test_an_error_in_a_stream(before: Any) -> None:
    """As the first event it is a failed send; behind another one it is not."""
    ledger = EventLedger("interactions")
    ledger.feed(b": a comment\n" + sse(*before, ERROR))
    assert ledger.error == {"error": ERROR["error"]}
    assert ledger.failed_at_once == (not before)
    assert ledger.is_over


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_stream_has_begun_with_its_first_event(size: int) -> None:
    """Not with a comment, nor with a part of the event, which may be an error."""
    data = b": a comment\n" + sse(ERROR)
    ledger = EventLedger("interactions")
    for start in range(0, len(data), size):
        assert (ledger.has_begun, ledger.failed_at_once) == (False, False)
        ledger.feed(data[start : start + size])
        if b"data: %b\n" % json.dumps(ERROR).encode() in data[: start + size]:
            break
    assert (ledger.has_begun, ledger.failed_at_once) == (True, True)
    ledger = EventLedger("interactions")
    ledger.feed(sse(DELTA))
    assert (ledger.has_begun, ledger.failed_at_once) == (True, False)
    assert ResponseLedger("").has_begun


def test_a_last_line_without_an_end_is_read() -> None:
    """Some streams end with it."""
    ledger = EventLedger("interactions")
    ledger.feed(sse(ERROR).rstrip())
    assert ledger.error is None
    ledger.finish()
    assert ledger.error is not None


@pytest.mark.parametrize("line", [b'data: {"interaction', b'data: ["interaction"]', b"data:"])
def test_lines_that_are_no_events_report_nothing(line: bytes) -> None:
    """Whatever comes, nothing is raised."""
    ledger = EventLedger("interactions")
    ledger.feed(line + b"\n\n")
    ledger.finish()
    assert (ledger.names, ledger.error, ledger.is_over) == ((), None, False)
