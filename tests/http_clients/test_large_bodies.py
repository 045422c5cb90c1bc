"""A body with megabytes of text and media: they are not parsed, and count the same."""

import base64
import json
from typing import Any

import pytest

from keyrot_middleware.clients import call as calls
from keyrot_middleware.providers.gemini.bodies import read_body

DATA = base64.b64encode(bytes(range(256)) * 4_000).decode()


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("mime", ["audio/wav", "image/png", "application/pdf"])
def test_long_texts_are_not_parsed_and_count_the_same(mime, ascii_only, monkeypatch) -> None:
    """What is beside it is read: texts with quotes and without a space, names of files."""
    parts: list[Any] = [
        {"text": 'a "quoted\\" text, with words'},
        {"inlineData": {"mimeType": mime, "data": DATA}},
        {"text": "hello " * 5_000},
        {"text": "\u5bc6" * 5_000},
        {"fileData": {"fileUri": "files/abc"}},
    ]
    body = {"contents": [{"parts": parts}]}
    content = json.dumps(body, ensure_ascii=ascii_only).encode()
    seen: list[int] = []
    loads = json.loads
    monkeypatch.setattr(calls.json, "loads", lambda text: seen.append(len(text)) or loads(text))
    assert read_body(calls._parse(content)) == read_body(body)
    assert seen[0] < 3_000
