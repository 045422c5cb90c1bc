"""Tokens and the model, read from a part of a body's text: the same as by parsing all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyrot_middleware.core.model import NO_USAGE
from keyrot_middleware.providers.gemini.replies import parse_usage, parse_usage_text
from keyrot_middleware.providers.openai_protocol import parse_object

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


NO_COUNTS = [
    None,
    b"",
    {},
    "",
    "no JSON",
    "[]",
    '{"usageMetadata": null, "x": {"promptTokenCount": 1}}',
]


@pytest.mark.parametrize("body", [*NO_COUNTS, '{"usageMetadata": {"promptTokenCount": 1'])
def test_a_body_without_counts_has_no_usage(body: object) -> None:
    """A body without counts, or of another kind, has no usage."""
    assert parse_usage_text(body, in_full=False) == (NO_USAGE, ())


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
