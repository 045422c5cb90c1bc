"""Replies that are read in pieces although they are JSON, and the key in any pieces."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from support.pool import Rig
from support.pool import key as pool_key
from support.raw_server import RawServer, chunk

import keyrot_middleware
from keyrot_middleware import providers
from keyrot_middleware.clients.bounded import LONGEST_BODY
from keyrot_middleware.clients.events import EventReader
from keyrot_middleware.clients.redaction import redact_key
from keyrot_middleware.clients.stream import Stream
from keyrot_middleware.core.activity import POOL, ActivityLog
from keyrot_middleware.core.commands import StreamOpened
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.secrets import Secret

KEY = "sk-proj-FAKE7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9Lm3Np"
HEADERS = {"authorization": "Bearer keyrot-pool"}
FILE = "/v1/files/file-abcdef123/content"
Taken = Callable[[bytes], object]


def _httpx(library: Any) -> Callable[[str, str, Taken], bytes]:
    def read(method: str, url: str, taken: Taken) -> bytes:
        got = bytearray()
        with library.stream(method, url, headers=HEADERS, timeout=20) as response:
            for piece in response.iter_bytes():
                got += piece
                taken(bytes(got[-64:]))
        return bytes(got)

    return read


def _async_httpx(method: str, url: str, taken: Taken) -> bytes:
    async def read() -> bytes:
        got = bytearray()
        async with (
            httpx.AsyncClient(timeout=20) as client,
            client.stream(method, url, headers=HEADERS) as response,
        ):
            async for piece in response.aiter_bytes():
                got += piece
                taken(bytes(got[-64:]))
        return bytes(got)

    return asyncio.run(read())


def _requests(method: str, url: str, taken: Taken) -> bytes:
    got = bytearray()
    with requests.request(method, url, headers=HEADERS, timeout=20, stream=True) as response:
        for piece in response.iter_content(65_536):
            got += piece
            taken(bytes(got[-64:]))
    return bytes(got)


def _aiohttp(method: str, url: str, taken: Taken) -> bytes:
    async def read() -> bytes:
        got = bytearray()
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=HEADERS) as response,
        ):
            async for piece in response.content.iter_any():
                got += piece
                taken(bytes(got[-64:]))
        return bytes(got)

    return asyncio.run(read())


READS = {
    "httpx": _httpx(httpx),
    "httpx2": _httpx(httpx2),
    "httpx-async": _async_httpx,
    "requests": _requests,
    "aiohttp": _aiohttp,
}
LIBRARIES = pytest.mark.parametrize("library", READS)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RawServer]]:
    made: list[RawServer] = []

    def make(talk: Callable[[socket.socket, str], Any], **settings: Any) -> RawServer:
        monkeypatch.setenv("OPENAI_API_KEYS", KEY)
        made.append(RawServer(talk))
        url = f"openai={made[-1].url}"
        keyrot_middleware.install(
            allowed_hosts=url, state_url="memory://", max_wait_s=0, **settings
        )
        return made[-1]

    yield make
    keyrot_middleware.uninstall()
    for one in made:
        one.close()


def head(kind: str, size: int | None) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("application/jsonl", None),
        ("application/x-jsonl", None),
        ("application/jsonlines; charset=utf-8", None),
        ("application/x-ndjson", None),
        ("Application/JSON", LONGEST_BODY + 1),
    ],
)
@LIBRARIES
def test_a_file_in_json_flows(library: str, kind: str, size: int | None, upstream: Any) -> None:
    """The program has the first line before the last one is sent, whatever the file's length."""
    has_first = threading.Event()
    first, last = b'{"first": "%s"}%s\n' % (KEY.encode(), b" " * 70_000), b'{"last": 1}\n'

    def talk(connection: socket.socket, _: str) -> None:
        connection.sendall(head(kind, size) + (chunk(first) if size is None else first))
        if not has_first.wait(15):
            return
        if size is None:
            connection.sendall(chunk(last) + chunk(b""))
        else:
            connection.sendall(b" " * (size - len(first) - len(last)) + last)

    got = READS[library]("GET", upstream(talk).url + FILE, lambda _: has_first.set())
    assert got.startswith(b'{"first": "[redacted]"} ')
    assert got.endswith(last)
    assert size is None or len(got) == size + len("[redacted]") - len(KEY)


@pytest.mark.parametrize("is_known", [True, False])
@LIBRARIES
def test_a_reply_that_is_too_long_to_keep_has_its_usage(
    library: str, is_known: bool, upstream: Any
) -> None:
    """Whether its length is known or not; only its end is read."""
    end = b'0.5],"echo":"%s","usage":{"prompt_tokens":7}}' % KEY.encode()
    begin, item = b'{"data":[', b"0.5," * 250_000
    content = begin + item * 36 + end
    assert len(content) > LONGEST_BODY

    def talk(connection: socket.socket, _: str) -> None:
        kind = "application/json"
        if is_known:
            connection.sendall(head(kind, len(content)) + content)
        else:
            pieces = b"".join(map(chunk, (begin, *[item] * 36, end[:20], end[20:], b"")))
            connection.sendall(head(kind, None) + pieces)

    got = READS[library]("POST", upstream(talk).url + "/v1/embeddings", len)
    assert got == content.replace(KEY.encode(), b"[redacted]")
    assert input_tokens() == 7


def input_tokens() -> int:
    pool = current_pool()
    assert pool is not None
    pool.activity.send()
    log = ActivityLog(pool.state.activity, pool.state.activity_log, pool.activity.zone)
    return log.view((), time.time()).today[POOL].input_tokens


def test_a_reply_of_a_million_values_has_its_usage_where_more_is_asked(upstream: Any) -> None:
    """A budget asks for all that a reply says; of such a one there is the end."""
    content = b'{"data":[' + b'{"ab":0},' * 600_000 + b'{}],"usage":{"prompt_tokens":7}}'

    def talk(connection: socket.socket, _: str) -> None:
        connection.sendall(head("application/json", len(content)) + content)

    url = upstream(talk, workloads={"w": {"usd": {"day": 1}}}).url + "/v1/embeddings"
    with keyrot_middleware.workload("w"):
        assert READS["httpx"]("POST", url, len) == content
    assert input_tokens() == 7


def test_a_long_redirect_is_not_followed(upstream: Any) -> None:
    """Where it has a body that is too long to be kept, its connection is released."""

    def talk(connection: socket.socket, _: str) -> None:
        content = b'"%s"' % (b" " * (LONGEST_BODY + 1))
        place = f"HTTP/1.1 303 See Other\r\nLocation: /x?key={KEY}\r\nContent-Type: text/plain\r\n"
        connection.sendall(place.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)

    url = upstream(talk).url + "/v1/embeddings"
    got = httpx.post(url, headers=HEADERS, json={}, follow_redirects=False, timeout=20)
    assert (got.status_code, KEY in str(got.headers), len(got.content) < 200_000) == (
        303,
        False,
        True,
    )


# The key ----------------------------------------------------------------------------------------


def stream_of(pieces: list[bytes], key: str, reader: EventReader | None = None) -> Stream:
    """Return a stream that a call has opened."""
    reader, rig = reader or EventReader(), Rig(pool_key("a"))
    stream = Stream(iter(pieces), bool, reader, {}, key=Secret(key), redact=str)
    rig.will("a", StreamOpened(stream))
    return rig.open()  # type: ignore[no-any-return]


@given(
    st.sampled_from([KEY, "FAKEFAK", "aab", "k", ""]),
    st.lists(
        st.sampled_from(["key", "half", "F", "FAKE", "a", "\n", "k", "]", "\u00e9"]), max_size=9
    ),
    st.lists(st.integers(0, 90), max_size=12),
)
def test_a_key_is_redacted_in_any_pieces(key: str, parts: list[str], cuts: list[int]) -> None:
    """All pieces together are the redacted whole: nothing is lost, late or shown."""
    whole = "".join({"key": key, "half": key[: len(key) // 2]}.get(p, p) for p in parts).encode()
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in zip(places, [*places[1:], len(whole)], strict=True)]
    assert b"".join(stream_of(pieces, key)) == redact_key(whole, Secret(key))


def test_only_what_may_be_the_beginning_of_the_key_waits() -> None:
    """A piece that ends otherwise comes at once and whole."""
    pieces = [b"data: a\n\n", b"data: s", b"k-proj-FAKE\n", b"sk-proj-", b"x", b"}", b"sk-"]
    assert [*stream_of(pieces, KEY)] == [
        *(b"data: a\n\n", b"data: ", b"sk-proj-FAKE\n"),
        *(b"sk-proj-x", b"}", b"sk-"),
    ]


def test_what_waits_behind_an_error_goes_out_with_it() -> None:
    """The program reads no further, so nothing would bring it."""
    provider = providers.of("openai")
    route = provider.route("POST", "https://api.openai.com/v1/chat/completions")
    assert route is not None
    event = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    error = b'data: {"error":{"message":"busy"}}\n\ndata: sk-proj'
    stream = stream_of([event, error], KEY, EventReader(provider.events(route)))
    assert [*stream] == [event, error]


@pytest.mark.parametrize("at", [1, 9, len(KEY) - 1])
@LIBRARIES
def test_a_key_in_two_pieces_of_a_stream_is_redacted(library: str, at: int, upstream: Any) -> None:
    """As a server writes what it echoes, and as the network cuts it."""
    is_read = threading.Event()

    def talk(connection: socket.socket, _: str) -> None:
        event = b"data: first\n\ndata: it is %s\n\n" % KEY.encode()
        cut = event.index(KEY.encode()) + at
        connection.sendall(head("text/event-stream", None) + chunk(event[:cut]))
        is_read.wait(15)
        connection.sendall(chunk(event[cut:]) + chunk(b""))

    def taken(got: bytes) -> None:
        if got.endswith(b"it is "):
            is_read.set()

    got = READS[library]("POST", upstream(talk).url + "/v1/responses", taken)
    assert (got, is_read.is_set()) == (b"data: first\n\ndata: it is [redacted]\n\n", True)
