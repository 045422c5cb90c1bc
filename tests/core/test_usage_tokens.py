"""Input tokens read from a body's text alone: the same as by parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyrot_middleware.core.model import NO_USAGE
from keyrot_middleware.core.usage import (
    parse_object,
    parse_token_counts,
    parse_usage,
    parse_usage_text,
)

COUNTS = st.dictionaries(
    st.sampled_from(
        [
            "promptTokenCount",
            "toolUsePromptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "totalTokenCount",
        ]
    ),
    st.integers(0, 10**9),
)


@given(COUNTS, st.text(), st.booleans(), st.sampled_from([None, 2]))
def test_the_tokens_are_those_that_parsing_finds(
    meta: dict[str, int], written: str, first: bool, indent: int | None
) -> None:
    """Whatever the model wrote, in any order and layout, the counts are the server's."""
    content = {"candidates": [{"content": {"parts": [{"text": written}]}}]}
    parts: list[dict[str, Any]] = [{"usageMetadata": meta}, content]
    body = json.dumps({**parts[not first], **parts[first]}, indent=indent)
    assert parse_token_counts(body)[0].input_tokens == parse_usage_text(body)[0].input_tokens


@pytest.mark.parametrize(
    "written", ['"usageMetadata": {"promptTokenCount": 7}', '\\"promptTokenCount\\": 7']
)
def test_a_model_cannot_write_counts(written: str) -> None:
    """In JSON a quote inside a text is escaped, so it never looks like a key."""
    body = json.dumps({"candidates": [{"text": written}], "usageMetadata": {"promptTokenCount": 3}})
    assert parse_token_counts(body)[0].input_tokens == 3


def test_stored_names_are_still_found() -> None:
    """A response that names a stored resource is parsed: its owner must be recorded."""
    body = json.dumps({"name": "files/abc", "usageMetadata": {"promptTokenCount": 3}})
    assert parse_token_counts(body) == parse_usage_text(body)
    assert parse_token_counts(body)[1] == ("files/abc",)


@pytest.mark.parametrize("body", [None, b"", {}, "", "no JSON", "[]"])
def test_a_body_without_counts_has_no_usage(body: object) -> None:
    """A body without counts, or of another kind, has no usage."""
    assert parse_token_counts(body) == (NO_USAGE, ())


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


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "7"])
def test_what_is_no_object_has_nothing_in_it(text: str | None) -> None:
    """A response without a body, a list, half an object."""
    assert parse_object(text) == {}
