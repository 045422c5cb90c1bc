"""A key that the server repeats, in whatever form and place, is not in an error or a log."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import logging
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.modes import MODEL, spread
from support.raw_server import answer, chunk
from support.scenes import WAYS, Scene, error_of, raised, surfaces
from websockets.asyncio.server import serve

import keyrot_middleware
from keyrot_middleware.testing import plain_websockets

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def escaped(text: str) -> str:
    """Escape every character as JSON does."""
    return "".join(f"\\u{ord(char):04x}" for char in text)


def quoted(text: str) -> str:
    """Escape every character as URLs do."""
    return "".join(f"%{ord(char):02X}" for char in text)


FORMS: dict[str, Callable[[str], str]] = {
    "JSON": escaped,
    "a letter of JSON": lambda text: text[:6] + escaped(text[6]) + text[7:],
    "JSON in JSON": lambda text: escaped(text).replace("\\", "\\\\"),
    "a URL": quoted,
    "a URL in a URL": lambda text: quoted(text).replace("%", "%25"),
    "HTML": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "XML": lambda text: html.escape("".join(f"&#x{ord(char):x};" for char in text)),
}
"""How a server can write a key in a text."""
"""How a server can encode a body; the SDK cannot read the errors of some of these."""


def as_text(value: str, form: str) -> bytes:
    """Return an error with a key in one of the forms."""
    body = json.dumps({"error": {"code": 403, "message": "THE KEY", "status": "X"}})
    return answer(body.replace("THE KEY", f"Consumer {FORMS[form](value)} is suspended").encode())


def as_plain_text(value: str, form: str) -> bytes:
    """Return an error that is no JSON, with a key in one of the forms."""
    return answer(FORMS[form](value).encode(), "Content-Type: text/plain")


def with_trailers(value: str) -> bytes:
    """Return an error in chunks, with a key in front of it, across the chunks and behind them."""
    body = error_of(value)
    lines = (
        f"HTTP/1.1 103 Early Hints\r\nX-Echo: {value}\r\n",
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close",
        "Trailer: X-Echo\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    last = f"0\r\nX-Echo: {value}\r\n\r\n".encode()
    return "\r\n".join(lines).encode() + chunk(body[:60]) + chunk(body[60:]) + last


REFUSALS: dict[str, Callable[[str], bytes]] = {
    "gzip": lambda value: answer(gzip.compress(error_of(value)), "Content-Encoding: gzip"),
    "deflate": lambda value: answer(zlib.compress(error_of(value)), "Content-Encoding: deflate"),
    "a head": lambda value: answer(
        b"{}",
        f"X-Echo: {value}",
        f"X-Quoted: {quoted(value)}",
        f"X-{value}: yes",
        f"Set-Cookie: key={value}; Path=/",
        f"WWW-Authenticate: Key realm={value}",
        status=f"403 Refused {value}",
    ),
    "trailers": with_trailers,
    "a redirect": lambda value: answer(b"", f"Location: /x?key={value}", status="302 Found"),
    "a redirect, quoted": lambda value: answer(
        b"", f"Location: /x?key={quoted(value)}", status="307 Moved"
    ),
    "a redirect elsewhere": lambda value: answer(
        b"", f"Location: http://{value}.example/", status="307 Moved"
    ),
}


class Refused:
    """A call that is refused, and what is logged of it."""

    def __init__(self, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
        self._scene, self._caplog = scene, caplog

    def check(
        self, surface: str, make: Callable[[str], bytes], form: Callable[[str], str] = str
    ) -> Any:
        """Call; check that no key is shown; return the error."""
        scene = self._scene
        server = scene.serve(lambda connection, value: connection.sendall(make(value)))
        client = scene.client(server.url, retry_options={"attempts": 1})
        with self._caplog.at_level(logging.INFO):
            error = raised(surfaces(client)[surface])
        logged = "\n".join(record.getMessage() for record in self._caplog.records)
        scene.check(error, form=form, more=logged)
        return error


@pytest.fixture
def refused(scene: Scene, caplog: pytest.LogCaptureFixture) -> Refused:
    """Return what refuses a call."""
    return Refused(scene, caplog)


def code_of(error: Any) -> int | None:
    """Return the HTTP status of an error of the SDK."""
    return getattr(error, "code", None) or getattr(error, "status_code", None)


SOME_WAYS = [
    ("sync", "httpx"),
    ("async", "aiohttp"),
    ("async_stream", "httpx"),
    ("download", "httpx"),
    ("interaction sync", "httpx"),
]


@pytest.mark.parametrize(
    ("surface", "library", "form", "make"), spread(SOME_WAYS, FORMS, [as_text, as_plain_text])
)
def test_a_key_that_is_escaped(
    surface: str,
    library: str,
    form: str,
    make: Callable[[str, str], bytes],
    refused: Refused,
    no_aiohttp: Callable[[], None],
) -> None:
    """Neither in this form nor in plain text, and the error is the SDK's own."""
    if library == "httpx":
        no_aiohttp()
    error = refused.check(surface, partial(make, form=form), FORMS[form])
    assert code_of(error) == 403


@pytest.mark.parametrize(("surface", "library", "name"), spread(WAYS, REFUSALS))
def test_a_key_in_another_place(
    surface: str, library: str, name: str, refused: Refused, no_aiohttp: Callable[[], None]
) -> None:
    """In headers, reason, cookies, trailers, compressed bodies, and where a redirect leads."""
    if library == "httpx":
        no_aiohttp()
    error = refused.check(surface, REFUSALS[name])
    assert code_of(error) in (302, 307, 308, 403)


@pytest.mark.parametrize(("surface", "library"), SOME_WAYS)
def test_a_redirect_that_is_no_address(
    surface: str, library: str, refused: Refused, no_aiohttp: Callable[[], None]
) -> None:
    """Some versions of httpx raise an error of their own."""
    if library == "httpx":
        no_aiohttp()
    refused.check(
        surface,
        lambda value: answer(
            value.encode(), f"Location: http://[{value}", status="308 Permanent Redirect"
        ),
    )


@pytest.mark.parametrize(("surface", "library"), SOME_WAYS)
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_no_log_has_a_key(
    status: str,
    surface: str,
    library: str,
    scene: Scene,
    no_aiohttp: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At DEBUG the HTTP libraries write every header, of a success too; uninstall() ends that."""
    if library == "httpx":
        no_aiohttp()

    def talk(connection: Any, value: str) -> None:
        headers = f"X-Echo: {value}", f"Set-Cookie: key={value}"
        connection.sendall(answer(b"{}", *headers, status=f"{status} {value}"))

    server = scene.serve(talk)
    client = scene.client(server.url)
    with caplog.at_level(logging.DEBUG):
        raised(surfaces(client)[surface])
    assert server.keys
    assert server.keys[0][8:-1] not in caplog.text
    keyrot_middleware.uninstall()
    loggers = [logging.getLogger(one) for one in logging.root.manager.loggerDict if "http" in one]
    filters = [type(one).__module__ for logger in loggers for one in logger.filters]
    assert [one for one in filters if one.startswith("keyrot")] == []  # litellm has its own


@pytest.mark.parametrize("surface", ["sync_stream", "async_stream", "interaction sync_stream"])
def test_no_log_of_an_open_stream_has_a_key(
    surface: str,
    scene: Scene,
    no_aiohttp: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The HTTP library reads it after the send, and quotes at DEBUG what it cannot read."""
    no_aiohttp()

    def talk(connection: Any, value: str) -> None:
        head = "HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"
        connection.sendall("\r\n".join([*head, "", ""]).encode() + chunk(b"data: {}\n\n"))
        scene.server.wait(0.05)
        connection.sendall(f"{value}\r\n\r\n".encode())

    server = scene.serve(talk)
    client = scene.client(server.url)
    with caplog.at_level(logging.DEBUG):
        error = raised(surfaces(client)[surface])
    assert "illegal chunk header" in caplog.text
    assert server.keys[0][8:-1] not in caplog.text
    scene.check(error)


def test_bytes_that_are_no_text(refused: Refused) -> None:
    """They are in no encoding at all."""
    refused.check("sync", lambda value: answer(b"\xff\xfe\x00" + value.encode() + b"\x80"))


BAD_SUCCESSES: dict[str, Callable[[str], bytes]] = {
    "broken JSON": lambda value: b'{"candidates": "%s' % value.encode(),
    "escaped, broken": lambda value: f'{{"candidates": "{escaped(value)}'.encode(),
    "a wrong type": lambda value: json.dumps(
        {"candidates": value, "name": [value], "id": [value], "steps": value}
    ).encode(),
    "escaped, a wrong type": lambda value: (
        f'{{"candidates": "{escaped(value)}", "name": ["{escaped(value)}"]}}'.encode()
    ),
}


@pytest.mark.parametrize(
    ("surface", "library", "name"),
    spread([way for way in WAYS if "load" not in way[0]], BAD_SUCCESSES),
)
def test_a_success_that_cannot_be_read(
    surface: str, library: str, name: str, scene: Scene, no_aiohttp: Callable[[], None]
) -> None:
    """The error is the SDK's or pydantic's, and quotes what it cannot read."""
    if library == "httpx":
        no_aiohttp()

    def talk(connection: Any, value: str) -> None:
        body = BAD_SUCCESSES[name](value)
        if "stream" in surface:
            body = b"event: step.delta\ndata: " + body + b"\n\n"
            connection.sendall(answer(body, "Content-Type: text/event-stream", status="200 OK"))
        else:
            connection.sendall(answer(body, f"X-Echo: {value}", status="200 OK"))

    server = scene.serve(talk)
    client = scene.client(server.url)
    error = raised(surfaces(client)[surface])
    if error is None:
        pytest.skip("the SDK reads it all the same")
    scene.check(error, form=escaped)


def test_the_response_to_a_refused_handshake_is_the_librarys_own(scene: Scene) -> None:
    """Also among the arguments of the exception, where another program may look for its code."""
    server = scene.serve(
        lambda connection, value: connection.sendall(answer(b"{}", f"X-Echo: {value}"))
    )

    async def session() -> None:
        async with client.aio.live.connect(model=MODEL):
            pass

    with plain_websockets():
        client = scene.client(server.url)
        error: Any = raised(lambda: asyncio.run(session()))
    assert error.args == (error.response,)
    assert error.response.status_code == 403
    assert "redacted" in error.response.headers["X-Echo"]
    scene.check(error)


FRAMES: dict[str, Callable[[str], str | bytes]] = {
    "no JSON": lambda value: f"what is {value}",
    "no JSON, bytes": lambda value: f"what is {value}".encode(),
    "a wrong type": lambda value: json.dumps({"setupComplete": value, "usageMetadata": value}),
    "escaped": lambda value: f'{{"usageMetadata": "{escaped(value)}"}}',
    "an error": lambda value: json.dumps({"error": {"code": 403, "message": value}}),
    "half an error": lambda value: json.dumps({"error": {"code": 403, "message": value}})[:-1],
}


@pytest.mark.parametrize("after_setup", [False, True])
@pytest.mark.parametrize("name", FRAMES)
def test_a_live_frame_that_cannot_be_read(name: str, after_setup: bool, scene: Scene) -> None:
    """Before the session is set up, and later."""
    keys: list[str] = []

    async def talk(connection: Any) -> None:
        keys.append(connection.request.headers["x-goog-api-key"])
        await connection.recv()
        if after_setup:
            await connection.send('{"setupComplete": {}}')
        await connection.send(FRAMES[name](keys[-1]))
        await connection.close(1008, f"no more of {keys[-1]}")

    async def session() -> None:
        async with serve(talk, "127.0.0.1", 0) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with plain_websockets():
                client = scene.client(f"http://{host}")
                async with asyncio.timeout(5), client.aio.live.connect(model=MODEL) as live:
                    while True:
                        await anext(live.receive())

    error = raised(lambda: asyncio.run(session()))
    assert keys
    scene.check(error, sent=False, form=escaped)
