"""One table: each library, and each thing that a program can look at or do with a call by it.

A new library fills its row: a class that sends by it, and what it lacks, with the reason.
"""

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google import genai
from support.http_modes import BODY, HEADERS, MODEL, PATH
from support.interactions import SDK_WARNINGS
from support.json_server import JsonServer, Response
from support.key_search import texts_of
from support.modes import AIOHTTP
from support.raw_server import RawServer, answer, chunk

import keyrot_middleware
from keyrot_middleware.clients.redaction import ENOUGH
from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = [
    pytest.mark.promise(number=2),
    *SDK_WARNINGS,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUERY = "key=keyrot-pool"
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
ANSWER = {"candidates": [{"content": {"parts": [{"text": "ok from A"}]}}]}

# The rows ----------------------------------------------------------------------------------------


class Httpx:
    """httpx.Client and httpx2.Client."""

    lacks: Mapping[str, str] = {"cancel": "a thread is not cancelled"}
    fork = "sync", "before"

    def __init__(self, name: str) -> None:
        self.name, self.library = name, importlib.import_module(name)

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        """Make a client, of so many connections at *most*."""
        limits = self.library.Limits(max_connections=most)
        with self.library.Client(follow_redirects=True, timeout=60, limits=limits) as client:
            yield client

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        request = client.build_request("POST", url, json=BODY, headers=headers)
        return client.send(request, stream=stream)

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        for data in response.iter_bytes(16):
            yield data

    async def close(self, response: Any) -> None:
        response.close()


class HttpxAsync(Httpx):
    lacks: Mapping[str, str] = {}
    fork = "async", "after"

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        limits = self.library.Limits(max_connections=most)
        options = {"follow_redirects": True, "timeout": 60, "limits": limits}
        async with self.library.AsyncClient(**options) as client:
            yield client

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        request = client.build_request("POST", url, json=BODY, headers=headers)
        return await client.send(request, stream=stream)

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        async for data in response.aiter_bytes(16):
            yield data

    async def close(self, response: Any) -> None:
        await response.aclose()


class Requests(Httpx):
    lacks: Mapping[str, str] = {**Httpx.lacks, "connection": "it opens another one"}
    fork = "stream", "before"

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        with self.library.Session() as client:
            yield client

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        return client.post(url, json=BODY, headers=headers, stream=stream)

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        for data in response.iter_content(16):
            yield data


class Aiohttp(HttpxAsync):
    lacks: Mapping[str, str] = {"pickle": "neither a response nor its request_info has one"}

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        connector = self.library.TCPConnector(limit=most or 100)
        timeout = self.library.ClientTimeout(60)
        async with self.library.ClientSession(connector=connector, timeout=timeout) as client:
            yield client

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        return await client.post(url, json=BODY, headers=headers)

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        async for data in response.content.iter_chunked(16):
            yield data

    async def close(self, response: Any) -> None:
        response.release()


class Genai(Httpx):
    lacks: Mapping[str, str] = {
        "request": "its responses have none",
        "history": "its responses have none",
        "connection": "test_few_connections_are_enough",
        "pickle": "its streams have none, and what they yield has no request",
        "redirect": "tests/clients/genai/secrecy/test_redirects.py",
        "fork": "it sends by the libraries above",
        "cancel": "a thread is not cancelled",
    }

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        options = genai.types.HttpOptions(base_url=url.partition("/v1beta")[0])
        with genai.Client(http_options=options) as client:
            yield client

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        models = client.models
        send = models.generate_content_stream if stream else models.generate_content
        return send(model=url.partition("models/")[2].partition(":")[0], contents="hello")

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        for one in [response] if hasattr(response, "text") else response:
            yield one.text.encode()


class GenaiAsync(Genai):
    lacks: Mapping[str, str] = {name: why for name, why in Genai.lacks.items() if name != "cancel"}

    @contextlib.asynccontextmanager
    async def client(self, url: str, most: int | None = None) -> AsyncIterator[Any]:
        async with super().client(url) as client, client.aio as aio:
            yield aio

    async def send(self, client: Any, url: str, *, stream: bool, headers: Any) -> Any:
        return await (await super().send(client, url, stream=stream, headers=headers))

    async def pieces(self, response: Any) -> AsyncIterator[bytes]:
        if hasattr(response, "text"):
            yield response.text.encode()
        else:
            async for one in response:
                yield one.text.encode()

    async def close(self, response: Any) -> None:
        await response.aclose()


ROWS: dict[str, Any] = {
    "httpx": Httpx("httpx"),
    "httpx2": Httpx("httpx2"),
    "httpx-async": HttpxAsync("httpx"),
    "httpx2-async": HttpxAsync("httpx2"),
    "requests": Requests("requests"),
    "aiohttp": Aiohttp("aiohttp"),
    "google-genai": Genai("google.genai"),
    "google-genai-async": GenaiAsync("google.genai"),
}
if not AIOHTTP:
    del ROWS["aiohttp"]

# What programs look at ---------------------------------------------------------------------------


def public(value: Any, depth: int = 4) -> Iterator[str]:
    """Yield the texts of a value and of its public attributes; the repr of some texts is masked."""
    if isinstance(value, str):
        yield str.__str__(value)
    elif isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, Mapping):
        yield from public([*value.items()], depth)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from public(item, depth)
    elif depth and value is not None and not callable(value):
        yield repr(value)
        for name in [name for name in dir(value) if not name.startswith("_")]:
            with contextlib.suppress(Exception):  # properties of what is not there
                yield from public(getattr(value, name), depth - 1)


SHOWN: dict[str, Callable[[Any], Any]] = {
    "response": lambda response: [*public(response)],
    "request": lambda response: [
        *public(getattr(response, "request_info", None) or response.request)
    ],
    "history": lambda response: [*public(response.history)],
    "repr": lambda response: [repr(response), str(response)],
    "pickle": lambda response: [pickle.dumps(response).decode("latin-1")],
}


class World(SimpleNamespace):
    """What a cell has: the row, the fake service, the fixtures `pool` and `caplog`."""

    row: Any
    gemini: FakeGemini
    pool: Any
    caplog: Any
    said = b""
    """What was read of the last response."""

    async def call(self, path: str, *, url: str = "", headers: Any = HEADERS) -> Any:
        """Send a call and read it; return its response."""
        url = (url or self.gemini.url) + path
        async with self.row.client(url) as client:
            response = await self.row.send(client, url, stream=":stream" in path, headers=headers)
            self.said = b"".join([data async for data in self.row.pieces(response)])
            assert self.said
            return response

    async def end(self, before: Callable[[], Any]) -> None:
        """Check that no lease is under way, after some turns of the loop, which closes streams."""
        for _ in range(20):
            before()
            await asyncio.sleep(0)
            if not self.pool.ledger.under_way:
                break
        assert self.pool.ledger.under_way == {}

    def hold(self, found: Any) -> None:
        """Check that texts have no key."""
        value = self.gemini.key("A").value[10:-1]
        assert [text for text in found if value in text] == []


def shown(name: str) -> Callable[[World], Coroutine[Any, Any, None]]:
    async def check(world: World) -> None:
        """A successful response shows the placeholder where the program wrote it, and no key."""
        world.pool("A")
        for path in (PATH, STREAM):
            for query in ("", f"{'&' if '?' in path else '?'}{QUERY}"):
                response = await world.call(path + query, headers={} if query else HEADERS)
                found = SHOWN[name](response)
                world.hold(found)
                assert query or QUERY not in "".join(found)
                if name == "request":
                    assert any("keyrot-pool" in text for text in found)

    return check


async def history(world: World) -> None:
    """Of a redirect within the origin, which is followed with a key."""
    value = world.pool.key("A")

    def answer(request: Any) -> Response:
        if request.path == PATH:
            return Response(307, {}, {"location": "/v1beta/models/moved:generateContent"})
        return Response(200, ANSWER)

    with JsonServer(answer) as server:
        world.pool("A", allowed_hosts=(server.host,))
        response = await world.call(PATH, url=server.url)
        assert [one.headers["x-goog-api-key"] for one in server.requests] == [value] * 2
    assert len(response.history) == 1
    world.hold(SHOWN["history"](response))


async def errors(world: World) -> None:
    """Of a server that names no such model and then no such key, and of a pool without one."""
    world.pool("A", max_wait_s=0)
    world.gemini.script("A", Reply.custom(404, {"error": {"code": 404}}), Reply.KEY_INVALID)
    for path in (PATH, f"{STREAM}&{QUERY}", PATH):
        headers = {} if QUERY in path else HEADERS
        with pytest.raises(Exception) as error:
            (await world.call(path, headers=headers)).raise_for_status()
        world.hold(texts_of(error.value))
    assert world.gemini.sent("A") == 2


async def heads(world: World) -> None:
    """Of a success and a failure, whose header names, values and reason repeat the key."""
    value = world.pool.key("A")
    codes: list[int] = []

    def talk(connection: Any, _key: str) -> None:
        head = f"X-{value}: yes", f"X-Echo: {value}", f"Set-Cookie: k={value}"
        body = json.dumps(ANSWER if codes[-1] == 200 else {"error": {"code": 400}}).encode()
        connection.sendall(answer(body, *head, status=f"{codes[-1]} {value}"))

    with contextlib.closing(RawServer(talk)) as server:
        world.pool("A", allowed_hosts=(server.host,))
        for path in (PATH, STREAM) * 2:
            codes.append(200 if len(codes) < 2 else 400)
            try:
                found = [*public(await world.call(path, url=server.url))]
            except Exception as error:
                found = texts_of(error)
            world.hold(found)
        assert set(server.keys) == {value}


async def bypassed(world: World) -> None:
    """Inside `bypass()` the home key takes the placeholder's place, and is as little seen."""
    world.pool("A")
    world.gemini.script("A", Reply.OK, Reply.custom(404, {"error": {"code": 404}}))
    with keyrot_middleware.bypass():
        for path in (PATH, f"{PATH}?{QUERY}"):
            headers = {} if QUERY in path else HEADERS
            try:
                found = [*public(await world.call(path, headers=headers))]
            except Exception as error:
                found = texts_of(error)
            world.hold(found)
    assert [request.key for request in world.gemini.log] == ["A", "A"]
    assert "keyrot-pool" not in repr([one.headers for one in world.gemini.log])


CHARSETS = {
    "utf-16": "; charset=utf-16",
    "utf-16-le": "",
    "utf-32-be": "; charset=utf-8",
    "utf-7": "; charset=UTF-7",
    "cp037": "; charset=cp037",
}
"""In which charset an error is, and which one its headers name."""


async def charsets(world: World) -> None:
    """Of an error in another charset than UTF-8, which its headers name or its bytes show."""
    said = json.dumps({"error": {"code": 400, "message": f"bad {world.pool.key('A')}"}})
    answers: list[Response] = []
    with JsonServer(lambda _: answers[-1]) as server:
        world.pool("A", allowed_hosts=(server.host,))
        url = server.url + PATH
        for charset, named in CHARSETS.items():
            body = said.encode(charset)
            if charset == "utf-7":
                body = said.replace("AI", "+AEE-I").encode()
            answers.append(Response(400, body, {"Content-Type": f"application/json{named}"}))
            async with world.row.client(url) as client:
                try:
                    response = await world.row.send(client, url, stream=False, headers=HEADERS)
                except Exception as error:
                    found = texts_of(error)
                else:
                    body = b"".join([data async for data in world.row.pieces(response)])
                    found = [body.decode(charset), *public(response)]
            world.hold(found)
            assert charset == "cp037" or "bad" in "".join(found).replace("\0", "")


async def event(world: World) -> None:
    """Of a stream that begins with an error which repeats the key, as each later call quotes it."""
    text = f"API key not valid. Please pass a valid API key. {world.pool.key('A')}"
    error = {"code": 400, "message": text, "status": "INVALID_ARGUMENT"}
    world.pool("A", max_wait_s=0)
    world.gemini.always("A", Reply.custom(400, {"error": error}).in_stream())
    for path in (STREAM, PATH, STREAM):
        with pytest.raises(Exception, match=r"400|API key not valid") as caught:
            (await world.call(path)).raise_for_status()
        world.hold([*texts_of(caught.value), world.said.decode()])
    assert "API key not valid" in repr(keyrot_middleware.status())
    world.hold([repr(keyrot_middleware.status())])
    assert world.gemini.sent("A") == 1


async def lost(world: World) -> None:
    """Of a connection that ends without a response; an exception may have its request too."""
    with contextlib.closing(RawServer(lambda connection, _: connection.close())) as server:
        world.pool("A", allowed_hosts=(server.host,), max_retries=0)
        for query in ("", f"?{QUERY}"):
            with pytest.raises(Exception) as error:
                await world.call(PATH + query, url=server.url, headers={} if query else HEADERS)
            world.hold(texts_of(error.value))
            world.hold(public(getattr(error.value, "request", None)))
        assert len(server.keys) == 2


async def logs(world: World) -> None:
    """At DEBUG, of all loggers."""
    world.caplog.set_level(logging.DEBUG)
    world.pool("A", "B", strategy="fill")
    world.gemini.script("A", Reply.QUOTA_DAY)
    await world.call(PATH)
    await world.call(STREAM)
    world.hold([world.caplog.text])


async def redirect(world: World) -> None:
    """Another origin gets nothing that it does not get without a pool, and no key."""
    own = {"cookie": "FAKE-cookie", "proxy-authorization": "Basic FAKE-login"}
    credentials = (
        (PATH, {**HEADERS, **own}),
        ("/v1beta/openai/chat/completions", {"authorization": "Bearer keyrot-pool", **own}),
        (f"{PATH}?{QUERY}", own),
    )
    seen: list[list[set[str]]] = []
    world.pool.key("A")
    with (
        JsonServer(lambda _: Response(200, ANSWER)) as other,
        JsonServer(lambda _: Response(307, {}, {"location": f"{other.url}/x"})) as server,
    ):
        for installed in (False, True):
            if installed:
                world.pool("A", allowed_hosts=(server.host,))
            other.requests.clear()
            for path, headers in credentials:
                await world.call(path, url=server.url, headers=headers)
            secret = {*own.values(), "keyrot-pool"}
            seen.append([{text for text in secret if text in repr(one)} for one in other.requests])
            world.hold(map(repr, other.requests))
    assert all(after <= before for before, after in zip(*seen, strict=True))


async def fork(world: World) -> None:
    """The child knows what its parent has learned until the fork, and each learns the rest."""
    (way, when), gemini = world.row.fork, world.gemini
    keys = [gemini.add_key(label).value for label in "ABC"]
    gemini.always("A", Reply.QUOTA_DAY)
    gemini.always("B", Reply.KEY_INVALID)
    args = ["-m", "support.fork_program", f"{world.row.name}-{way}", gemini.host, when, *keys]
    run = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, *args],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [["ok from C"] * 3] * 2
    sent = [gemini.sent(label) for label in "ABC"]
    assert sent == ([1, 1, 7] if when == "after" else [2, 2, 6])


async def cancel(world: World) -> None:
    """A call that is cancelled while the server is silent ends its lease."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def be_silent(_connection: Any, _key: str) -> None:
        loop.call_soon_threadsafe(asked.set)
        server.wait(60)

    with contextlib.closing(RawServer(be_silent)) as server:
        world.pool("A", allowed_hosts=(server.host,))
        task = asyncio.ensure_future(world.call(PATH, url=server.url))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.pool.ledger.under_way == {}


def left(close: bool) -> Callable[[World], Coroutine[Any, Any, None]]:
    async def check(world: World) -> None:
        """A stream of which one piece was read, and which is closed or dropped, ends its lease."""
        world.pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
        url, row = world.gemini.url + STREAM, world.row
        async with row.client(url) as client:
            for _ in range(2):
                response = await row.send(client, url, stream=True, headers=HEADERS)
                pieces = row.pieces(response)
                assert await anext(pieces)
                if close:
                    await row.close(response)
                    await world.end(lambda: None)  # while the program still has both
                await pieces.aclose()
                del response, pieces
                await world.end(gc.collect)

    return check


async def connection(world: World) -> None:
    """A client's only one is free after each attempt and stream that ends before its bytes do."""
    head = "HTTP/1.1 {}\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = head.format("200 OK", "text/event-stream").encode()
    more = chunk(b": more\n" * ENOUGH)
    full = {"error": {"code": 429, "message": "Slow.", "status": "RESOURCE_EXHAUSTED"}}
    began = {
        "A": head.format("429 Slow", "application/json").encode() + more,
        "B": events + chunk(b"data: %b\n\n" % json.dumps(full).encode()) + more,
        "C": events + chunk(b"data: %b\n\n" % json.dumps(ANSWER).encode()),
    }
    parts = {world.pool.key(label): part for label, part in began.items()}

    def talk(connection: Any, key: str) -> None:
        connection.sendall(parts[key])
        server.wait(300)

    with contextlib.closing(RawServer(talk)) as server:
        world.pool(*began, strategy="fill", allowed_hosts=(server.host,))
        url, row = server.url + STREAM, world.row
        async with row.client(url, most=1) as client:
            for _ in range(2):
                response = await row.send(client, url, stream=True, headers=HEADERS)
                pieces = row.pieces(response)
                assert await anext(pieces)
                await row.close(response)
                await pieces.aclose()
    assert [parts[key] for key in server.keys] == [*began.values(), began["C"]]


async def thread(world: World) -> None:
    """Threads, each with a client of its own, or a loop."""
    world.pool("A", "B")
    world.gemini.always("A", Reply.QUOTA_DAY)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(asyncio.run, world.call(STREAM)) for _ in range(8)]:
            world.hold(public(await asyncio.wrap_future(done)))
    assert world.gemini.sent("B") == 8


CELLS: dict[str, Callable[[World], Coroutine[Any, Any, None]]] = {
    **{name: shown(name) for name in SHOWN},
    "history": history,
    "errors": errors,
    "charsets": charsets,
    "heads": heads,
    "bypassed": bypassed,
    "event": event,
    "lost": lost,
    "logs": logs,
    "redirect": redirect,
    "fork": fork,
    "cancel": cancel,
    "close": left(close=True),
    "drop": left(close=False),
    "connection": connection,
    "thread": thread,
}


@pytest.mark.parametrize(
    ("library", "cell"),
    [(name, cell) for name, row in ROWS.items() for cell in CELLS if cell not in row.lacks],
)
def test_each_library_keeps_each_promise(library, cell, gemini, pool, caplog) -> None:
    """No key is shown, and no lease is left, whatever a program looks at, and does."""
    world = World(row=ROWS[library], gemini=gemini, pool=pool, caplog=caplog)
    asyncio.run(CELLS[cell](world))


def test_what_a_library_lacks_is_known() -> None:
    assert all({*row.lacks} <= {*CELLS} for row in ROWS.values())
