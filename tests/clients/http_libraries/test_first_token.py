"""An attempt that shows nothing until its deadline is cut off, and another key or model serves."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.http_modes import MODEL, RAW
from support.modes import MODES, ask
from support.raw_server import RawServer, chunk

import keyrot_middleware
from keyrot_middleware.telemetry.tracing import TracingObserver

SOON, LATE, NEVER = 1.0, 2.0, 60.0
"""A deadline, which a good server keeps on a busy machine too; an answer after it; none at all."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS, WHOLE = HEAD % b"text/event-stream", HEAD % b"application/json"
PATH = f"/v1beta/models/{MODEL}:generateContent"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
MODES_WITH_DEADLINE = [mode for mode in RAW if not mode.startswith("requests")]
STREAMS = [mode for mode in MODES_WITH_DEADLINE if "stream" in mode]
CALLS = [mode for mode in MODES_WITH_DEADLINE if "stream" not in mode]


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
        self.over.wait(LATE)
        self.answer(connection, "late", stream=False)

    def late(self, connection: Any) -> None:
        """Answer long behind the deadline."""
        connection.sendall(EVENTS)
        self.over.wait(LATE)
        connection.sendall(event("late") + b"0\r\n\r\n")


@pytest.fixture
def slow(pool) -> Iterator[Slow]:
    threads = set(threading.enumerate())
    found = Slow(pool)
    yield found
    found.over.set()
    keyrot_middleware.uninstall()
    found.server.close()
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


SOME_STREAMS = ["httpx-stream", "httpx2-astream", "aiohttp-astream"]


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        (mode, way)
        for mode in STREAMS
        for way in ("no_head", "no_event", "keep_alives")
        if way == "no_head" or mode.endswith("-astream")
    ],
)
def test_another_key_takes_over_a_stream(mode, way, slow, pool) -> None:
    """Whatever the server has sent that is no event; nothing but the second stream is read."""
    slow.pool("A", "B")
    slow.ways["A"] = getattr(slow, way)
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    assert slow.sent == ["A", "B"]
    assert [one.value for one in pool.ledger.kinds] == ["failure", "success"]
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("httpx-stream", "late"),
        ("httpx2-stream", "late"),
        ("requests-stream", "late"),
        ("requests-sync", "late_head"),
    ],
)
def test_only_the_head_has_a_deadline_in_a_thread_and_nothing_with_requests(
    mode, way, slow
) -> None:
    """Nothing else could end it without a hand on a connection that others may use by then."""
    slow.pool("A", "B")
    slow.ways["A"] = getattr(slow, way)
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["late"]
    assert slow.sent == ["A"]


@pytest.mark.parametrize("mode", ["httpx-stream", "httpx-astream"])
def test_where_connections_have_several_calls_there_is_no_deadline(mode, slow) -> None:
    """The end of one call could end the others on its connection of HTTP/2."""
    slow.pool("A", "B")

    def reply(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=said("2"), extensions={"http_version": b"HTTP/2"})

    url, headers = f"{slow.server.url}{PATH}", {"x-goog-api-key": "keyrot-pool"}
    with httpx.Client(transport=httpx.MockTransport(reply)) as client:
        client.post(url, json=BODY, headers=headers)
    slow.ways["A"] = slow.late
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["late"]


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


def test_what_creates_has_no_deadline(slow) -> None:
    """A batch whose answer is slow may have begun: sent again, it would be made and paid twice."""
    slow.pool("A", "B")
    slow.ways["A"] = slow.late_head
    url = f"{slow.server.url}{PATH}".replace(":generate", ":batchGenerate")
    given: dict[str, Any] = {"json": {"batch": {}}, "headers": {"x-goog-api-key": "keyrot-pool"}}
    assert "late" in httpx.post(url, **given, timeout=NEVER).text
    assert slow.sent == ["A"]


@pytest.mark.parametrize("mode", CALLS)
def test_another_key_takes_over_a_call(mode, slow, pool) -> None:
    slow.pool("A", "B")
    slow.ways["A"] = slow.no_head
    slow.ways["B"] = lambda connection: slow.answer(connection, "B", stream=False)
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]
    assert slow.sent == ["A", "B"]


@pytest.mark.parametrize("mode", SOME_STREAMS)
def test_the_next_model_takes_over(mode, slow, pool) -> None:
    """Its limits are its own, so the same key may serve it."""
    slow.pool("A", fallback_models=(f"{MODEL}>gemini-3.1-pro-preview",))
    slow.in_turn(slow.no_head, lambda connection: slow.answer(connection, "pro"))
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["pro"]
    assert [lease.bucket for lease in pool.ledger.leases] == [MODEL, "gemini-3.1-pro-preview"]


@pytest.mark.parametrize("mode", ["httpx-stream", "httpx-astream"])
def test_a_state_in_a_file_is_asked_for_other_keys(mode, slow, tmp_path) -> None:
    slow.pool("A", "B", state_url=f"sqlite:///{tmp_path}/state.sqlite3")
    slow.ways["A"] = slow.no_head
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["B"]


@pytest.mark.parametrize("mode", SOME_STREAMS)
def test_later_pauses_have_no_deadline(mode, slow) -> None:
    """The read timeout of the head is not that of the body."""

    def pause(connection: Any) -> None:
        connection.sendall(EVENTS + event("one "))
        slow.over.wait(LATE)
        connection.sendall(event("two") + b"0\r\n\r\n")

    slow.pool("A", "B")
    slow.ways["A"] = slow.ways["B"] = pause
    assert RAW[mode](slow.server.url, "keyrot-pool", 1) == ["one two"]


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


# SDKs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_google_genai(mode, slow, connect) -> None:
    slow.pool("A", "B")
    slow.ways["A"] = slow.no_head
    slow.ways["B"] = lambda connection: slow.answer(connection, "B", stream="stream" in mode)
    client = connect(client_options={"base_url": slow.server.url})
    assert ask(mode, client) == "B"
    assert slow.sent == ["A", "B"]


# Settings, and what is seen -----------------------------------------------------------------------


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
