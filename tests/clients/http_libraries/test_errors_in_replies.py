"""Errors where a reply is expected: in the body of a 200, and behind a stream's first events."""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from support.json_server import JsonServer, Request, Response
from support.raw_server import RawServer

import keyrot_middleware

VALUES = [f"FAKE{letter}7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9Lm3Np" for letter in "AB"]
CHAT = {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}
HEADERS = {"authorization": "Bearer keyrot-pool"}
BODY = {"model": "m", "messages": []}
MESSAGES = "/v1/messages"


def _sync(library: Any) -> Callable[[str, Any], tuple[int, bytes]]:
    def ask(url: str, body: Any) -> tuple[int, bytes]:
        got = library.post(url, json=body, headers=HEADERS)
        return got.status_code, got.content

    return ask


def _async(library: Any) -> Callable[[str, Any], tuple[int, bytes]]:
    async def send(url: str, body: Any) -> tuple[int, bytes]:
        async with library.AsyncClient() as client:
            got = await client.post(url, json=body, headers=HEADERS)
            return got.status_code, got.content

    return lambda url, body: asyncio.run(send(url, body))


async def _aiohttp(url: str, body: Any) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=HEADERS) as got,
    ):
        return got.status, await got.read()


ASKS = {
    "httpx": _sync(httpx),
    "httpx-async": _async(httpx),
    "httpx2": _sync(httpx2),
    "requests": _sync(requests),
    "aiohttp": lambda url, body: asyncio.run(_aiohttp(url, body)),
}
LIBRARIES = pytest.mark.parametrize("library", ASKS)


class Upstream:
    """Answers each key by a function of its place, and counts the requests."""

    def __init__(self, answer: Callable[[int], Response], provider: str) -> None:
        self.sent: Counter[str] = Counter()

        def reply(request: Request) -> Response:
            number = int(VALUES[1] in str(request.headers))
            self.sent["AB"[number]] += 1
            return answer(number)

        self.server = JsonServer(reply)
        of = "" if provider == "gemini" else f"{provider}="
        keyrot_middleware.install(
            allowed_hosts=f"{of}{self.server.url}",
            state_url="memory://",
            strategy="fill",
            max_wait_s=0,
        )


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Upstream]]:
    made: list[Upstream] = []

    def make(answer: Callable[[int], Response], provider: str = "groq") -> Upstream:
        monkeypatch.setenv(f"{provider.upper()}_API_KEYS", ",".join(VALUES))
        made.append(Upstream(answer, provider))
        return made[-1]

    yield make
    keyrot_middleware.uninstall()
    for one in made:
        one.server.close()


PATH = "/openai/v1/chat/completions"


@LIBRARIES
def test_an_error_in_a_200_goes_to_another_key(library: str, upstream: Any) -> None:
    """The program sees the reply of the key that works, and never the error."""
    error = {"base_resp": {"status_code": 1008, "status_msg": "no money"}, "choices": None}
    one = upstream(lambda number: Response(200, CHAT if number else error))
    status, content = ASKS[library](one.server.url + PATH, BODY)
    assert (status, json.loads(content), one.sent) == (200, CHAT, {"A": 1, "B": 1})


@LIBRARIES
@pytest.mark.parametrize("coding", ["", "gzip"])
def test_a_200_that_all_keys_get_is_the_programs(library: str, coding: str, upstream: Any) -> None:
    """Byte for byte, but for an echoed key; no key is penalized."""
    said = b'{ "error" : "odd \\u00e9 %s" }\n'
    sent = said % VALUES[0].encode()
    headers = {"content-encoding": coding} if coding else {}

    def answer(_: int) -> Response:
        return Response(200, gzip.compress(sent) if coding else sent, headers)

    one = upstream(answer)
    status, content = ASKS[library](one.server.url + PATH, BODY)
    assert (status, content) == (200, said % b"[redacted]")
    assert set(one.sent) == {"A", "B"}
    states = [key["state"] for key in keyrot_middleware.status()["keys"].values()]
    assert states == ["available", "available"]


def test_an_error_in_a_200_that_a_row_knows_rejects_the_key(upstream: Any) -> None:
    """Its words decide as in a 401; the key is asked once."""
    error = {"success": False, "code": 40100, "msg": "Invalid API key"}
    one = upstream(lambda number: Response(200, CHAT if number else error))
    for _ in range(3):
        assert httpx.post(one.server.url + PATH, json=BODY, headers=HEADERS).json() == CHAT
    assert one.sent == {"A": 1, "B": 3}
    states = [key["state"] for key in keyrot_middleware.status()["keys"].values()]
    assert states == ["rejected", "available"]


def test_the_pool_answers_where_each_key_is_rejected_in_a_200(upstream: Any) -> None:
    """No status of the provider's is known, so it is the pool's own sentence."""
    one = upstream(lambda _: Response(200, {"code": 40100, "msg": "Invalid API key"}))
    got = httpx.post(one.server.url + PATH, json=BODY, headers=HEADERS)
    assert (got.is_client_error, one.sent) == (True, {"A": 1, "B": 1})
    assert "No Groq API key" in got.json()["error"]["message"]


@pytest.mark.parametrize("size", [9_000, 90_000])
def test_a_long_200_is_a_reply(size: int, upstream: Any) -> None:
    """It is not parsed for this."""
    body = {"error": "x" * size}
    one = upstream(lambda _: Response(200, body))
    got = httpx.post(one.server.url + PATH, json=BODY, headers=HEADERS)
    assert (got.json(), sum(one.sent.values())) == (body, 1)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_stream_that_is_a_hidden_error_goes_to_another_key(kind: str, upstream: Any) -> None:
    """Whether it comes as an event or in place of the stream."""
    error = json.dumps({"id": "x", "choices": None, "base_resp": {"status_code": 1004}}).encode()
    chunk = {"choices": [{"delta": {"content": "Hi"}}]}
    events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    bad = error if "json" in kind else b"data: %s\n\n" % error

    def answer(number: int) -> Response:
        if number:
            return Response(200, events, {"content-type": "text/event-stream"})
        return Response(200, bad, {"content-type": kind})

    one = upstream(answer)
    got = httpx.post(one.server.url + PATH, json={**BODY, "stream": True}, headers=HEADERS)
    assert (got.content, one.sent) == (events, {"A": 1, "B": 1})


@pytest.mark.parametrize(
    ("provider", "method", "path"),
    [
        ("gemini", "POST", "/v1beta/models/m:generateContent"),
        ("gemini", "GET", "/v1beta/batches/b"),
        ("openai", "GET", "/v1/responses/resp_abcdefgh"),
        ("openai", "GET", "/v1/batches/batch_abcdefgh"),
        ("openai", "GET", "/v1/files/file-abcdefgh/content"),
    ],
)
def test_errors_of_stored_things_and_of_gemini_are_data(
    provider: str, method: str, path: str, upstream: Any
) -> None:
    """An operation that has failed has an `error` where one that is done has its result."""
    body = {"done": True, "error": {"code": 3, "message": "API key not valid."}}
    one = upstream(lambda _: Response(200, body), provider)
    name = "x-goog-api-key" if provider == "gemini" else "authorization"
    key = HEADERS["authorization"] if name == "authorization" else "keyrot-pool"
    got = httpx.request(method, one.server.url + path, headers={name: key})
    assert (got.status_code, got.json(), sum(one.sent.values())) == (200, body, 1)


# Events that show nothing ------------------------------------------------------------------------


def _events(*events: dict[str, Any]) -> bytes:
    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return "".join(lines).encode()


RESPONSE = {"id": "resp_abcdefgh", "status": "in_progress"}
CREATED = [
    {"type": f"response.{kind}", "response": RESPONSE}
    for kind in ("created", "queued", "in_progress")
]
DELTA = {"type": "response.output_text.delta", "delta": "Hi"}
DONE = {"type": "response.completed", "response": {**RESPONSE, "status": "completed"}}
FAILED = {"type": "error", "error": {"message": "no", "type": "odd"}}
START = [{"type": "message_start", "message": {"id": "msg_x"}}, {"type": "ping"}]
TEXT = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}
STREAMS = {
    "openai": ("/v1/responses", CREATED, [DELTA, DONE]),
    "anthropic": (MESSAGES, START, [TEXT, {"type": "message_stop"}]),
}
SSE = {"content-type": "text/event-stream"}


@LIBRARIES
@pytest.mark.parametrize("provider", STREAMS)
def test_an_error_behind_events_that_show_nothing_goes_to_another_key(
    provider: str, library: str, upstream: Any
) -> None:
    """The program gets the events of the second key alone, all of them and in order."""
    path, first, rest = STREAMS[provider]
    bad, good = _events(*first, FAILED), _events(*first, *rest)
    one = upstream(lambda number: Response(200, good if number else bad, SSE), provider)
    body = {**BODY, "stream": True}
    assert ASKS[library](one.server.url + path, body) == (200, good)
    assert one.sent == {"A": 1, "B": 1}


@pytest.mark.parametrize("provider", STREAMS)
@pytest.mark.parametrize("end", ["nothing", "shown"])
def test_other_streams_are_the_programs(provider: str, end: str, upstream: Any) -> None:
    """One that shows nothing at all, and an error behind what shows something."""
    path, first, rest = STREAMS[provider]
    sent = _events(*first) if end == "nothing" else _events(*first, rest[0], FAILED)
    one = upstream(lambda _: Response(200, sent, SSE), provider)
    got = httpx.post(one.server.url + path, json={**BODY, "stream": True}, headers=HEADERS)
    assert (got.status_code, got.content, sum(one.sent.values())) == (200, sent, 1)


def test_an_event_that_shows_nothing_ends_the_deadline_of_the_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work has begun: a model that thinks for long is not cut off."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    rest = _events(DELTA, DONE)

    def talk(connection: Any, _: str) -> None:
        connection.sendall(head + _events(CREATED[0]))
        server.wait(1.5)
        connection.sendall(rest)

    server = RawServer(talk)
    monkeypatch.setenv("OPENAI_API_KEYS", ",".join(VALUES))
    keyrot_middleware.install(
        allowed_hosts=f"openai={server.url}", state_url="memory://", first_token_s=0.7
    )
    try:
        url = f"{server.url}/v1/responses"
        got = ASKS["httpx-async"](url, {**BODY, "stream": True, "input": "Hi"})
    finally:
        server.close()
    assert (got, len(server.keys)) == ((200, _events(CREATED[0]) + rest), 1)


def test_a_background_response_is_begun_by_its_first_event(upstream: Any) -> None:
    """It names the job, which is not made twice."""
    sent = _events(CREATED[0], FAILED)
    one = upstream(lambda _: Response(200, sent, SSE), "openai")
    body = {**BODY, "stream": True, "background": True}
    got = httpx.post(f"{one.server.url}/v1/responses", json=body, headers=HEADERS)
    assert (got.content, sum(one.sent.values())) == (sent, 1)


PAGE = b"<!DOCTYPE html><html><head><title>Guest WiFi</title></head><body>Accept</body></html>"
HTML, OF_JSON = {"Content-Type": "text/html; charset=utf-8"}, {"Content-Type": "application/json"}
NO_ANSWERS = {"page": (PAGE, HTML), "page as JSON": (PAGE, OF_JSON), "nothing": (b"", OF_JSON)}


@LIBRARIES
@pytest.mark.parametrize("what", NO_ANSWERS)
def test_a_200_that_is_no_answer_is_the_programs_and_no_success(
    library: str, what: str, upstream: Any
) -> None:
    """As of a captive portal: no other key is asked, none is penalized, and calls fail."""
    one = upstream(lambda _: Response(200, *NO_ANSWERS[what]))
    for _ in range(3):
        assert ASKS[library](one.server.url + PATH, BODY) == (200, NO_ANSWERS[what][0])
    assert one.sent == {"A": 3}
    found = keyrot_middleware.status()
    assert [key["state"] for key in found["keys"].values()] == ["available", "available"]
    assert {key["success_count"] for key in found["keys"].values()} == {0}
    assert "m: the last 3 calls failed since " in found["headline"][0]
    said = {"nothing": "nothing in place of an answer"}.get(what, "Guest WiFi Accept")
    assert f': 200, something that is no answer "{said}"' in found["headline"][0]


@pytest.mark.parametrize("library", [httpx, httpx2, requests])
def test_a_page_in_place_of_a_stream_is_read_as_it_came(library: Any, upstream: Any) -> None:
    """In pieces, as the program asked for it; with nothing of a key that the page repeats."""
    page = PAGE.replace(b"Accept", VALUES[0].encode())
    one = upstream(lambda _: Response(200, page, HTML))
    url, body = one.server.url + PATH, {**BODY, "stream": True}
    for _ in range(3):
        if library is requests:
            with requests.post(url, json=body, headers=HEADERS, stream=True, timeout=9) as got:
                content = b"".join(got.iter_content(7))
        else:
            with library.stream("POST", url, json=body, headers=HEADERS) as got:
                content = b"".join(got.iter_bytes())
        assert (got.status_code, content) == (200, PAGE.replace(b"Accept", b"[redacted]"))
    assert one.sent == {"A": 3}
    assert "that is no answer" in keyrot_middleware.status()["headline"][0]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/openai/v1/audio/speech", b"ID3", "audio/mpeg"),
        ("/openai/v1/audio/transcriptions", b"Hello.", "text/plain"),
        (PATH, b" {}", "application/json"),
    ],
)
def test_a_200_in_another_form_is_an_answer(
    path: str, body: bytes, kind: str, upstream: Any
) -> None:
    """Sound, plain text, an empty object."""
    one = upstream(lambda _: Response(200, body, {"Content-Type": kind}))
    for _ in range(3):
        assert httpx.post(one.server.url + path, json=BODY, headers=HEADERS).content == body
    found = keyrot_middleware.status()
    assert sum(key["success_count"] for key in found["keys"].values()) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_called_html_is_an_answer(stream: bool, upstream: Any) -> None:
    """Some servers call whatever they send so; a page is known by how it begins."""
    event = b"data: " + json.dumps(CHAT).encode() + b"\n\n"
    content = event * 2_000 if stream else json.dumps(CHAT).encode()
    one = upstream(lambda _: Response(200, content, HTML))
    for _ in range(3):
        url, body = one.server.url + PATH, {**BODY, "stream": stream}
        with httpx.stream("POST", url, json=body, headers=HEADERS) as got:
            assert b"".join(got.iter_bytes()) == content
    assert keyrot_middleware.status()["headline"][0].startswith("All calls are served.")


def test_a_long_page_in_place_of_a_stream_is_whole(upstream: Any) -> None:
    """As the program would get it without a pool."""
    page = PAGE + b"." * 900_000
    one = upstream(lambda _: Response(200, page, HTML))
    url, body = one.server.url + PATH, {**BODY, "stream": True}
    with httpx.stream("POST", url, json=body, headers=HEADERS) as got:
        assert b"".join(got.iter_bytes()) == page
    assert len(one.sent) == 1
