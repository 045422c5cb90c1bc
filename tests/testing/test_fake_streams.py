"""Streams: chunks, usage, and every way in which one fails."""

from __future__ import annotations

from typing import Any

import pytest
from google.genai import errors

from keyrot_middleware.testing import Reply

MODEL = "gemini-2.5-flash"


def read(client: Any) -> tuple[list[str], Exception | None]:
    """Read a stream to its end or its error."""
    texts: list[str] = []
    try:
        for chunk in client.models.generate_content_stream(model=MODEL, contents="hello"):
            texts.append(chunk.text)
    except Exception as error:
        return texts, error
    return texts, None


def test_a_stream_comes_in_chunks_with_usage_so_far(gemini, connect) -> None:
    """Usage grows with the chunks; the last one has the true usage and the finish reason."""
    client = connect(gemini.add_key("a"))
    stream = client.models.generate_content_stream(model=MODEL, contents="hello")
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == "ok from a"
    spoken = [chunk.usage_metadata.candidates_token_count for chunk in chunks]
    assert len(chunks) == 3
    assert spoken == sorted(spoken)
    assert [bool(chunk.candidates[0].finish_reason) for chunk in chunks] == [False, False, True]
    assert chunks[-1].usage_metadata.prompt_token_count == 2
    assert gemini.log[0].stream


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_error_inside_a_stream_comes_after_so_many_chunks(after, gemini, connect) -> None:
    """The error object without `data:` is raised by the SDK with its code, under HTTP 200."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.OVERLOADED.in_stream(after))
    texts, error = read(client)
    assert len(texts) == after
    assert isinstance(error, errors.ServerError)
    assert (error.code, gemini.log[0].status) == (503, 200)


def test_a_stream_may_drop(gemini, connect) -> None:
    """The connection ends after two chunks, and the transport's own error is raised."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.dropped(2))
    texts, error = read(client)
    assert texts == ["ok", " from"]
    assert type(error).__name__ == "RemoteProtocolError"
