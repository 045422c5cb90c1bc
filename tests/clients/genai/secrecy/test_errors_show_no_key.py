"""Whatever goes wrong, what reporters, the interpreter and logs record of it holds no key."""

import asyncio
import gzip
import html
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.modes import MODEL, skip_where_the_sdk_reconnects, spread
from support.raw_server import RawServer, answer, chunk, reset
from support.reporters import sent_to_sentry
from support.scenes import WAYS, error_of, other_calls, raised, surfaces
from websockets.asyncio.server import serve

import keyrot_middleware
from keyrot_middleware.clients.redaction import MOST, redact_bytes
from keyrot_middleware.testing import plain_websockets

pytestmark = [
    pytest.mark.promise(number=2),
    *SDK_WARNINGS,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


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
    """Events, breadcrumbs and spans, of the libraries by which google-genai sends."""
    found = sent_to_sentry()
    assert found["keys"] == 0
    assert found["events"] >= 4 * len(WAYS)
    assert min(found["sent"]) >= len(WAYS)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in text)


def quoted(text: str) -> str:
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
    body = json.dumps({"error": {"code": 403, "message": "THE KEY", "status": "X"}})
    return answer(body.replace("THE KEY", f"Consumer {FORMS[form](value)} is suspended").encode())


def as_plain_text(value: str, form: str) -> bytes:
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
    "deep": lambda value: answer(b'{"error": ' * 40 + error_of(value) + b"}" * 40),
    "trailers": with_trailers,
    "a redirect": lambda value: answer(b"", f"Location: /x?key={value}", status="302 Found"),
    "a redirect, quoted": lambda value: answer(
        b"", f"Location: /x?key={quoted(value)}", status="307 Moved"
    ),
    "a redirect elsewhere": lambda value: answer(
        b"", f"Location: http://{value}.example/", status="307 Moved"
    ),
}
REFUSALS |= {
    f"{charset}{kind}": lambda value, charset=charset, kind=kind: answer(
        error_of(value).decode().encode(charset), f"Content-Type: application/json{kind}"
    )
    for charset, kind in {
        "utf-16": "; charset=utf-16",
        "utf-16-be": "",
        "utf-32": "; charset=utf-8",
    }.items()
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


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_charset_that_nothing_names_is_read(charset: str) -> None:
    """Its first letter is none of JSON's, and no mark is before it."""
    data = "\u2026FAKE-key?".encode(charset)
    hidden = redact_bytes(data, lambda text: text.replace("FAKE-key", "[redacted]"), "text/plain")
    assert hidden.decode(charset) == "\u2026[redacted]?"


def test_a_charset_of_names_is_not_read() -> None:
    """Punycode takes seconds for the body of an error, and has the letters of a key as they are."""
    texts: list[str] = []

    def redact(text: str) -> str:
        texts.append(text)
        return text

    assert redact_bytes(b"a-99", redact, "text/plain; charset=punycode") == b"a-99"
    assert texts == ["a-99"]


@pytest.mark.parametrize("call", ["files.get", "aio.files.get"])
def test_an_own_key_of_any_shape_that_a_refusal_repeats(call, scene, no_aiohttp) -> None:
    """A client's own key, which is none of the pool's, is redacted by its value."""
    no_aiohttp()
    own = "FAKE/own.key=of:no+shape"
    server = scene.serve(lambda connection, value: connection.sendall(answer(error_of(value))))
    client = scene.client(server.url, own, retry_options={"attempts": 1})
    error = raised(other_calls(client)[call])
    assert own in server.keys
    said = [str(error), repr(vars(error)), error.response.text]
    assert ["suspended" in text for text in said] == [True] * 3
    assert [text for text in said if own in text] == []


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
        error = raised(surfaces(client)[surface])
    if isinstance(error, TypeError):
        pytest.skip("this SDK's Interactions cannot be logged with a pydantic this old")
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
                async with asyncio.timeout(60), client.aio.live.connect(model=MODEL) as live:
                    while True:
                        await anext(live.receive())

    error = raised(lambda: asyncio.run(session()))
    assert keys
    scene.check(error, sent=False, form=escaped)


CUT = "cut by keyrot"
BLOCK = 65_536


def text_without_end(value: str) -> Iterator[bytes]:
    """Return the parts of a body that repeats a key and does not end."""
    yield f"refused: {value} ".encode()
    while True:
        yield b"and so on " * (BLOCK // 10)


def json_without_end(value: str) -> Iterator[bytes]:
    """Return the parts of an error of Google's with details that do not end."""
    yield b'{"error": {"code": 403, "status": "X", "message": "refused", "details": ['
    while True:
        yield b",".join([json.dumps({"reason": "X", "quoted": f'"{value}"'}).encode()] * 500) + b","


def packed(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Compress the parts, of which a few bytes become very many."""
    packer = zlib.compressobj(9, wbits=31)
    for part in parts:
        for _ in range(20):
            yield packer.compress(part)
        yield packer.flush(zlib.Z_SYNC_FLUSH)


BODIES: dict[str, tuple[Callable[[str], Iterator[bytes]], str]] = {
    "text": (text_without_end, "Content-Type: text/plain"),
    "JSON": (json_without_end, "Content-Type: application/json"),
    "a gzip bomb": (
        lambda value: packed(json_without_end(value)),
        "Content-Type: application/json\r\nContent-Encoding: gzip",
    ),
}


@pytest.mark.parametrize(("surface", "library", "body"), spread(WAYS, BODIES))
def test_an_error_without_an_end(surface, library, body, scene, no_aiohttp) -> None:
    """The call ends with the SDK's own error, which says that it was cut."""
    if library == "httpx":
        no_aiohttp()
    parts, headers = BODIES[body]

    def talk(connection: Any, value: str) -> None:
        head = f"HTTP/1.1 403 Forbidden\r\n{headers}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for part in filter(None, parts(value)):
            connection.sendall(chunk(part))  # until the connection is closed

    server = scene.serve(talk)
    error: Any = raised(surfaces(scene.client(server.url, retry_options={"attempts": 1}))[surface])
    code = getattr(error, "code", None) or error.status_code
    assert code == 403
    assert "refused" in str(error)
    assert CUT in str(error)
    assert len(str(error)) < 2 * MOST
    scene.check(error)
