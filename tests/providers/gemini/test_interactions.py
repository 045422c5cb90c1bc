"""What requests about interactions name, and what their responses report."""

from __future__ import annotations

from typing import Any

import pytest

from keyrot_middleware.core.model import NO_USAGE, CallInfo
from keyrot_middleware.providers.gemini.replies import InteractionEvents
from keyrot_middleware.providers.gemini.requests import parse_path, read_request

NEW = "https://host.example/v1beta/interactions"
USAGE = {
    "total_input_tokens": 10,
    "total_tool_use_tokens": 2,
    "total_output_tokens": 5,
    "total_thought_tokens": 3,
    "total_cached_tokens": 4,
}


def call_info(method: str, path: str, body: dict[str, Any]) -> CallInfo:
    """Read a request."""
    return read_request(parse_path(method, path), body)


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
    ledger = InteractionEvents("interactions")
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
    assert parse_path(method, path).collection == collection


# Responses --------------------------------------------------------------------------------------


def read(body: Any, collection: str = "interactions") -> InteractionEvents:
    """Read a whole body."""
    ledger = InteractionEvents(collection)
    ledger.read(body)
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
    assert (ledger.names, ledger.usage) == ((), NO_USAGE)


def test_counts_that_are_no_numbers_are_unknown() -> None:
    """They are not taken for 0."""
    usage = {"total_input_tokens": "7", "total_output_tokens": True, "total_cached_tokens": -1}
    assert read({"usage": usage}).usage == NO_USAGE


def test_events_are_read() -> None:
    """Ids, the token of a continuation and the tokens; the last one is known."""
    ledger = InteractionEvents("interactions")
    usage = {"event_type": "interaction.completed", "interaction": {"id": "v1_a", "usage": USAGE}}
    assert not ledger.feed({"event_type": "x", "interaction_id": "v1_a", "continuation_token": "t"})
    assert ledger.feed(usage)
    assert ledger.names == ("interactions/v1_a", "continuation:t")
    assert ledger.usage[:4] == (12, 8, 4, 3)
