"""What Sentry, rich and the interpreter record of an error holds no key, whatever went wrong."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.modes import MODEL, run, skip_where_the_sdk_reconnects, spread
from support.raw_server import RawServer, answer, chunk, reset
from support.reporters import sent_to_sentry
from support.scenes import SURFACES, WAYS, error_of, raised, surfaces
from support.servers import free_port

from keyrot_middleware.testing import plain_websockets

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def faults(server: Callable[[], RawServer]) -> dict[str, Callable[[Any, str], Any]]:
    """Return what can go wrong on a connection, once a request with a key has arrived."""
    head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n"

    def packed(value: str) -> bytes:
        body = bytearray(gzip.compress(error_of(value), 0))
        body[-12:] = b"\xff" * 12
        return answer(bytes(body), "Content-Encoding: gzip")

    def chunked(value: str) -> bytes:
        broken = chunk(error_of(value)) + b"no number\r\n"
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + broken

    def silent(connection: Any, data: bytes) -> None:
        connection.sendall(data)
        server().wait(10)

    return {
        "dropped": lambda connection, _: None,
        "reset": lambda connection, _: reset(connection),
        "no answer": lambda connection, _: silent(connection, b""),
        "half a head": lambda connection, value: connection.sendall(
            f"{head}X-Echo: {value}\r\nX-Ec".encode()
        ),
        "no HTTP": lambda connection, value: connection.sendall(f"{value}\r\n\r\n".encode()),
        "a long head": lambda connection, value: connection.sendall(
            f"{head}X-Echo: {value * 4_000}\r\n\r\n".encode()
        ),
        "half a body": lambda connection, value: connection.sendall(
            answer(error_of(value), length=10_000)
        ),
        "half a success": lambda connection, value: connection.sendall(
            answer(error_of(value), status="200 OK", length=10_000)
        ),
        "silence in the body": lambda connection, value: silent(
            connection, answer(error_of(value), length=10_000)
        ),
        "silence in a success": lambda connection, value: silent(
            connection, answer(error_of(value), status="200 OK", length=10_000)
        ),
        "broken chunks": lambda connection, value: connection.sendall(chunked(value)),
        "broken gzip": lambda connection, value: connection.sendall(packed(value)),
    }


SHORT_MS = 500
"""The timeout of a call to a server that is silent."""
SILENT = ("no answer", "silence in the body", "silence in a success")
FAULTS = tuple(faults(lambda: pytest.fail("only names")))


@pytest.mark.parametrize(("surface", "library", "fault"), spread(WAYS, FAULTS))
def test_no_reporter_shows_a_key(surface, library, fault, scene, no_aiohttp) -> None:
    """Not of the error, and not of its causes and contexts, in whichever library they began."""
    if library == "aiohttp":
        skip_where_the_sdk_reconnects("async")
    else:
        no_aiohttp()
    server = scene.serve(faults(lambda: server)[fault])
    more = {"timeout": SHORT_MS} if fault in SILENT else {}
    client = scene.client(server.url, retry_options={"attempts": 1}, **more)
    error = raised(surfaces(client)[surface])
    if error is None:
        pytest.skip("a body that ends early is no error here")
    scene.check(error, sent=fault not in SILENT)  # a busy machine may have sent nothing by then


@pytest.mark.parametrize(("surface", "library"), WAYS)
def test_a_refused_connection(surface, library, scene, no_aiohttp) -> None:
    """Nothing was sent, and the headers were made."""
    if library == "httpx":
        no_aiohttp()
    client = scene.client(f"http://127.0.0.1:{free_port()}", retry_options={"attempts": 1})
    scene.check(raised(surfaces(client)[surface]), sent=False)


@pytest.mark.parametrize(
    ("surface", "library", "fault"),
    spread(
        [name for name in SURFACES if "async" in name and name != "async upload"],
        ["httpx", "aiohttp"],
        SILENT,
    ),
)
def test_a_call_that_the_program_gives_up(surface, library, fault, scene, no_aiohttp) -> None:
    """The error is the program's own, and what was cancelled is its cause."""
    if library == "httpx":
        no_aiohttp()
    server = scene.serve(faults(lambda: server)[fault])
    client = scene.client(server.url)
    works: dict[str, Callable[[], Any]] = {
        "async": lambda: client.aio.models.generate_content(model=MODEL, contents="hello"),
        "async_stream": lambda: _read(
            client.aio.models.generate_content_stream(model=MODEL, contents="hello")
        ),
        "async download": lambda: client.aio.files.download(file="files/abc"),
        "interaction async": lambda: client.aio.interactions.create(model=MODEL, input="hello"),
        "interaction async_stream": lambda: _read(
            client.aio.interactions.create(model=MODEL, input="hello", stream=True)
        ),
    }

    async def give_up() -> Any:
        async with asyncio.timeout(SHORT_MS / 1_000):
            return await works[surface]()

    error = raised(lambda: run(client, give_up))
    assert isinstance(error, TimeoutError)
    scene.check(error, sent=False)


async def _read(opening: Any) -> None:
    async for _ in await opening:
        pass


HANDSHAKES: dict[str, Callable[[Any, str], Any]] = {
    "refused": lambda connection, value: connection.sendall(
        answer(
            error_of(value),
            f"X-Echo: {value}",
            f"Set-Cookie: key={value}",
            status=f"403 Forbidden for {value}",
        )
    ),
    "another protocol": lambda connection, value: connection.sendall(
        answer(b"", f"Upgrade: {value}", "Connection: upgrade", status="101 Switching")
    ),
    "redirected": lambda connection, value: connection.sendall(
        answer(b"", f"Location: ws://127.0.0.1/{value}", status=f"307 To {value}")
    ),
}


@pytest.mark.parametrize("fault", [*FAULTS, *HANDSHAKES])
def test_a_live_session_that_does_not_open(fault, scene) -> None:
    """Whatever the server does to the handshake; a session has no timeout but the program's."""
    server = scene.serve((HANDSHAKES | faults(lambda: server))[fault])

    async def session() -> None:
        async with asyncio.timeout(SHORT_MS / 1_000 if fault in SILENT else 30):
            async with client.aio.live.connect(model=MODEL) as live:
                await anext(live.receive())

    with plain_websockets():
        client = scene.client(server.url)
        scene.check(raised(lambda: asyncio.run(session())), sent=fault not in SILENT)


def test_sentry_with_its_defaults() -> None:
    """Events, breadcrumbs and spans; tests/http_clients has the other order of the two."""
    found = sent_to_sentry("before", "sdk")
    assert found["keys"] == 0
    assert found["events"] >= 4 * len(WAYS)
    assert min(found["sent"]) >= len(WAYS)
