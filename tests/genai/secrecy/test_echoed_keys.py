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
from support.scenes import WAYS, error_of, raised, surfaces
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


SOME_WAYS = [
    ("sync", "httpx"),
    ("async", "aiohttp"),
    ("async_stream", "httpx"),
    ("download", "httpx"),
    ("interaction sync", "httpx"),
]


ECHOES: dict[str, tuple[Callable[[str], bytes], Callable[[str], str]]] = {
    **{f"{form} in JSON": (partial(as_text, form=form), FORMS[form]) for form in FORMS},
    **{f"{form} as text": (partial(as_plain_text, form=form), FORMS[form]) for form in FORMS},
    **{place: (make, str) for place, make in REFUSALS.items()},
}


@pytest.mark.parametrize(("surface", "library", "echo"), spread(WAYS, ECHOES))
def test_a_key_that_a_refusal_repeats(surface, library, echo, scene, no_aiohttp, caplog) -> None:
    """Escaped, in headers, reason, cookies, trailers, compressed, or where a redirect leads."""
    if library == "httpx":
        no_aiohttp()
    make, form = ECHOES[echo]
    server = scene.serve(lambda connection, value: connection.sendall(make(value)))
    client = scene.client(server.url, retry_options={"attempts": 1})
    with caplog.at_level(logging.INFO):
        error: Any = raised(surfaces(client)[surface])
    scene.check(error, form=form, more="\n".join(one.getMessage() for one in caplog.records))
    code = getattr(error, "code", None) or getattr(error, "status_code", None)
    assert code in (302, 307, 308, 403)


@pytest.mark.parametrize(
    ("surface", "library", "status"), spread(SOME_WAYS, ["200 OK", "403 Forbidden"])
)
def test_no_log_has_a_key(status, surface, library, scene, no_aiohttp, caplog) -> None:
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
def test_a_success_that_cannot_be_read(surface, library, name, scene, no_aiohttp) -> None:
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
def test_a_live_frame_that_cannot_be_read(name, after_setup, scene) -> None:
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
