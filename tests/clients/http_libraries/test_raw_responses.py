"""What programs of requests read from a response besides its content, and from their adapters."""

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from support.http_modes import BODY, HEADERS, MODEL
from support.json_server import JsonServer, Response
from support.modes import spread
from support.raw_server import RawServer, answer

PATH = f"/v1beta/models/{MODEL}:"
OK = {"candidates": [{"content": {"parts": [{"text": "hi\n there"}]}}]}


def post(url: str, verb: str, **options: Any) -> Any:
    """Send one request, whose response the program reads itself."""
    with requests.Session() as session:
        return session.post(
            f"{url}{PATH}{verb}", json=BODY, headers=HEADERS, stream=True, **options
        )


def _copied(raw: Any) -> bytes:
    file = io.BytesIO()
    shutil.copyfileobj(raw, file, 11)
    return file.getvalue()


READS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda raw: raw.read(),
    "decoded": lambda raw: raw.read(decode_content=True),
    "pieces": lambda raw: b"".join(iter(lambda: raw.read(7, decode_content=True), b"")),
    "nothing-between": lambda raw: raw.read(9) + raw.read(0) + raw.read(),
    "stream": lambda raw: b"".join(raw.stream(7, decode_content=True)),
    "lines": b"".join,
    "readline": lambda raw: b"".join(iter(raw.readline, b"")),
    "buffered": lambda raw: io.BufferedReader(raw).read(),
    "copied": _copied,
}


@pytest.fixture
def served(gemini, pool) -> Iterator[Callable[..., str]]:
    """Return what serves bytes, or responses by a function of the request, with the key A."""
    servers = []

    def serve(reply: Any) -> str:
        server: Any = (
            JsonServer(reply)
            if callable(reply)
            else RawServer(lambda connection, _: connection.sendall(reply))
        )
        servers.append(server)
        pool("A", allowed_hosts=(server.host,))
        return str(server.url)

    yield serve
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("read", "verb"), spread(READS, ["generateContent", "streamGenerateContent"])
)
def test_raw_is_the_response_of_urllib3(verb, read, served) -> None:
    """Every way of reading it gives the bytes of the wire, coded as they came."""
    sent = gzip.compress(json.dumps(OK).encode(), mtime=0)
    headers = {"Content-Encoding": "gzip", "Set-Cookie": "a=1"}
    url = served(lambda _: Response(200, sent, headers))
    plain = requests.post(f"{url}/", stream=True, timeout=9)
    found = post(url, verb)
    assert READS[read](found.raw) == READS[read](plain.raw)
    for name in ("status", "version", "reason", "closed", "tell"):
        values = [getattr(one.raw, name) for one in (found, plain)]
        assert values[0] == values[1] or (callable(values[0]) and values[0]() == values[1]())
    assert [*found.raw.headers.items()] == [*plain.raw.headers.items()]


@pytest.mark.parametrize(
    ("stream", "status", "verb"),
    spread([True, False], [200, 302, 404], ["generateContent", "streamGenerateContent"]),
)
def test_an_echoed_key_is_in_no_header(verb, status, stream, gemini, served) -> None:
    """Neither the raw response nor the session's cookies keep it; other cookies stay."""
    key = gemini.key("A").value if gemini.add_key("A") else ""
    headers = {"X-Echo": key, "Set-Cookie": f"k={key}"}
    url = served(lambda _: Response(status, OK, headers))
    with requests.Session() as session:
        response = session.post(
            f"{url}{PATH}{verb}", json=BODY, headers=HEADERS, stream=stream, allow_redirects=False
        )
        seen = [response.headers, response.raw.headers, response.cookies, session.cookies]
        assert key not in str(seen)
        assert session.cookies["k"].endswith("[redacted]")
        assert response.json() == OK


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_response_has_its_cookies(status, served) -> None:
    """Also an error, which the pool has read and made anew."""
    url = served(lambda _: Response(status, OK, {"Set-Cookie": "a=b; Path=/"}))
    with requests.Session() as session:
        response = session.post(f"{url}{PATH}generateContent", json=BODY, headers=HEADERS)
        assert (response.status_code, response.json()) == (status, OK)
        assert response.cookies.get_dict() == session.cookies.get_dict() == {"a": "b"}


def test_what_breaks_a_body_is_raised_as_requests_raises_it(served) -> None:
    """Not as urllib3 does, below which the pool reads it."""
    broken = answer(json.dumps(OK).encode(), status="200 OK", length=500)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        post(served(broken), "generateContent")


class _Plain(requests.adapters.BaseAdapter):
    """As in requests' documentation: its responses have a file, and no connection."""

    def __init__(self, *replies: tuple[int, Any]) -> None:
        super().__init__()
        self._replies = iter(replies)

    def send(self, request: Any, **_: Any) -> Any:
        response = requests.Response()
        response.status_code, body = next(self._replies)
        response.url, response.request = request.url, request
        response.headers["content-type"] = "application/json"
        response.raw = io.BytesIO(json.dumps(body).encode())
        return response

    def close(self) -> None: ...


@pytest.mark.parametrize("stream", [True, False])
def test_an_adapter_without_connections(stream, gemini, pool) -> None:
    """A program's own adapter rotates too."""
    pool("A", "B", strategy="fill")
    refused = {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED"}}
    with requests.Session() as session:
        session.mount("http://", _Plain((429, refused), (200, OK)))
        response = session.post(
            f"{gemini.url}{PATH}generateContent", json=BODY, headers=HEADERS, stream=stream
        )
    assert response.json() == OK
