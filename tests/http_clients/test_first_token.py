"""An attempt that shows nothing until its deadline is cut off, and another key or model serves."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import aiohttp
import anthropic
import httpcore
import httpx
import pytest
import requests
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import http_modes
from support.google_bodies import bad, reason
from support.http_modes import MODEL, RAW
from support.modes import MODES, ask
from support.raw_server import RawServer, answer, chunk

import keyrot_middleware
from keyrot_middleware.http_clients.requests_sessions import keeping
from keyrot_middleware.runtime.first_token import Deadline, FirstTokens
from keyrot_middleware.telemetry.tracing import TracingObserver

SOON, NEVER = 0.3, 30.0
"""A deadline, and how long a server stays silent unless the test ends."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS, WHOLE = HEAD % b"text/event-stream", HEAD % b"application/json"
PATH = f"/v1beta/models/{MODEL}:generateContent"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
INVALID = json.dumps(
    bad("API key not valid. Please pass a valid API key.", reason("API_KEY_INVALID"))
).encode()
MESSAGE: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-5",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 1},
    },
    {"type": "message_stop"},
]
STREAMS = [mode for mode in RAW if "stream" in mode]
CALLS = [mode for mode in RAW if "stream" not in mode]


def said(text: str) -> bytes:
    return json.dumps({"candidates": [{"content": {"parts": [{"text": text}]}}]}).encode()


def event(text: str) -> bytes:
    return chunk(b"data: " + said(text) + b"\r\n\r\n")


class Slow:
    """Answers with the label of the key; the first *slow* keys in their own way."""

    def __init__(self, install: Any) -> None:
        self.labels: dict[str, str] = {}
        self.ways: dict[str, Callable[[Any], None]] = {}
        self.over, self.hung_up = threading.Event(), threading.Event()
        self._install = install
        self.server = RawServer(self._talk)
        keeping.add(self.server.url)

    def pool(self, *keys: Any, **settings: Any) -> Any:
        """Install a pool that uses the keys in this order."""
        names = [key if isinstance(key, str) else key["key_id"] for key in keys]
        self.labels = {self._install.key(name): name for name in names}
        options = {"strategy": "fill", "first_token_s": SOON, "max_wait_s": 0, **settings}
        return self._install(*keys, allowed_hosts=(self.server.host,), **options)

    def _talk(self, connection: Any, key: str) -> None:
        label = self.labels[key]
        way = self.ways.get(label)
        if way is not None:
            way(connection)
        else:
            self.answer(connection, label)

    @property
    def sent(self) -> list[str]:
        """The key of each request; one that is cut off may not have reached the server yet."""
        return [lease.key_id for lease in self._install.ledger.leases]

    def in_turn(self, first: Callable[[Any], None], then: Callable[[Any], None]) -> None:
        """Let the key A answer the first request in its own way."""

        def way(connection: Any) -> None:
            (first if len(self.sent) == 1 else then)(connection)

        self.ways["A"] = way

    def answer(self, connection: Any, text: str, *, stream: bool = True) -> None:
        head, body = (EVENTS, event(text)) if stream else (WHOLE, chunk(said(text)))
        connection.sendall(head + body + b"0\r\n\r\n")

    # Ways to be slow ------------------------------------------------------------------------------

    def no_head(self, connection: Any) -> None:
        self.over.wait(NEVER)

    def no_event(self, connection: Any) -> None:
        connection.sendall(EVENTS)
        self.over.wait(NEVER)

    def keep_alives(self, connection: Any) -> None:
        connection.sendall(EVENTS)
        try:
            while not self.over.wait(0.05):
                connection.sendall(chunk(b": PROCESSING\n\n") + chunk(b"\r\n"))
        except OSError:
            self.hung_up.set()

    def late_head(self, connection: Any) -> None:
        self.over.wait(4 * SOON)
        self.answer(connection, "late", stream=False)

    def late(self, connection: Any) -> None:
        """Answer long behind the deadline."""
        connection.sendall(EVENTS)
        self.over.wait(4 * SOON)
        connection.sendall(event("late") + b"0\r\n\r\n")


@pytest.fixture
def slow(pool) -> Iterator[Slow]:
    threads = set(threading.enumerate())
    found = Slow(pool)
    yield found
    found.over.set()
    keyrot_middleware.uninstall()
    found.server.close()
    keeping.discard(found.server.url)
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)  # that of the pool ends by itself
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No warning about what was left open, in no thread and at no collection."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert not [one for one in caught if issubclass(one.category, ResourceWarning)]


ASYNC = [mode for mode in STREAMS if mode.endswith("-astream")]
SYNC = [mode for mode in STREAMS if mode not in ASYNC]
SOME_STREAMS = ["httpx-stream", "requests-stream", "httpx2-astream", "aiohttp-astream"]
SOME_CALLS = ["httpx2-sync", "requests-sync", "httpx-async"]


@pytest.mark.parametrize(
    ("mode", "way"),
    [(mode, way) for mode in STREAMS for way in ("no_head", "no_event", "keep_alives")],
)
def test_another_key_takes_over_a_stream(mode, way, slow, pool) -> None:
    """Whatever the server has sent that is no event; nothing but the second stream is read."""
    slow.pool("A", "B")
    slow.ways["A"] = getattr(slow, way)
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    assert slow.sent == ["A", "B"]
    assert [one.value for one in pool.ledger.kinds] == ["failure", "success"]
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


@pytest.mark.parametrize("library", [httpx, requests])
def test_the_connection_of_what_was_cut_off_is_closed(library, slow) -> None:
    """While the client is open."""
    slow.pool("A", "B")
    slow.ways["A"] = slow.keep_alives
    with library.Client() if library is httpx else requests.Session() as client:
        assert http_modes.send(library, client, slow.server.url, "keyrot-pool", stream=True) == "B"
        assert slow.hung_up.wait(NEVER)


@pytest.mark.parametrize("library", [httpx, aiohttp])
def test_the_connection_of_a_task_that_was_cut_off_is_closed(library, slow) -> None:
    slow.pool("A", "B")
    slow.ways["A"] = slow.keep_alives
    url = f"{slow.server.url}{PATH}".replace(":generate", ":streamGenerate") + "?alt=sse"
    client = httpx.AsyncClient if library is httpx else aiohttp.ClientSession

    async def go() -> None:
        async with client() as opened:
            given: dict[str, Any] = {"json": BODY, "headers": {"x-goog-api-key": "keyrot-pool"}}
            response = await opened.post(url, **given)
            assert response.headers["content-type"] == "text/event-stream"
            if library is aiohttp:
                await response.read()
            assert await asyncio.to_thread(slow.hung_up.wait, NEVER)

    asyncio.run(go())


def test_a_body_is_read_or_cut_off() -> None:
    """Not cut off behind its first event, nor where no cut of the minute is left."""
    tokens, ended = FirstTokens({}, lambda: 0.0), list[int]()
    with Deadline(0.0, tokens, MODEL).over(lambda: ended.append(1)):
        pass
    assert (tokens.cut_late(), ended) == (inf, [])
    with pytest.raises(TimeoutError), Deadline(0.0, tokens, MODEL).over(lambda: ended.append(1)):
        assert tokens.cut_late() == inf
    late = Deadline(0.0, tokens, MODEL)
    assert (late.head_s, ended) == (inf, [1])
    with late.over(lambda: ended.append(2)):
        assert tokens.cut_late() == inf
    assert ended == [1]


@pytest.mark.parametrize("mode", CALLS)
def test_another_key_takes_over_a_call(mode, slow, pool) -> None:
    slow.pool("A", "B")
    slow.ways["A"] = slow.no_head
    slow.ways["B"] = lambda connection: slow.answer(connection, "B", stream=False)
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    assert slow.sent == ["A", "B"]


@pytest.mark.parametrize("mode", [*SOME_STREAMS, *SOME_CALLS])
def test_what_nothing_else_could_serve_has_no_deadline(mode, slow) -> None:
    """Another key that is exhausted is none."""
    slow.pool("A", {"key_id": "B", "rpm": 1})
    with keyrot_middleware.get_key_manager().lease(MODEL, exclude=("A",)):
        pass
    slow.ways["A"] = slow.late if mode in STREAMS else slow.late_head
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["late"]
    assert slow.sent == ["B", "A"]


@pytest.mark.parametrize("mode", [*SOME_STREAMS, *SOME_CALLS])
def test_one_call_of_a_minute_is_cut_off_or_one_in_twenty(mode, slow) -> None:
    """A slow model is not asked twice by all."""
    slow.pool("A", "B")
    slow.in_turn(slow.no_head, slow.late if mode in STREAMS else slow.late_head)
    slow.ways["B"] = lambda connection: slow.answer(connection, "B", stream=mode in STREAMS)
    assert RAW[mode](slow.server.url, "keyrot-pool", 2) == ["B", "late"]
    assert slow.sent[:3] == ["A", "B", "A"]
    assert slow.sent.count("B") == 1


@pytest.mark.parametrize("mode", SOME_STREAMS)
def test_the_slow_key_is_used_again_if_no_other_serves(mode, slow) -> None:
    """The second time it has all the time that it needs."""
    slow.pool("A", "B")
    slow.in_turn(slow.no_head, slow.late)
    slow.ways["B"] = lambda connection: connection.sendall(
        answer(INVALID, status="400 Bad Request")
    )
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["late"]
    assert slow.sent == ["A", "B", "A"]


@pytest.mark.parametrize("mode", SOME_STREAMS)
def test_the_next_model_takes_over(mode, slow, pool) -> None:
    """Its limits are its own, so the same key may serve it."""
    slow.pool("A", fallback_models=(f"{MODEL}>gemini-2.5-pro",))
    slow.in_turn(slow.no_head, lambda connection: slow.answer(connection, "pro"))
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["pro"]
    assert [lease.bucket for lease in pool.ledger.leases] == [MODEL, "gemini-2.5-pro"]


@pytest.mark.parametrize("mode", ["httpx-stream", "httpx-astream"])
def test_a_state_in_a_file_is_asked_for_other_keys(mode, slow, tmp_path) -> None:
    slow.pool("A", "B", state_url=f"sqlite:///{tmp_path}/state.sqlite3")
    slow.ways["A"] = slow.no_head
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]


def test_a_next_model_that_fails_says_why(slow) -> None:
    slow.pool("A", fallback_models=(f"{MODEL}>gemini-2.5-pro",))
    slow.in_turn(slow.no_head, lambda connection: connection.sendall(answer(b"{}")))
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        RAW["httpx-sync"](slow.server.url, "keyrot-pool", 1)


@pytest.mark.parametrize("mode", SOME_STREAMS)
def test_later_pauses_have_no_deadline(mode, slow) -> None:
    """The read timeout of the head is not that of the body."""

    def pause(connection: Any) -> None:
        connection.sendall(EVENTS + event("one "))
        slow.over.wait(3 * SOON)
        connection.sendall(event("two") + b"0\r\n\r\n")

    slow.pool("A", "B")
    slow.ways["A"] = slow.ways["B"] = pause
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["one two"]


def test_requests_has_a_deadline_where_servers_keep_connections_alone(slow) -> None:
    """The timeout of another one cannot be that of its body any more."""
    closing = EVENTS.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    def closed(connection: Any) -> None:
        connection.sendall(closing + event("one "))
        slow.over.wait(3 * SOON)
        connection.sendall(event("two") + b"0\r\n\r\n")

    slow.pool("A", "B")
    keeping.clear()
    for way, text in ((closed, "one two"), (None, "A"), (slow.no_head, "B")):
        slow.ways = {"A": way} if way is not None else {}
        assert RAW["requests-stream"](slow.server.url, "keyrot-pool", 1) == [text]


@pytest.mark.parametrize("mode", SOME_CALLS)
def test_a_whole_answer_may_take_its_time_once_it_has_begun(mode, slow) -> None:
    def pause(connection: Any) -> None:
        connection.sendall(WHOLE)
        slow.over.wait(3 * SOON)
        connection.sendall(chunk(said("whole")) + b"0\r\n\r\n")

    slow.pool("A", "B")
    slow.ways["A"] = slow.ways["B"] = pause
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["whole"]


def test_the_programs_own_timeout_raises_as_without_a_pool(slow) -> None:
    slow.pool("A", "B", first_token_s=NEVER)
    slow.ways["A"] = slow.no_head
    url, headers = f"{slow.server.url}{PATH}", {"x-goog-api-key": "keyrot-pool"}

    async def by_httpx() -> None:
        async with httpx.AsyncClient(timeout=SOON) as client:
            await client.post(url, json=BODY, headers=headers)

    async def by_aiohttp() -> None:
        timeout = aiohttp.ClientTimeout(SOON)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            await client.post(url, json=BODY, headers=headers)

    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=BODY, headers=headers, timeout=SOON)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(url, json=BODY, headers=headers, timeout=SOON)
    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(by_httpx())
    with pytest.raises(TimeoutError):
        asyncio.run(by_aiohttp())
    assert set(slow.sent) == {"A"}


def test_transports_without_connections_have_no_deadline(slow) -> None:
    """Mocks and transports of programs answer as they do."""
    slow.pool("A", "B")

    def reply(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["read"] == 7
        return httpx.Response(200, content=said("mock"))

    url, headers = f"{slow.server.url}{PATH}", {"x-goog-api-key": "keyrot-pool"}
    with httpx.Client(transport=httpx.MockTransport(reply), timeout=7) as client:
        assert http_modes.text_of(client.post(url, json=BODY, headers=headers).json()) == "mock"


def test_streams_of_connections_without_a_socket_are_read(slow) -> None:
    slow.pool("A", "B")

    def reply(request: httpx.Request) -> httpx.Response:
        body = httpx.ByteStream(b"data: " + said("mock") + b"\n\n")
        more: Any = {"network_stream": httpcore.MockStream([])}
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, stream=body, extensions=more)

    with httpx.Client(transport=httpx.MockTransport(reply)) as client:
        found = http_modes.send(httpx, client, slow.server.url, "keyrot-pool", stream=True)
    assert found == "mock"


def test_a_trace_of_the_programs_is_called_too(slow) -> None:
    seen: list[str] = []
    slow.pool("A", "B")
    slow.ways["A"] = lambda connection: slow.answer(connection, "A", stream=False)
    with httpx.Client() as client:
        request = client.build_request(
            "POST",
            f"{slow.server.url}{PATH}",
            json=BODY,
            headers={"x-goog-api-key": "keyrot-pool"},
            extensions={"trace": lambda name, _: seen.append(name)},
        )
        client.send(request)
    assert "http11.receive_response_headers.complete" in seen


# SDKs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_google_genai(mode, slow, connect) -> None:
    slow.pool("A", "B")
    slow.ways["A"] = slow.no_head
    slow.ways["B"] = lambda connection: slow.answer(connection, "B", stream="stream" in mode)
    client = connect(client_options={"base_url": slow.server.url})
    assert ask(mode, client) == "B"
    assert slow.sent == ["A", "B"]


@pytest.mark.parametrize("is_async", [False, True])
def test_openai_streams(is_async, slow) -> None:
    """Comments, such as those of OpenRouter, are no token."""
    slow.pool("A", "B")
    slow.ways["A"] = slow.keep_alives
    delta = {"index": 0, "delta": {"content": "B"}, "finish_reason": None}
    data = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    sent = json.dumps({**data, "choices": [delta]}).encode()
    body = chunk(b"data: " + sent + b"\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    slow.ways["B"] = lambda connection: connection.sendall(EVENTS + body)
    mode = "openai-astream" if is_async else "openai-stream"
    assert http_modes.OPENAI[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    assert slow.sent == ["A", "B"]


@pytest.mark.parametrize("is_async", [False, True])
def test_anthropic_streams(is_async, monkeypatch, tmp_path) -> None:
    """A `ping` is no token, and neither is the beginning of a message that never comes."""
    over = threading.Event()

    def talk(connection: Any, key: str) -> None:
        connection.sendall(EVENTS)
        if "FAKE-A" in key:
            while not over.wait(0.05):
                connection.sendall(chunk(b'event: ping\ndata: {"type": "ping"}\n\n'))
            return
        for one in MESSAGE:
            data = f"event: {one['type']}\ndata: {json.dumps(one)}\n\n"
            connection.sendall(chunk(data.encode()))
        connection.sendall(b"0\r\n\r\n")

    server = RawServer(talk)
    keys = [{"key_id": name, "provider": "anthropic"} for name in "AB"]
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(keys))
    for name in "AB":
        monkeypatch.setenv(f"KEYROT_KEY_{name}", f"sk-ant-FAKE-{name}" + "x" * 40)
    keyrot_middleware.install(
        keys_file=file,
        strategy="fill",
        first_token_s=SOON,
        allowed_hosts=(f"anthropic=http://{server.host}",),
    )
    options: dict[str, Any] = {"api_key": "keyrot-pool", "base_url": server.url}
    asked: dict[str, Any] = {
        "model": "claude-sonnet-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hello"}],
    }

    async def go() -> str:
        client = anthropic.AsyncAnthropic(**options)
        async with client, client.messages.stream(**asked) as stream:
            return "".join([text async for text in stream.text_stream])

    try:
        if is_async:
            text = asyncio.run(go())
        else:
            with anthropic.Anthropic(**options) as client, client.messages.stream(**asked) as found:
                text = "".join(found.text_stream)
    finally:
        over.set()
        server.close()
    assert text == "hi"


def test_calls_without_a_deadline_run_none_of_it(slow) -> None:
    """They look whether there is one, and no more."""
    slow.pool("A", "B", first_token_s=0)
    seen: set[str] = set()

    def note(frame: Any, *_: object) -> None:
        seen.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        RAW["httpx-stream"](slow.server.url, "keyrot-pool", 1)
    finally:
        sys.setprofile(None)
    assert "open_call" in seen
    assert not seen & {"_cut_off_s", "_use_slow_keys", "_send_timed", "_set_deadline", "begin"}


# Settings, and what is seen -----------------------------------------------------------------------


def test_a_workload_has_its_own_deadline(slow) -> None:
    """0 is none."""
    slow.pool("A", "B", workloads={"batch": {"first_token_s": 0}})
    slow.ways["A"] = slow.late
    with keyrot_middleware.workload("batch"):
        assert RAW["httpx-stream"](slow.server.url, "keyrot-pool", 1) == ["late"]
    slow.ways["A"] = slow.no_head
    with keyrot_middleware.workload("chat"):
        assert RAW["httpx-stream"](slow.server.url, "keyrot-pool", 1) == ["B"]


@pytest.mark.parametrize("mode", ["httpx-stream", "httpx-astream"])
def test_calls_inside_workload_have_a_deadline(mode, slow) -> None:
    """Of its own, whatever the settings say; the inner one counts."""
    slow.pool("A", "B", first_token_s=0)
    slow.ways["A"] = slow.no_event
    with keyrot_middleware.workload("chat", first_token_s=NEVER):
        with keyrot_middleware.workload("chat", first_token_s=SOON):
            assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
        slow.ways["A"] = slow.late
        assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["late"]
    wrong = keyrot_middleware.workload("chat", first_token_s="soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='found "soon"; allowed: 0 or more'), wrong:
        pass


@pytest.mark.parametrize("mode", ["httpx-stream", "httpx-astream"])
def test_spans_and_activity_name_the_attempt(mode, slow) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    found = slow.pool("A", "B")
    found.observers = (TracingObserver("test", provider),)
    slow.ways["A"] = slow.no_head
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    (record,) = found.activity.read().view((), 0.0).calls
    assert record.outcome == "ok"
    assert [one.failure for one in record.attempts] == ["slow_first_token", None]
    attempts = [span for span in spans.get_finished_spans() if "attempt" in span.name]
    failures = [(span.attributes or {}).get("keyrot.failure.class") for span in attempts]
    assert failures == ["slow_first_token", None]
