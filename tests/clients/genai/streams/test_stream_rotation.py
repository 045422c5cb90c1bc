"""A stream may change its key until its first chunk has arrived, and never after it."""

import pytest
from google.genai import errors
from support.modes import AIOHTTP, MODEL, STREAMS, calls, http_library, run, spread

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

BROKEN = {
    "STREAM_OVERLOADED": errors.ServerError,
    "STREAM_EXHAUSTED": errors.ClientError,
    "STREAM_DROPPED": Exception,
}
REQUEST = {"model": MODEL, "contents": "hello"}


def read(mode, client) -> tuple[list[str], Exception | None]:
    texts: list[str] = []

    async def read_async() -> None:
        async for chunk in await client.aio.models.generate_content_stream(**REQUEST):
            texts.append(chunk.text or "")

    try:
        if mode == "async_stream":
            run(client, read_async)
        else:
            for chunk in client.models.generate_content_stream(**REQUEST):
                texts.append(chunk.text or "")
    except Exception as error:
        return texts, error
    return texts, None


@pytest.mark.parametrize(("name", "mode"), spread(BROKEN, STREAMS))
def test_a_stream_is_never_restarted(mode, name, gemini, pool, connect) -> None:
    """The chunks so far stay the only answer: the SDK's own error follows, after one request."""
    client = connect(gemini.add_key("own").value)
    gemini.always_any(getattr(Reply, name))
    plain_texts, plain = read(mode, client)
    gemini.reset_log()
    pool("A", "B")
    texts, error = read(mode, client)
    assert texts == plain_texts == ["ok"]
    assert type(error) is type(plain)
    assert isinstance(error, BROKEN[name])
    assert (gemini.count(), len(error.__notes__)) == (1, 1)
    assert pool.ledger.kinds == [LeaseOutcome.FAILURE]


@pytest.mark.parametrize(
    "reply",
    [
        Reply.QUOTA_MINUTE.in_stream(0),
        Reply.EXHAUSTED.in_stream(0),
        Reply.KEY_INVALID.in_stream(0),
        Reply.QUOTA_MINUTE,
    ],
    ids=lambda reply: f"{reply.name}-{reply.status}-{reply.after_chunks}",
)
@pytest.mark.parametrize("mode", STREAMS)
def test_an_error_before_the_first_chunk_rotates(mode, reply, gemini, pool, connect) -> None:
    """Also one that Google sends inside a stream which began with HTTP 200."""
    pool("A", "B", strategy="fill")
    gemini.always("A", reply)
    texts, error = read(mode, connect())
    assert error is None
    assert "".join(texts) == "ok from B"
    assert [request.key for request in gemini.log] == ["A", "B"]


@pytest.mark.parametrize("reply", [Reply.OVERLOADED.in_stream(0), Reply.dropped(0), Reply.INTERNAL])
@pytest.mark.parametrize("mode", STREAMS)
def test_a_server_failure_at_the_start_is_retried(mode, reply, gemini, pool, connect) -> None:
    pool("A", strategy="fill")
    gemini.script("A", reply)
    assert "".join(read(mode, connect())[0]) == "ok from A"
    assert gemini.count() == 2
    assert not keyrot_middleware.status()["keys"]["A"]["in_cooldown"]


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize(
    "odd", [Reply.custom(200, b"", content_type="text/event-stream"), Reply.STREAM_TRUNCATED]
)
def test_an_odd_stream_ends_as_the_sdk_ends_it(odd, mode, gemini, pool, connect) -> None:
    gemini.always_any(odd)
    client = connect(gemini.add_key("own").value)
    plain = read(mode, client)
    pool("A")
    assert [repr(part) for part in read(mode, client)] == [repr(part) for part in plain]
    assert gemini.count("A") == 1


@pytest.mark.parametrize(
    ("mode", "aiohttp"),
    [("sync_stream", False), ("async_stream", False), *[("async_stream", True)] * AIOHTTP],
)
def test_few_connections_are_enough(mode, aiohttp, gemini, pool, connect, no_aiohttp) -> None:
    options: dict = {}
    if not aiohttp:
        no_aiohttp()
        limits = http_library().Limits(max_connections=3, max_keepalive_connections=3)
        options = {"client_args": {"limits": limits}, "async_client_args": {"limits": limits}}
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.EXHAUSTED.in_stream(0))
    client = connect(timeout=60_000, **options)
    assert calls(mode, client, 12, 12) == ["ok from B"] * 12
