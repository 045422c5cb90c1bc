"""aiohttp's sessions: what is theirs alone, beside what all HTTP libraries share."""

import asyncio
import io
import json
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.http_modes import BODY, HEADERS, MODEL, PATH, text_of
from support.json_server import JsonServer, Response

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"
TEXT = json.dumps(BODY)
ANSWER = {"candidates": [{"content": {"parts": [{"text": "moved"}]}}]}


def run(work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def go() -> Any:
        async with aiohttp.ClientSession(**options) as session:
            return await work(session)

    return asyncio.run(go())


async def pieces() -> Any:
    yield TEXT[:9].encode()
    yield TEXT[9:].encode()


def form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", b"RIFF" * 20, filename="a.wav")
    return data


def file(path: Path, mode: str) -> Any:
    path.write_text(TEXT)
    return path.open(mode)


BODIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "json": lambda _: {"json": BODY},
    "bytes": lambda _: {"data": TEXT.encode()},
    "memoryview": lambda _: {"data": memoryview(TEXT.encode())},
    "str": lambda _: {"data": TEXT},
    "StringIO": lambda _: {"data": io.StringIO(TEXT)},
    "text file": lambda path: {"data": file(path, "r")},
    "binary file": lambda path: {"data": file(path, "rb")},
    "form": lambda _: {"data": form()},
    "payload": lambda _: {"data": aiohttp.BytesIOPayload(io.BytesIO(TEXT.encode()))},
    "generator": lambda _: {"data": pieces(), "headers": {"Content-Length": str(len(TEXT))}},
}


@pytest.mark.parametrize("kind", BODIES)
def test_each_kind_of_body_goes_to_the_next_key_too(kind, pool, tmp_path) -> None:
    """Whole, with the Content-Type that aiohttp gives it without a pool, and with parameters."""
    values = [pool.key("A"), pool.key("B")]
    refused = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}

    def answer(request: Any) -> Response:
        is_first = request.headers.get("x-goog-api-key") == values[0]
        return Response(429, refused) if is_first else Response(200, ANSWER)

    async def post(session: aiohttp.ClientSession) -> str:
        given = {"params": {"alt": "json"}, **BODIES[kind](tmp_path / "body.json")}
        async with session.post(PATH, **given) as response:
            return text_of(await response.json())

    with closing(JsonServer(answer)) as server:
        pool("A", "B", strategy="fill", allowed_hosts=(server.host,))
        assert run(post, base_url=server.url) == "moved"
        assert run(post, base_url=server.url, headers=HEADERS) == "moved"
        plain, *sent = server.requests
    assert [one.headers.get("x-goog-api-key") for one in (plain, *sent)] == [None, *values]
    kinds = {one.headers["content-type"].partition("boundary")[0] for one in (plain, *sent)}
    assert len(kinds) == len({len(one.body) for one in (plain, *sent)}) == 1


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


WAYS: dict[str, Callable[[aiohttp.ClientResponse], Coroutine[Any, Any, bytes]]] = {
    "iter_any": lambda response: joined(response.content.iter_any()),
    "iter_chunked": lambda response: joined(response.content.iter_chunked(9)),
    "lines": lambda response: joined(response.content),
    "content": lambda response: response.content.read(),
    "read": lambda response: response.read(),
}


async def joined(parts: Any) -> bytes:
    return b"".join([part async for part in parts])


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_answer_is_read_in_each_way(way, gemini, pool) -> None:
    """Proxies and downloads read its content; once it is released, nothing can be read."""
    pool("A")

    async def post(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS) as response:
            content = await WAYS[way](response)
            assert len(content) == response.content_length
            assert text_of(json.loads(content)) == "ok from A"
        with pytest.raises(aiohttp.ClientConnectionError):
            await response.content.read()

    run(post)


@pytest.mark.parametrize("of", ["session", "request"])
def test_the_middlewares_of_the_program_see_one_call(of, gemini, pool) -> None:
    """And the placeholder; a session with a base address is served too."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)
    seen = []

    async def watch(request: Any, send: Any) -> Any:
        response = await send(request)
        seen.append((request.headers["x-goog-api-key"], response.status))
        return response

    async def post(session: aiohttp.ClientSession) -> None:
        options: Any = {"middlewares": (watch,)} if of == "request" else {}
        async with session.post(PATH, json=BODY, headers=HEADERS, **options) as response:
            assert text_of(await response.json()) == "ok from B"

    run(post, base_url=gemini.url, middlewares=(watch,) if of == "session" else ())
    assert seen == [("keyrot-pool", 200)]


def test_an_old_aiohttp_is_left_alone(gemini, pool, monkeypatch) -> None:
    """Its bodies cannot be sent twice; a warning says so."""
    pool("A")
    monkeypatch.delattr(aiohttp.Payload, "as_bytes")

    async def post(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{gemini.url}{PATH}", data=b"{}", headers=HEADERS) as response:
            return response.status

    with pytest.warns(keyrot_middleware.KeyrotWarning, match="aiohttp before"):
        assert run(post) == 400
