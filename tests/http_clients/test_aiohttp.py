"""aiohttp's sessions: what is theirs alone, beside what all HTTP libraries share."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import aiohttp
import pytest
from support.http_modes import BODY, HEADERS, MODEL, PATH, text_of
from support.json_server import JsonServer, Response

from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"
ANSWER = {"candidates": [{"content": {"parts": [{"text": "moved"}]}}]}


def run(work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def go() -> Any:
        async with aiohttp.ClientSession(**options) as session:
            return await work(session)

    return asyncio.run(go())


async def pieces() -> Any:
    yield b'{"contents": [{"parts": '
    yield b'[{"text": "hello"}]}]}'


@pytest.mark.parametrize(
    "given",
    [
        lambda: {"json": BODY},
        lambda: {"data": b'{"contents": [{"parts": [{"text": "hello"}]}]}'},
        lambda: {"data": pieces()},
    ],
    ids=["json", "bytes", "generator"],
)
def test_each_kind_of_body_goes_to_the_next_key_too(given, gemini, pool) -> None:
    """With the headers of the session, the parameters of the request, and by `request` too."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)

    async def post(session: aiohttp.ClientSession) -> str:
        arguments = {"params": {"alt": "json"}, **given()}
        async with session.request("POST", f"{gemini.url}{PATH}", **arguments) as response:
            assert response.status == 200
            return text_of(await response.json())

    assert run(post, headers=HEADERS) == "ok from B"
    assert [one.body for one in gemini.log] == [BODY, BODY]


def test_where_no_key_can_serve_the_response_says_why(gemini, pool) -> None:
    """429 with a body as Google writes it; `raise_for_status` raises aiohttp's own exception."""
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_DAY)

    async def post(session: aiohttp.ClientSession) -> None:
        for _ in range(2):
            response = await session.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS)
            error = (await response.json())["error"]
            assert response.status == error["code"] == 429
            assert "A: quota_day until" in error["message"]
            assert await response.text() == (await response.read()).decode()
            assert (response.ok, response.content_type) == (False, "application/json")
        with pytest.raises(aiohttp.ClientResponseError, match="429"):
            await session.post(
                f"{gemini.url}{PATH}", json=BODY, headers=HEADERS, raise_for_status=True
            )

    run(post)
    assert gemini.sent("A") == 1


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("way", ["readexactly", "readline", "iter_chunked"])
def test_a_stream_is_read_in_each_way(way, error, gemini, pool) -> None:
    """Its lease is settled with its end, or with an error behind its first event."""
    pool("A")
    if error:
        gemini.script("A", Reply.EXHAUSTED.in_stream(1))

    async def post(session: aiohttp.ClientSession) -> bytes:
        url = f"{gemini.url}{STREAM}?alt=sse"
        async with session.post(url, json=BODY, headers=HEADERS) as response:
            assert response.status == 200
            content = response.content
            if way == "readline":
                return b"".join([line async for line in content])
            if way == "readexactly":
                return await content.readexactly(5) + await content.read()
            return b"".join([data async for data in content.iter_chunked(3)])

    said = run(post).decode()
    events = said.partition('{\n  "error"')[0].splitlines()
    assert "".join(text_of(json.loads(line[5:])) for line in events if line) == (
        "ok" if error else "ok from A"
    )
    assert ("RESOURCE_EXHAUSTED" in said) is error
    assert pool.ledger.kinds == [LeaseOutcome.FAILURE if error else LeaseOutcome.SUCCESS]


def test_a_stream_that_is_left_ends_its_lease(gemini, pool) -> None:
    """When its response is released, whoever still has it."""
    pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
    kept = []

    async def post(session: aiohttp.ClientSession) -> None:
        url = f"{gemini.url}{STREAM}?alt=sse"
        for _ in range(2):
            async with session.post(url, json=BODY, headers=HEADERS) as response:
                assert response.status == 200
                kept.append(response)
            with pytest.raises(aiohttp.ClientConnectionError):
                await response.content.read()
            assert pool.ledger.under_way == {}

    run(post)


@pytest.mark.parametrize("code", [302, 307])
def test_a_redirect_to_another_address_goes_without_a_key(code, gemini, pool) -> None:
    """It is followed as aiohttp does, and one to the same address with a key."""
    value = gemini.add_key("A").value
    with closing(JsonServer(lambda _: Response(200, ANSWER))) as other:
        there = f"http://127.0.0.1:{other.port}/elsewhere"

        def answer(request: Any) -> Response:
            where = "/v1beta/models/m:countTokens" if request.path == PATH else there
            return Response(code, {}, {"location": where})

        with closing(JsonServer(answer)) as first:
            pool("A", allowed_hosts=(f"http://127.0.0.1:{first.port}",))

            async def post(session: aiohttp.ClientSession) -> str:
                url = f"http://127.0.0.1:{first.port}{PATH}"
                async with session.post(url, json=BODY, headers=HEADERS) as response:
                    return text_of(await response.json())

            assert run(post) == "moved"
            assert [one.headers["x-goog-api-key"] for one in first.requests] == [value, value]
        assert [one.method for one in other.requests] == ["GET" if code == 302 else "POST"]
        assert "x-goog-api-key" not in other.requests[0].headers
