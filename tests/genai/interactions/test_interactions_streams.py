"""Streams of interactions: the bytes are the server's, and the lease ends with them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.interactions import SDK, SDK_WARNINGS, create, error_type, keys_of
from support.modes import MODEL, STREAMS, http_library, run

import keyrot_middleware
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


def reply(body: bytes, **headers: str) -> Any:
    """Answer with these bytes."""
    return Reply.custom(200, body, content_type="text/event-stream", headers=headers)


@raw
@pytest.mark.parametrize("mode", STREAMS)
def test_the_bytes_are_unchanged(mode, gemini, pool, connect) -> None:
    """To the last one, behind the last event too; the pool reads what they say."""
    body = BYTES
    pool("A", "B")
    gemini.script_any(reply(body))
    client = connect()
    asked = {"model": MODEL, "input": "hello", "stream": True}

    def sync() -> bytes:
        with client.interactions.with_streaming_response.create(**asked) as response:
            return b"".join(response.http_response.iter_raw())

    async def asynchronous() -> bytes:
        async with client.aio.interactions.with_streaming_response.create(**asked) as response:
            return b"".join([part async for part in response.http_response.aiter_raw()])

    got = sync() if mode == "sync_stream" else run(client, asynchronous)
    assert got == body
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]
    outcome = pool.ledger.outcomes[0][1]
    assert outcome.usage[:2] == (40, 2)
    owner = gemini.log[0].key
    gemini.reset_log()
    gemini.always_any(Reply.custom(200, {"id": "v1_x", "status": "completed", "steps": []}))
    for _ in range(3):
        connect().interactions.get("v1_x")
    assert keys_of(gemini) == [owner] * 3, "its id was learned"


@pytest.mark.parametrize("mode", STREAMS)
def test_the_sdk_reads_the_same_events(mode, gemini, pool, connect) -> None:
    """As without a pool, whatever the line ends."""
    client = connect(gemini.add_key("own").value)
    asked = {"model": MODEL, "input": "hello", "stream": True}

    async def read() -> list[Any]:
        return [event async for event in await client.aio.interactions.create(**asked)]

    def events() -> list[Any]:
        gemini.script_any(reply(BYTES))
        found = (
            list(client.interactions.create(**asked))
            if mode == "sync_stream"
            else run(client, read)
        )
        return [event.model_dump(mode="json") for event in found]

    with keyrot_middleware.bypass():
        plain = events()
    client = connect(gemini.key("own").value)
    pool("A")
    assert events() == plain
    assert len(plain) >= 4


@pytest.mark.parametrize("mode", STREAMS)
def test_a_stream_that_is_closed_early_frees_its_key(mode, gemini, pool, connect) -> None:
    """At once; what it has used is unknown, and no key is penalized."""
    pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
    client = connect()
    asked = {"model": MODEL, "input": "hello", "stream": True}

    async def close() -> None:
        stream = await client.aio.interactions.create(**asked)
        await anext(aiter(stream))
        assert pool.ledger.under_way == {"A": 1}
        await stream.close()
        assert pool.ledger.under_way == {}

    if mode == "sync_stream":
        stream = client.interactions.create(**asked)
        next(iter(stream))
        assert pool.ledger.under_way == {"A": 1}
        stream.close()
    else:
        run(client, close)
    assert pool.ledger.under_way == {}
    assert pool.ledger.kinds == [LeaseOutcome.ABANDONED]


def test_a_stream_that_is_dropped_frees_its_key(gemini, pool, connect) -> None:
    """Without a close: when it is collected. The SDK's stream refers to itself."""
    pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
    client = connect()
    stream = client.interactions.create(model=MODEL, input="hello", stream=True)
    next(iter(stream))
    del stream
    gc.collect()
    assert create("sync", client) == ["ok from A"]


@pytest.mark.parametrize("mode", STREAMS)
def test_a_stream_that_was_read_is_a_success(mode, gemini, pool, connect) -> None:
    """The SDK stops at the last event, and closes it; the tokens are booked."""
    installed = pool("A")
    create(mode, connect())
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]
    assert pool.ledger.outcomes[0][1].usage.input_tokens == 2
    assert keyrot_middleware.status()["keys"]["A"]["success_count"] == 1, installed


@raw
def test_a_whole_answer_that_is_read_later_is_learned_too(gemini, pool, connect) -> None:
    """`with_streaming_response` leaves also a body of JSON to the program."""
    pool("A", "B", "C")
    client = connect()
    call = client.interactions.with_streaming_response.create(model=MODEL, input="hello")
    with call as response:
        name = response.parse().id
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]
    for _ in range(3):
        assert client.interactions.with_raw_response.get(name).parse().id == name
    assert len(set(keys_of(gemini))) == 1


@raw
def test_a_stream_goes_on_by_its_id(gemini, pool, connect) -> None:
    """`get(stream=True)` goes with the owner's key, and is a stream as well."""
    pool("A", "B", "C")
    client = connect()
    name = client.interactions.create(model=MODEL, input="hello", background=True).id
    client.interactions.get(name)
    events = list(client.interactions.get(name, stream=True))
    assert events[-1].event_type == "interaction.completed"
    assert len(set(keys_of(gemini))) == 1


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


def in_pieces(body: bytes, size: int, **headers: str) -> Any:
    """Return a response of which so many bytes come at once."""
    library = http_library()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]

    class Pieces(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Any:
            yield from pieces

        async def __aiter__(self) -> Any:
            for piece in pieces:
                yield piece

    return library.Response(
        200, headers={"content-type": "text/event-stream", **headers}, stream=Pieces()
    )


@pytest.mark.parametrize("cut", [1, 9, 30, -2])
@pytest.mark.parametrize("mode", STREAMS)
def test_an_error_as_first_event_may_come_in_pieces(mode, cut, gemini, pool, connect) -> None:
    """Behind a comment, cut anywhere, or without its last line end: another key is tried."""
    pool("A", "B", strategy="fill")
    error = ERROR_BYTES if cut > 0 else ERROR_BYTES.rstrip()
    body = error
    sent: list[str] = []

    def reply_to(key: str) -> Any:
        sent.append("A" if key == gemini.key("A").value else "B")
        return in_pieces(body, abs(cut)) if sent[-1] == "A" else in_pieces(BYTES, 10)

    texts = create(mode, connect(**transport_of(reply_to)), 2)
    assert texts == ["grüße\n\n"] * 2
    assert sent == ["A", "B", "B"]


@pytest.mark.parametrize("mode", STREAMS)
def test_a_response_that_the_sdk_refuses_to_read_frees_its_key(mode, gemini, pool, connect) -> None:
    """A redirect that is not followed is no stream: the call fails, and is over at once."""
    pool("A")
    redirect = {"location": "https://elsewhere.example/x"}
    client = connect(**transport_of(lambda _: http_library().Response(307, headers=redirect)))
    with pytest.raises(error_type("APIError")):
        create(mode, client)
    assert pool.ledger.under_way == {}


@pytest.mark.parametrize("mode", STREAMS)
def test_an_error_before_the_first_event_names_its_request(mode, gemini, pool, connect) -> None:
    """As an error behind it does: programs log its URL. No key is in it."""
    pool("A")

    def lost(_: str) -> Any:
        library = http_library()

        class Lost(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Any:
                yield b": hello\n\n"
                raise library.ReadError("lost")

            async def __aiter__(self) -> Any:
                yield b": hello\n\n"
                raise library.ReadError("lost")

        return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Lost())

    # The generated client of 1.x passes on what it reads a stream with.
    expected = (error_type("APIConnectionError"), http_library().ReadError)
    with pytest.raises(expected) as caught:
        create(mode, connect(**transport_of(lost)))
    assert caught.value.request.url.path.endswith("/interactions")
    assert gemini.key("A").value not in repr(caught.value.request.headers.multi_items())
