"""aiohttp's sessions: what is theirs alone, beside what all HTTP libraries share."""

import asyncio
import io
import itertools
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import request as short_form
from support.http_modes import BODY, HEADERS, MESSAGES, MODEL, PATH, text_of
from support.json_server import JsonServer, Response
from support.raw_server import RawServer

import keyrot_middleware
from keyrot_middleware.clients.bounded import LONGEST_BODY
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"
TEXT, KEY = json.dumps(BODY), "x-goog-api-key"
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


async def long() -> Any:
    """Yield a body that is longer than what is kept."""
    yield TEXT.encode()
    for _ in range(LONGEST_BODY // 2**20):
        yield b" " * 2**20


def test_a_body_that_is_too_long_to_keep_is_offered_to_one_key(gemini, pool) -> None:
    """It can be sent only once: the program gets the refusal, and sends it again if it likes."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)

    async def post(session: aiohttp.ClientSession) -> int:
        async with session.post(PATH, data=long(), headers=HEADERS) as response:
            return response.status

    assert [run(post, base_url=gemini.url) for _ in range(2)] == [429, 200]
    assert [one.key for one in gemini.log] == ["A", "B"]


@pytest.mark.parametrize("body", [long, pieces])
def test_a_redirect_gets_a_whole_body_or_none(body, gemini, pool) -> None:
    """What is too long to be kept was yielded already: that fares as it does without a pool."""

    async def post(session: aiohttp.ClientSession, key: str) -> Any:
        gemini.reset_log()
        gemini.script("A", Reply.custom(307, b"", headers={"location": f"{gemini.url}{PATH}?x"}))
        try:
            async with session.post(PATH, data=body(), headers={KEY: key}) as response:
                found: Any = response.status
        except aiohttp.ClientPayloadError as error:
            found = str(error)
        return found, [one.body for one in gemini.log]

    plain = run(partial(post, key=pool.key("A")), base_url=gemini.url)
    pool("A")
    pooled = run(partial(post, key="keyrot-pool"), base_url=gemini.url)
    assert pooled == (plain if body is long else (200, [BODY, BODY]))


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


@pytest.mark.parametrize("of", ["session", "request"])
@pytest.mark.parametrize(("total", "code"), [(6, 429), (60, 200), (None, 200)])
def test_a_wait_stays_within_the_total_timeout(total, code, of, gemini, pool, clock) -> None:
    """A key that is available again in 30 s is waited for, unless the program waits less."""
    pool("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    given: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total)}

    async def post(session: aiohttp.ClientSession) -> int:
        options = given if of == "request" else {}
        async with session.post(PATH, json=BODY, headers=HEADERS, **options) as response:
            return response.status

    began = clock.time()
    assert run(post, base_url=gemini.url, **(given if of == "session" else {})) == code
    assert (clock.time() - began >= 30) is (code == 200)


def test_a_stream_is_asked_for_without_a_coding(gemini, pool) -> None:
    """As over the other libraries: an echo of the key, and what it used, is read on the way."""
    pool("A")

    async def post(session: aiohttp.ClientSession) -> None:
        for path in (PATH, f"{STREAM}?alt=sse"):
            async with session.post(path, json=BODY, headers=HEADERS) as response:
                await response.read()

    run(post, base_url=gemini.url)
    whole, stream = (one.header_values("accept-encoding") for one in gemini.log)
    assert whole != stream == ["identity"]


@pytest.mark.parametrize("name", ["x-goog-api-key", "authorization"])
def test_headers_with_a_key_are_printed_without_it(name, gemini, pool) -> None:
    """A tracer sees them as they are sent; what an error reporter prints of them has no key."""
    pool("A")
    printed: list[str] = []

    async def on_headers(_session: Any, _context: Any, params: Any) -> None:
        printed.append(repr(dict(params.headers)))

    tracer = aiohttp.TraceConfig()
    tracer.on_request_headers_sent.append(on_headers)

    async def post(session: aiohttp.ClientSession) -> int:
        path, body, headers = PATH, BODY, HEADERS
        if name == "authorization":
            path, body = "/v1beta/openai/chat/completions", {"model": MODEL, "messages": MESSAGES}
            headers = {name: "Bearer keyrot-pool"}
        async with session.post(path, json=body, headers=headers) as response:
            return response.status

    assert run(post, base_url=gemini.url, trace_configs=[tracer]) == 200
    [text] = printed
    assert f"'{name}': '[redacted]'" in text.lower()
    assert gemini.key("A").value not in text


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


async def parts_of(response: aiohttp.ClientResponse) -> list[bytes]:
    reader = aiohttp.MultipartReader.from_response(response)
    return [bytes(await part.read()) async for part in reader]  # type: ignore[union-attr]


async def read_and_wait(response: aiohttp.ClientResponse) -> Any:
    size = len(await response.read())
    await response.content.wait_eof()
    return size, response.content.is_eof(), response.content.at_eof()


async def wait_and_read(response: aiohttp.ClientResponse) -> Any:
    await response.content.wait_eof()
    return response.content.is_eof(), response.content.at_eof(), await response.content.read()


async def unread(response: aiohttp.ClientResponse) -> Any:
    begin = await response.content.readexactly(9)
    response.content.unread_data(begin[4:])
    return begin, await response.content.read()


async def without_waiting(response: aiohttp.ClientResponse) -> Any:
    return await response.content.readexactly(9), response.content.read_nowait(9)


async def notified_of_the_end(response: aiohttp.ClientResponse) -> Any:
    ends: list[str] = []
    response.content.on_eof(lambda: ends.append("early" if response.content.total_bytes else ""))
    return len(await response.content.read()), response.content.total_bytes, ends


async def in_lines(response: aiohttp.ClientResponse) -> Any:
    content = response.content
    return await content.readuntil(b": "), await content.readline(), [one async for one in content]


EVENTS = b"".join(b'data: {"candidates": [{"index": %d}]}\r\n\r\n' % i for i in range(5))
PARTS = b"--b\r\nx-a: b\r\n\r\nhello\r\n--b\r\n\r\nworld\r\n--b--\r\n"
REPLIES = {
    "whole": (json.dumps(ANSWER, indent=1).encode(), "application/json"),
    "stream": (EVENTS, "text/event-stream"),
    "parts": (PARTS, "multipart/mixed; boundary=b"),
}
USES = [read_and_wait, wait_and_read, unread, without_waiting, notified_of_the_end, in_lines]
CASES = [("parts", parts_of), *itertools.product(REPLIES, USES)]


@pytest.mark.filterwarnings("ignore:unread_data:DeprecationWarning")  # aiohttp's
@pytest.mark.parametrize(("reply", "use"), CASES)
def test_its_content_does_what_it_does_without_a_pool(reply, use, pool) -> None:
    """Each method of aiohttp's StreamReader, over an answer that is whole and over streams."""
    body, kind = REPLIES[reply]

    async def get(session: aiohttp.ClientSession) -> Any:
        async with asyncio.timeout(30), session.post(PATH, json=BODY) as response:
            return await use(response)

    with closing(JsonServer(lambda _: Response(200, body, {"Content-Type": kind}))) as server:
        plain = run(get, base_url=server.url)
        pool("A", allowed_hosts=(server.host,))
        assert run(get, base_url=server.url, headers=HEADERS) == plain
    assert pool.ledger.kinds in ([LeaseOutcome.SUCCESS], [LeaseOutcome.ABANDONED])


def test_a_broken_stream_has_no_end(gemini, pool) -> None:
    """Who reads on gets the error again, as without a pool, and never an empty piece."""
    pool("A")
    gemini.script("A", Reply.dropped(1))

    async def post(session: aiohttp.ClientSession) -> None:
        url = f"{gemini.url}{STREAM}?alt=sse"
        async with session.post(url, json=BODY, headers=HEADERS) as response:
            for _ in range(3):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.read()

    run(post)


@contextmanager
def silent_server(pool: Any) -> Iterator[str]:
    """A server that sends some events and then nothing, with a key for it; yields its address."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

    def talk(connection: Any, _: str) -> None:
        connection.sendall(head + EVENTS)
        server.wait(60)

    with closing(RawServer(talk)) as server:
        pool("A", allowed_hosts=(server.host,))
        yield server.url


def test_a_read_that_is_cancelled_ends_the_stream(pool) -> None:
    """With an error: what follows is lost, and an empty piece would say that all was read."""

    async def post(session: aiohttp.ClientSession) -> None:
        async with session.post(PATH, json=BODY) as response:
            assert await response.content.readexactly(len(EVENTS)) == EVENTS
            reading = asyncio.ensure_future(response.content.readany())
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            with pytest.raises(aiohttp.ClientConnectionError):
                await response.content.readany()

    with silent_server(pool) as url:
        run(post, base_url=url, headers=HEADERS)


def test_two_tasks_cannot_read_one_stream(pool) -> None:
    """The second raises, as without a pool; the first reads on to the end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    go_on = threading.Event()

    def talk(connection: Any, _: str) -> None:
        connection.sendall(head + EVENTS)
        go_on.wait(60)
        connection.sendall(EVENTS)

    async def post(session: aiohttp.ClientSession) -> None:
        async with session.post(PATH, json=BODY) as response:
            assert await response.content.readexactly(len(EVENTS)) == EVENTS
            reading = asyncio.ensure_future(response.content.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                await response.content.readany()
            go_on.set()
            assert await reading == EVENTS

    with closing(RawServer(talk)) as server:
        pool("A", allowed_hosts=(server.host,))
        run(post, base_url=server.url, headers=HEADERS)
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]


@pytest.mark.parametrize("end", ["close", "release"])
def test_a_task_that_reads_gets_an_error_when_another_ends_the_response(end, pool) -> None:
    """At once, as without a pool, though the server is silent; the lease is abandoned."""

    async def post(session: aiohttp.ClientSession) -> None:
        async with session.post(PATH, json=BODY) as response:
            assert await response.content.readexactly(len(EVENTS)) == EVENTS
            reading = asyncio.ensure_future(response.content.read())
            await asyncio.sleep(0)
            getattr(response, end)()
            with pytest.raises(aiohttp.ClientConnectionError):
                await asyncio.wait_for(reading, 30)

    with silent_server(pool) as url:
        run(post, base_url=url, headers=HEADERS)
    assert pool.ledger.kinds == [LeaseOutcome.ABANDONED]


def test_the_short_form_is_served(gemini, pool) -> None:
    """`aiohttp.request` too, also where its name was imported before the pool was there."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)

    async def post() -> None:
        for request in (short_form, aiohttp.request):
            url = f"{gemini.url}{PATH}"
            async with request("POST", url, json=BODY, headers=HEADERS) as response:
                assert text_of(await response.json()) == "ok from B"

    asyncio.run(post())
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 2)


def test_what_calls_it_by_its_function_is_served(gemini, pool, monkeypatch) -> None:
    """As a mock does that lets some requests through: it has kept the function of the class."""
    pool("A")
    kept = vars(aiohttp.ClientSession)["_request"]

    async def through(*args: Any, **kwargs: Any) -> Any:
        return await kept(*args, **kwargs)

    async def post(session: aiohttp.ClientSession) -> str:
        async with session.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS) as response:
            return text_of(await response.json())

    with monkeypatch.context() as mock:
        mock.setattr(aiohttp.ClientSession, "_request", through)
        assert run(post) == "ok from A"


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


@pytest.mark.parametrize(
    ("owner", "name"),
    [(aiohttp.Payload, "as_bytes"), (aiohttp.StreamReader, "_wait"), (None, "_middlewares")],
)
def test_an_aiohttp_that_is_not_known_is_left_alone(owner, name, gemini, pool, monkeypatch) -> None:
    """One that lacks a name that the pool relies on; a warning says so."""
    pool("A")
    if owner is not None:
        monkeypatch.delattr(owner, name)

    async def post(session: aiohttp.ClientSession) -> int:
        if owner is None:
            monkeypatch.delattr(session, name)
        options: Any = {"data": b"{}", "headers": HEADERS, "middlewares": ()}
        async with session.post(f"{gemini.url}{PATH}", **options) as response:
            return response.status

    with pytest.warns(keyrot_middleware.KeyrotWarning, match=r"aiohttp \d.*do not go through"):
        assert run(post) == 400
