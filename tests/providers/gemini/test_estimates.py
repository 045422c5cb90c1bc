"""The estimate of input tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware.providers.gemini.bodies import read_body
from keyrot_middleware.providers.gemini.requests import count_requests

TEXTS = st.text(alphabet=st.characters(), max_size=200)


def estimate(body: dict[str, Any]) -> int:
    """Estimate the input tokens of a body."""
    return read_body(body)[0]


def body_of(*parts: Any) -> dict[str, Any]:
    """Build a body of one content."""
    return {"contents": [{"parts": list(parts), "role": "user"}]}


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 200, 250),
        ("素早い茶色の狐がのろまな犬を飛び越える。" * 20, 220, 320),
        ("Съешь же ещё этих мягких французских булок. " * 20, 300, 420),
        ("Ça été élevé près de la forêt, à l'orée. " * 20, 200, 260),
        ("", 0, 3),
        ("\ud800 a lone surrogate", 3, 10),
    ],
)
def test_text_costs_by_its_script(text: str, least: int, most: int) -> None:
    """Latin text costs a token for four characters, wide scripts one for less than two."""
    assert least <= estimate(body_of({"text": text})) <= most


def test_structure_costs_little() -> None:
    """An empty body costs nothing, and roles, urls and safety settings are no input."""
    body = {
        "_url": {"model": "models/gemini-2.5-flash"},
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}] * 5,
        **body_of({"text": "hi", "thoughtSignature": "s" * 9_000}),
        "generationConfig": {"temperature": 0.5, "logprobs": True, "stopSequences": None},
    }
    assert estimate({}) == 0
    assert estimate(body) <= 8


def test_every_place_of_text_counts() -> None:
    """System instruction, declarations of tools, nested requests and lists of text all count."""
    text = "word " * 80
    part = {"parts": [{"text": text}]}
    for body in (
        {"systemInstruction": part},
        {"tools": [{"functionDeclarations": [{"name": "f", "description": text}]}]},
        {"requests": [{"content": part, "model": "models/m"}]},
        {"contents": [text]},
        {"contents": text},
        {"contents": [{"parts": [{"functionCall": {"name": "f", "args": {"data": text}}}]}]},
    ):
        assert 100 <= estimate(body) <= 110


@pytest.mark.parametrize(
    ("mime", "least", "most"),
    [
        ("image/png", 1_000, 1_300),
        ("IMAGE/JPEG", 1_000, 1_300),
        ("audio/wav", 900, 1_100),
        ("audio/L16;rate=16000", 900, 1_100),
        ("audio/mp3", 3_900, 4_100),
        ("video/mp4", 2_000, 2_200),
        ("application/pdf", 11_000, 11_500),
        ("text/plain", 250_000, 250_100),
    ],
)
def test_media_cost_by_kind_and_size_and_never_as_base64(mime: str, least: int, most: int) -> None:
    """A megabyte of media costs what its kind costs, in either spelling of the mime type."""
    data = "A" * 1_333_336
    for key in ("mimeType", "mime_type"):
        assert least <= estimate(body_of({"inlineData": {"data": data, key: mime}})) <= most
    raw = {"inlineData": {"data": b"A" * 1_000_002, "mimeType": mime}}
    assert least <= estimate(body_of(raw)) <= most


def test_images_of_a_predict_are_no_text() -> None:
    """Encoded images without a mime type are images."""
    body = {"instances": [{"prompt": "hi", "image": {"bytesBase64Encoded": "A" * 9_000_000}}]}
    assert 1_000 <= estimate(body) <= 1_300


def test_stored_resources_have_a_fixed_cost() -> None:
    """A file's size is unknown, so it costs ten pages; an image file an image."""
    image = {"fileData": {"fileUri": "files/a", "mimeType": "image/png"}}
    paper = {"fileData": {"file_uri": "files/a", "mime_type": "application/pdf"}}
    assert 1_000 <= estimate(body_of(image)) <= 1_300
    assert 2_500 <= estimate(body_of(paper)) <= 2_700
    assert 2_500 <= estimate({"input": [{"uri": "files/a", "mime_type": "audio/mp3"}]}) <= 2_700
    assert 1_000 <= estimate({"cachedContent": "cachedContents/x"}) <= 1_100
    call = {"functionCall": {"name": "open", "args": {"uri": "https://example.com/a"}}}
    assert estimate(body_of(call)) <= 20


def test_a_cyclic_body_is_estimated_without_error() -> None:
    """A body that contains itself raises nothing; the SDK refuses it."""
    body: dict[str, Any] = {"text": "word"}
    body["again"] = body
    assert estimate(body) > 0
    body["twice"] = [body, body]
    assert estimate(body) > 0


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_more_text_never_costs_less(text: str, more: str) -> None:
    """The estimate grows with the text."""
    assert estimate(body_of({"text": text})) <= estimate(body_of({"text": text + more}))


def test_requests_are_counted_per_item_of_a_batch() -> None:
    """Google counts each item of a batch as a request (docs/gemini-api.md#what-counts)."""
    assert count_requests("batchEmbedContents", {"requests": [{}, {}, {}]}) == 3
    assert count_requests("batchEmbedContents", {"requests": []}) == 1
    assert count_requests("batchEmbedContents", {"requests": "?"}) == 1
    assert count_requests("generateContent", {"requests": [{}, {}]}) == 1
