"""Streams of interactions: the bytes are the server's, and the lease ends with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.interactions import SDK, SDK_WARNINGS, create, keys_of
from support.modes import MODEL, STREAMS, http_library, run, spread

from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

pytestmark = SDK_WARNINGS
raw = pytest.mark.skipif(SDK < (2, 0), reason="1.x has other raw responses")

EVENTS: list[dict[str, Any]] = [
    {"event_type": "interaction.created", "interaction": {"id": "v1_x", "status": "in_progress"}},
    {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
    {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "grüße\n\n"}},
    {
        "event_type": "interaction.completed",
        "interaction": {
            "id": "v1_x",
            "status": "completed",
            "model": MODEL,
            "usage": {"total_input_tokens": 40, "total_output_tokens": 2},
        },
    },
]
BYTES = b": hello\r\n\r\n" + b"".join(
    b"event: %b\r\ndata: %b\r\n\r\n"
    % (event["event_type"].encode(), json.dumps(event, ensure_ascii=False).encode())
    for event in EVENTS
)
BYTES += b"event: done\ndata: [DONE]\n\n: and more\n"


@raw
@pytest.mark.parametrize("mode", STREAMS)
def test_the_bytes_are_unchanged(mode, gemini, pool, connect) -> None:
    """To the last one, behind the last event too; the pool reads what they say."""
    pool("A", "B")
    gemini.script_any(Reply.custom(200, BYTES, content_type="text/event-stream"))
    client = connect()
    asked = {"model": MODEL, "input": "hello", "stream": True}

    def sync() -> bytes:
        with client.interactions.with_streaming_response.create(**asked) as response:
            return b"".join(response.http_response.iter_raw())

    async def asynchronous() -> bytes:
        async with client.aio.interactions.with_streaming_response.create(**asked) as response:
            return b"".join([part async for part in response.http_response.aiter_raw()])

    got = sync() if mode == "sync_stream" else run(client, asynchronous)
    assert got == BYTES
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]
    outcome = pool.ledger.outcomes[0][1]
    assert outcome.usage[:2] == (40, 2)
    owner = gemini.log[0].key
    gemini.reset_log()
    gemini.always_any(Reply.custom(200, {"id": "v1_x", "status": "completed", "steps": []}))
    for _ in range(3):
        connect().interactions.get("v1_x")
    assert keys_of(gemini) == [owner] * 3, "its id was learned"


ERROR = {"error": {"code": "too_many_requests", "message": "Slow."}, "event_type": "error"}
ERROR_BYTES = b": hello\n\nevent: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n"


def transport_of(reply: Callable[[str], Any]) -> dict[str, Any]:
    """Return options of a client of which a function answers by the key of each request."""
    library = http_library()

    async def asynchronous(request: Any) -> Any:
        return reply(request.headers["x-goog-api-key"])

    def sync(request: Any) -> Any:
        return reply(request.headers["x-goog-api-key"])

    return {
        "httpx_client": library.Client(transport=library.MockTransport(sync)),
        "httpx_async_client": library.AsyncClient(transport=library.MockTransport(asynchronous)),
    }


def in_pieces(body: bytes, size: int) -> Any:
    """Return a response of which so many bytes come at once."""
    library = http_library()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]

    class Pieces(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Any:
            yield from pieces

        async def __aiter__(self) -> Any:
            for piece in pieces:
                yield piece

    return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces())


@pytest.mark.parametrize(("cut", "mode"), spread([1, 9, 30, -2], STREAMS))
def test_an_error_as_first_event_may_come_in_pieces(mode, cut, gemini, pool, connect) -> None:
    """Behind a comment, cut anywhere, or without its last line end: another key is tried."""
    pool("A", "B", strategy="fill")
    body = ERROR_BYTES if cut > 0 else ERROR_BYTES.rstrip()
    sent: list[str] = []

    def reply_to(key: str) -> Any:
        sent.append("A" if key == gemini.key("A").value else "B")
        return in_pieces(body, abs(cut)) if sent[-1] == "A" else in_pieces(BYTES, 10)

    texts = create(mode, connect(**transport_of(reply_to)), 2)
    assert texts == ["grüße\n\n"] * 2
    assert sent == ["A", "B", "B"]
