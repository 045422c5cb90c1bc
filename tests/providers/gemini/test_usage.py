"""Usage in responses: whole, as text, and in chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware.core.model import NO_USAGE, Usage
from keyrot_middleware.providers.gemini.replies import (
    StreamEvents,
    add_usage,
    parse_usage,
    parse_usage_text,
)

META = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
KEYS = st.text(max_size=6) | st.sampled_from(
    ["usageMetadata", "candidates", "finishReason", "index", "promptTokenCount", "modelVersion"]
)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def answer(text: str = "hi", **more: Any) -> dict[str, Any]:
    """Build a response in the server's field order."""
    candidate = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
    ends = {"usageMetadata": META, "modelVersion": "m-001", "responseId": "r1"}
    return {"candidates": [candidate], **ends, **more}


def test_the_served_tier_is_that_of_the_last_usage() -> None:
    """`usageMetadata` names it, in a whole response and in the chunks of a stream."""
    meta = {**META, "serviceTier": "PRIORITY"}
    assert parse_usage(answer(usageMetadata=meta)).service_tier == "priority"
    assert parse_usage(answer()).service_tier is None
    ledger = StreamEvents()
    for chunk in (answer(), answer(usageMetadata=meta)):
        ledger.feed(chunk)
    assert ledger.usage.service_tier == "priority"


READ = Usage(10, 5, None, None, "m-001", "r1", ("stop",))


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
    """A missing or invalid count is None, never 0."""
    assert parse_usage({"usageMetadata": meta}) == usage


def test_reasons_are_in_lower_case_and_in_order() -> None:
    """Each candidate's finish reason is returned, whatever other values are among them."""
    candidates = [{"finishReason": "MAX_TOKENS"}, "?", {"finishReason": None}, {"index": 3}]
    body = {"candidates": [*candidates, {"finishReason": "SAFETY", "index": "4"}]}
    assert parse_usage(body).finish_reasons == ("max_tokens", "safety")
    assert parse_usage({"candidates": "?", "modelVersion": 3}) == NO_USAGE


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
    """Tokens are listed once, in order."""
    ledger = StreamEvents()
    for token in ("one", "two", "one"):
        ledger.feed({"candidates": [{"continuationToken": token}]})
    assert ledger.names == ("continuation:one", "continuation:two")
    assert ledger.usage == NO_USAGE


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


def test_the_turns_of_a_session_add_up() -> None:
    """Tokens and their kinds are summed, where they are known; the rest is of the later turn."""
    first = Usage(10, 2, None, 1, "m", "a", details=(("input_audio_tokens", 7),))
    then = Usage(
        14, None, 3, 2, "m", "b", details=(("input_audio_tokens", 9), ("output_audio_tokens", 4))
    )
    total = add_usage(add_usage(NO_USAGE, first), then)
    details = (("input_audio_tokens", 16), ("output_audio_tokens", 4))
    assert total == Usage(24, 2, 3, 3, "m", "b", details=details)
