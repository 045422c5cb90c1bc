"""What replies say, whole, as text, in chunks: tokens, finish reasons, stored resources."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware.core.model import NO_USAGE, Usage
from keyrot_middleware.providers import openai_protocol as openai
from keyrot_middleware.providers.gemini.replies import (
    InteractionEvents,
    StreamEvents,
    add_usage,
    find_resource_names,
    parse_usage,
    parse_usage_text,
)

HOST = "https://generativelanguage.googleapis.com"
META = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
READ = Usage(10, 5, None, None, "m-001", "r1", ("stop",))


def answer(text: str = "hi", **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
    ends = {"usageMetadata": META, "modelVersion": "m-001", "responseId": "r1"}
    return {"candidates": [candidate], **ends, **more}


# Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"candidates": [{"content": {}, "finishReason": "STOP"}], "name": "files/a"}, ()),
        ({"candidates": ["?", {"continuationToken": "t"}]}, ("continuation:t",)),
        ({"file": {"name": "files/a", "uri": f"{HOST}/v1beta/files/a"}}, ("files/a",)),
        ({"file": "files/a"}, ()),
        ({"name": "cachedContents/x", "usageMetadata": {"totalTokenCount": 3}},
         ("cachedContents/x",)),
        ({"name": "models/veo/operations/o"}, ("models/veo/operations/o",)),
        ({"name": "models/gemini-3.1-flash-lite"}, ()),
        ({"files": [{"name": "files/a"}, {"name": "files/b"}, None], "nextPageToken": "t"},
         ("page:t", "files/a", "files/b")),
        ({"files": "?", "response": [], "metadata": 1}, ()),
        ({"operations": [{"name": "batches/a"}]}, ("batches/a",)),
        ({"models": [{"name": "models/a"}]}, ()),
        (
            {"name": "batches/b", "metadata": {"output": {"responsesFile": "files/r"}},
             "response": {"responsesFile": "files/r", "inlinedResponses": {"name": "files/no"}}},
            ("batches/b", "files/r"),
        ),
        (
            {"name": "models/veo/operations/o", "done": True, "response": {
                "generateVideoResponse": {"generatedSamples": [{"video": {
                    "uri": f"{HOST}/v1beta/files/v:download?alt=media"}}]}}},
            ("models/veo/operations/o", "files/v"),
        ),
        ({"name": "tunedModels/t/operations/o", "metadata": {"tunedModel": "tunedModels/t"}},
         ("tunedModels/t",)),
        ({"embedding": {"values": [0.1]}}, ()),
        ({"nextPageToken": "a+/="}, ("page:a+/=",)),
        (
            {"id": "batches/b", "output_file_id": "files/f", "data": [{"id": "files/g"}]},
            ("batches/b", "files/f", "files/g"),
        ),
        ({}, ()),
    ],
)  # fmt: skip
def test_a_response_gives_the_names_it_contains(
    body: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Creates, uploads, pages, operations and batches contain names, so their owner is known."""
    assert find_resource_names(body) == names


# Usage -----------------------------------------------------------------------------------------


def test_input_counts_tool_results_and_output_counts_thoughts() -> None:
    """Input is prompt and tool results, cached included; output is answer and thoughts."""
    meta = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 40,
        "toolUsePromptTokenCount": 7,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
    }
    assert parse_usage({"usageMetadata": meta}) == Usage(107, 50, 40, 30)


@pytest.mark.parametrize(
    ("meta", "usage"),
    [
        ({"promptTokenCount": 3}, Usage(input_tokens=3)),
        ({"toolUsePromptTokenCount": 3}, Usage(input_tokens=3)),
        ({"thoughtsTokenCount": 3}, Usage(output_tokens=3, thought_tokens=3)),
        ({"responseTokenCount": 3}, Usage(output_tokens=3)),
        ({"promptTokenCount": "12"}, Usage(input_tokens=12)),
        ({"promptTokenCount": "1" * 5_000}, NO_USAGE),
        ({"promptTokenCount": True}, NO_USAGE),
        ({"promptTokenCount": -1}, NO_USAGE),
        ({"promptTokenCount": 1.5}, NO_USAGE),
        ([], NO_USAGE),
        (None, NO_USAGE),
    ],
)
def test_counts_are_the_servers_or_none(meta: Any, usage: Usage) -> None:
    assert parse_usage({"usageMetadata": meta}) == usage


def test_reasons_are_in_lower_case_and_in_order() -> None:
    """Each candidate's finish reason is returned, whatever other values are among them."""
    candidates = [{"finishReason": "MAX_TOKENS"}, "?", {"finishReason": None}, {"index": 3}]
    body = {"candidates": [*candidates, {"finishReason": "SAFETY", "index": "4"}]}
    assert parse_usage(body).finish_reasons == ("max_tokens", "safety")
    assert parse_usage({"candidates": "?", "modelVersion": 3}) == NO_USAGE
    for chunks in ([answer(usageMetadata={**META, "serviceTier": "PRIORITY"})], [answer()]):
        ledger = StreamEvents()
        ledger.feed(chunks[0])
        assert ledger.usage == parse_usage(chunks[0])
    assert parse_usage(answer(usageMetadata={"serviceTier": "PRIORITY"})).service_tier == "priority"
    assert parse_usage(answer()).service_tier is None


def test_modalities_are_read_from_a_response() -> None:
    """From lists of details every modality but text; from unreadable ones nothing."""
    meta = {
        "promptTokenCount": 1_000,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 500},
            {"modality": "AUDIO", "tokenCount": 300},
            {"modality": "DOCUMENT", "tokenCount": 200},
            {"modality": ["AUDIO"], "tokenCount": 1},
            "?",
            {"modality": "VIDEO"},
        ],
        "toolUsePromptTokensDetails": [{"modality": "AUDIO", "tokenCount": 7}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": "40"}],
        "candidatesTokensDetails": {"modality": "IMAGE", "tokenCount": 9},
    }
    assert dict(parse_usage({"usageMetadata": meta}).details) == {
        "input_audio_tokens": 307,
        "input_image_tokens": 200,
        "cache_audio_read_tokens": 40,
    }


@pytest.mark.parametrize(
    ("body", "usage", "names"),
    [
        (answer(), READ, ()),
        ({"totalTokens": 31, "promptTokensDetails": [{"tokenCount": 31}]}, NO_USAGE, ()),
        ({"embedding": {"values": [0.1, 0.2]}}, NO_USAGE, ()),
        ({"name": "cachedContents/x"}, NO_USAGE, ("cachedContents/x",)),
        ({"nextPageToken": "t"}, NO_USAGE, ("page:t",)),
        ([answer()], NO_USAGE, ()),
    ],
)
def test_text_is_read_like_the_body_in_it(body: Any, usage: Usage, names: tuple[str, ...]) -> None:
    """Usage and names are parsed from the JSON text that the SDK passes on, indented or not."""
    assert parse_usage_text(json.dumps(body)) == (usage, names)
    assert parse_usage_text(json.dumps(body, indent=2)) == (usage, names)


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        b'{"name": "files/a"}',
        "<html>",
        '{"usageMetadata": ',
        '"name"',
        '{"name":' + "[" * 200_000,
    ],
)
def test_text_that_is_no_json_has_no_usage(text: object) -> None:
    """An error page or a truncated body is no reason to fail a call."""
    assert parse_usage_text(text) == (NO_USAGE, ())


LONG = "a word " * 10_000
SECOND = {"content": {}, "finishReason": "MAX_TOKENS", "index": 1}
TRICK = {"functionCall": {"args": {"usageMetadata": {"promptTokenCount": 9_999}}}}


@pytest.mark.parametrize(
    "body",
    [
        answer(LONG),
        answer(LONG, usageMetadata={"thoughtsTokenCount": 1}),
        {**answer(LONG), "candidates": [*answer(LONG)["candidates"], SECOND]},
        {**answer(), "candidates": [*answer(LONG)["candidates"], {**SECOND, "text": LONG}]},
        {"candidates": [{"continuationToken": "t", "text": LONG, "finishReason": "CONTINUATION"}],
         "usageMetadata": META},
        {"candidates": [{"continuationToken": "t", "text": LONG}], "usageMetadata": META},
        {"candidates": [{"text": LONG, "finishReason": "STOP", "content": TRICK}]},
        {"candidates": [{"text": LONG, "finishReason": "STOP"}], "modelVersion": "m"},
        {"usageMetadata": META, **answer(LONG)},
        {"usageMetadata": META, "candidates": [{"text": LONG, "finishReason": "STOP"}]},
        {"candidates": answer(LONG)["candidates"], "modelVersion": "m", "usageMetadata": META},
        {**answer(), "candidates": [{**answer(LONG)["candidates"][0], "continuationToken": "t"}]},
        answer("a sentence or two " * 200),
        {"embeddings": [{"values": [0.125] * 9_000}]},
        {"embeddings": [{"values": [0.125] * 9_000}], "usageMetadata": META},
        {"embedding": {"values": [0.125] * 9_000}, "usageMetadata": META, "name": [{}]},
        {"embeddings": [{"values": [0.125] * 9_000, "usageMetadata": META}]},
        {"files": [{"name": "files/a", "displayName": LONG}]},
        {"models": [LONG]},
    ],
)  # fmt: skip
def test_a_large_body_is_read_as_if_it_had_been_parsed(body: dict[str, Any]) -> None:
    """Reading only the tail returns the same as reading all of it."""
    usage, names = parse_usage_text(json.dumps(body))
    assert usage == parse_usage(body)
    ledger = StreamEvents()
    ledger.feed(body)
    assert names == ledger.names


def test_a_stream_ends_with_the_last_usage_that_has_numbers() -> None:
    """Later chunks replace the usage, unless they bring an empty one."""
    ledger = StreamEvents()
    first = {"promptTokenCount": 10}
    chunks = [
        {"candidates": [{"content": {}}], "usageMetadata": first, "modelVersion": "m-001"},
        answer(usageMetadata=META),
        {"usageMetadata": {"trafficType": "ON_DEMAND"}, "candidates": [SECOND]},
        {"usageMetadata": None, "modelVersion": "", "responseId": 3},
    ]
    usages = []
    for chunk in chunks:
        ledger.feed(chunk)
        usages.append(ledger.usage)
    assert usages[0] == Usage(input_tokens=10, model="m-001")
    assert usages[1] == READ
    assert usages[3] == READ._replace(finish_reasons=("stop", "max_tokens"))


def test_a_stream_has_its_continuation_tokens() -> None:
    ledger = StreamEvents()
    for token in ("one", "two", "one"):
        ledger.feed({"candidates": [{"continuationToken": token}]})
    assert ledger.names == ("continuation:one", "continuation:two")
    assert ledger.usage == NO_USAGE


def test_the_turns_of_a_session_add_up() -> None:
    """Tokens and their kinds are summed, where they are known; the rest is of the later turn."""
    first = Usage(10, 2, None, 1, "m", "a", details=(("input_audio_tokens", 7),))
    then = Usage(
        14, None, 3, 2, "m", "b", details=(("input_audio_tokens", 9), ("output_audio_tokens", 4))
    )
    total = add_usage(add_usage(NO_USAGE, first), then)
    details = (("input_audio_tokens", 16), ("output_audio_tokens", 4))
    assert total == Usage(24, 2, 3, 3, "m", "b", details=details)


# Tokens alone, from a part of the text ---------------------------------------------------------

COUNTS = st.dictionaries(
    st.sampled_from(
        [
            "promptTokenCount",
            "toolUsePromptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "totalTokenCount",
            "cachedContentTokenCount",
        ]
    ),
    st.integers(0, 10**9),
)


@given(
    COUNTS,
    st.text(),
    st.permutations(range(3)),
    st.sampled_from([None, 2]),
    st.sampled_from(["gemini-3.8-flash", 'a "quoted" one', None]),
    st.sampled_from([[], [{"modality": "AUDIO", "tokenCount": 3}]]),
)
def test_the_tokens_are_those_that_parsing_finds(
    meta: dict[str, Any],
    written: str,
    order: list[int],
    indent: int | None,
    model: str | None,
    details: list[Any],
) -> None:
    """Whatever the model wrote, in any order and layout: counts, kinds of tokens and the model."""
    content = {"candidates": [{"content": {"parts": [{"text": written}]}}]}
    meta = {**meta, "promptTokensDetails": details}
    parts: list[dict[str, Any]] = [{"usageMetadata": meta}, content, {"modelVersion": model}]
    body = json.dumps({k: v for place in order for k, v in parts[place].items()}, indent=indent)
    found, parsed = parse_usage_text(body, in_full=False)[0], parse_usage_text(body)[0]
    if parsed.input_tokens is None and parsed.output_tokens is None:
        assert found in (NO_USAGE, parsed)
    else:
        assert found == parsed


@pytest.mark.parametrize(
    "written", ['"usageMetadata": {"promptTokenCount": 7}', '\\"promptTokenCount\\": 7']
)
def test_a_model_cannot_write_counts(written: str) -> None:
    """In JSON a quote inside a text is escaped, so it never looks like a key."""
    body = json.dumps({"candidates": [{"text": written}], "usageMetadata": {"promptTokenCount": 3}})
    assert parse_usage_text(body, in_full=False)[0].input_tokens == 3


def test_stored_names_are_still_found() -> None:
    """A response that names a stored resource is parsed: its owner must be recorded."""
    body = json.dumps({"name": "files/abc", "usageMetadata": {"promptTokenCount": 3}})
    assert parse_usage_text(body, in_full=False) == parse_usage_text(body)
    assert parse_usage_text(body, in_full=False)[1] == ("files/abc",)


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        {},
        "",
        "no JSON",
        "[]",
        '{"usageMetadata": null, "x": {"promptTokenCount": 1}}',
        '{"usageMetadata": {"promptTokenCount": 1',
    ],
)
def test_a_body_without_counts_has_no_usage(body: object) -> None:
    assert parse_usage_text(body, in_full=False) == (NO_USAGE, ())


# OpenAI's protocol -----------------------------------------------------------------------------

TOKENS = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 25},
}
BODY = {
    "choices": [{"finish_reason": "stop"}, {"finish_reason": None}, "odd"],
    "id": "r1",
    "model": "gemini-3.1-flash-lite",
    "usage": TOKENS,
}
FULL = Usage(10, 30, 4, 25, "gemini-3.1-flash-lite", "r1", ("stop",))


def test_usage_has_the_thoughts_that_only_the_total_has() -> None:
    """Output is what is in the total beside the prompt; odd bodies report nothing."""
    assert openai.parse_usage(BODY) == FULL
    assert openai.parse_usage({"usage": {"prompt_tokens": 3}}) == Usage(3)
    for odd in ({}, {"usage": None}, {"usage": {"prompt_tokens_details": 1}}):
        assert openai.parse_usage(odd) == NO_USAGE
    assert [openai.parse_object(text) for text in (None, "", "[1]", "{", "7")] == [{}] * 5


@pytest.mark.parametrize("padding", [0, 5_000])
def test_text_of_openai_is_read_like_the_body_in_it(padding: int) -> None:
    """Of a large body only the end is parsed where tokens are enough."""
    text = json.dumps({"data": ["x" * padding], **BODY})
    assert openai.parse_text(text, in_full=True)[0] == FULL
    usage, _ = openai.parse_text(text, in_full=False)
    assert (usage.input_tokens, usage.output_tokens) == (10, 30)
    assert openai.parse_text("no JSON", in_full=False) == (NO_USAGE, {})
    nested = json.dumps({"usage": TOKENS, "data": ["x" * padding, {"usage": 1}]})
    assert openai.parse_text(nested, in_full=False)[0].input_tokens == 10


# Interactions ----------------------------------------------------------------------------------

USAGE = {
    "total_input_tokens": 10,
    "total_tool_use_tokens": 2,
    "total_output_tokens": 5,
    "total_thought_tokens": 3,
    "total_cached_tokens": 4,
}


def read(body: Any, collection: str = "interactions") -> InteractionEvents:
    ledger = InteractionEvents(collection)
    ledger.read(body)
    return ledger


def test_an_interaction_is_read() -> None:
    """Its id, its environment, the token of its continuation, its tokens and tier."""
    body = {"id": "v1_a", "model": "models/m", "environment_id": "e", "continuation_token": "t"}
    ledger = read({**body, "usage": USAGE, "service_tier": "flex"})
    assert ledger.names == ("interactions/v1_a", "continuation:t", "environments/e")
    assert ledger.usage[:6] == (12, 8, 4, 3, "m", "v1_a")
    assert ledger.usage.service_tier == "flex"
    odd = {"total_input_tokens": "x", "total_output_tokens": True, "total_cached_tokens": -1}
    assert read({"usage": odd}).usage == NO_USAGE, "no number is not 0"


@pytest.mark.parametrize(
    ("body", "collection", "names"),
    [
        (
            {"agents": [{"id": "a"}, {"id": "b"}, "no agent"], "next_page_token": "t"},
            "agents",
            ("page:t", "agents/a", "agents/b"),
        ),
        ({"id": "x", "interaction_id": "i"}, "", ("interactions/i",)),
        ({"name": "auth_tokens/t"}, "", ("auth_tokens/t",)),
        ([], "agents", ()),
        ("text", "agents", ()),
        ({"agents": "x", "usage": 3, "id": 7}, "agents", ()),
        ({"id": ""}, "agents", ()),
    ],
)
def test_other_bodies_are_read(body: Any, collection: str, names: tuple[str, ...]) -> None:
    """Each item of a list has an owner; a run of a trigger names its interaction."""
    ledger = read(body, collection)
    assert (ledger.names, ledger.usage) == (names, NO_USAGE)


def test_events_are_read() -> None:
    """Ids, the token of a continuation and the tokens; the last one is known."""
    ledger = InteractionEvents("interactions")
    usage = {"event_type": "interaction.completed", "interaction": {"id": "v1_a", "usage": USAGE}}
    assert not ledger.feed({"event_type": "x", "interaction_id": "v1_a", "continuation_token": "t"})
    assert ledger.feed(usage)
    assert ledger.names == ("interactions/v1_a", "continuation:t")
    assert ledger.usage[:4] == (12, 8, 4, 3)


# Anything --------------------------------------------------------------------------------------

KEYS = st.text(max_size=6) | st.sampled_from(
    ["usageMetadata", "candidates", "finishReason", "index", "promptTokenCount", "modelVersion"]
)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.promise(number=7)
@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON_LIKE, max_size=5), st.text(max_size=50))
def test_no_response_makes_it_raise(body: dict[str, Any], text: str) -> None:
    """Anything a server sends, parsed or as text, is read, and both ways agree."""
    ledger = StreamEvents()
    ledger.feed(body)
    assert isinstance(parse_usage(body), Usage)
    assert isinstance(ledger.usage, Usage)
    assert parse_usage_text(text)[0] == NO_USAGE
    assert len(parse_usage_text(json.dumps(body))) == 2
