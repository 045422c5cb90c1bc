"""Calls rotate with every HTTP client of the SDK: injected, httpx, httpx2."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
from google.genai import _api_client
from support.interactions import SDK
from support.modes import MODES, STREAMS, ask, ask_async, http_library, run

from keyrot_middleware.testing import Reply

CHOOSES = "GOOGLE_GENAI_HTTP_CLIENT" in inspect.getsource(_api_client)
"""Whether this SDK reads the variable (from 2.x on)."""


def library(name: str) -> Any:
    """Return an HTTP library that is installed and supported by this SDK."""
    if name == "httpx2" and not CHOOSES:
        pytest.skip("this SDK knows httpx only")
    return pytest.importorskip(name)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", MODES)
def test_injected_clients(mode, name, gemini, pool, connect) -> None:
    """`httpx_client` and `httpx_async_client` of the program's own, with its own event hooks."""
    http, seen = library(name), []

    async def note(request: Any) -> None:
        seen.append(str(request.url))

    clients = {
        "httpx_client": http.Client(event_hooks={"request": [lambda r: seen.append(str(r.url))]}),
        "httpx_async_client": http.AsyncClient(event_hooks={"request": [note]}),
    }
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)
    assert twice(mode, connect(**clients)) == ["ok from B"] * 2
    assert [request.key for request in gemini.log] == ["A", "B", "B"]
    assert len(seen) == 2, "the program's client has sent them"


def over_aiohttp(http: Any, aiohttp: Any) -> Any:
    """Return a transport of httpx that sends by aiohttp, as that of litellm does."""

    class OverAiohttp(http.AsyncBaseTransport):  # type: ignore[misc]  # a class of the library's
        session: Any = None

        async def handle_async_request(self, request: Any) -> Any:
            self.session = self.session or aiohttp.ClientSession()
            sent = {"headers": dict(request.headers), "data": request.content}
            response = await self.session.request(request.method, str(request.url), **sent)
            content = b"".join([data async for data in response.content.iter_any()])
            headers = {"Content-Type": response.headers["Content-Type"]}
            return http.Response(response.status, headers=headers, content=content)

        async def aclose(self) -> None:
            await self.session.close()

    return OverAiohttp()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("async")])
def test_an_injected_client_over_aiohttp(mode, gemini, pool, connect) -> None:
    """Both libraries are patched; one layer writes the key and reads what is said of it."""
    http = library("httpx")
    transport = over_aiohttp(http, pytest.importorskip("aiohttp"))
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.QUOTA_DAY)
    gemini.always("B", Reply.KEY_INVALID)
    client = connect(httpx_async_client=http.AsyncClient(transport=transport))
    assert twice(mode, client) == ["ok from C"] * 2
    assert [request.key for request in gemini.log] == ["A", "B", "C", "C"]


@pytest.mark.parametrize("choice", ["httpx", "httpx2", "auto"])
@pytest.mark.parametrize("mode", MODES)
def test_the_variable_that_chooses_the_client(
    mode, choice, gemini, pool, connect, monkeypatch
) -> None:
    """`GOOGLE_GENAI_HTTP_CLIENT`, with the client that it names, sync and async.

    Without it an SDK of 3.x sends by httpx2, where httpx is installed too.
    """
    if not CHOOSES:
        pytest.skip("this SDK has no such variable")
    if choice != "auto":
        library(choice)
    monkeypatch.setenv("GOOGLE_GENAI_HTTP_CLIENT", choice)
    monkeypatch.setattr(_api_client, "has_aiohttp", False)
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.KEY_INVALID)
    client = connect()
    if choice != "auto" or SDK >= (3, 0):
        chosen = library("httpx2" if choice == "auto" else choice)
        assert issubclass(type(client._api_client._httpx_client), chosen.Client)
    assert twice(mode, client) == ["ok from B"] * 2
    assert [request.key for request in gemini.log] == ["A", "B", "B"]


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", STREAMS)
def test_a_failed_first_chunk_over_one_connection(mode, name, gemini, pool, connect) -> None:
    """An injected client with a single connection has it back before the next key is tried."""
    http = library(name)
    one = {"limits": http.Limits(max_connections=1), "timeout": 5.0}
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.EXHAUSTED.in_stream(0))
    client = connect(httpx_client=http.Client(**one), httpx_async_client=http.AsyncClient(**one))
    assert twice(mode, client) == ["ok from B"] * 2


def twice(mode: str, client: Any) -> list[str]:
    """Call twice in one loop, and close the program's own clients in it."""

    async def two_calls() -> list[str]:
        texts = [await ask_async(mode, client) for _ in range(2)]
        await client._api_client._async_httpx_client.aclose()
        return texts

    texts = (
        run(client, two_calls) if mode.startswith("async") else [ask(mode, client) for _ in "12"]
    )
    client._api_client._httpx_client.close()
    return texts


MOCKED = """
import json
from unittest.mock import patch

import keyrot_middleware
import {http} as http

keyrot_middleware.install(keys="FAKE-a")
content = {{"role": "model", "parts": [{{"text": "mocked"}}]}}
text = json.dumps({{"candidates": [{{"content": content}}]}})
with patch.object(http.Client, "send", return_value=http.Response(200, text=text)) as send:
    from google import genai

    call = genai.Client().models.generate_content(model="gemini-flash-latest", contents="hello")
print(call.text, send.call_count)
"""


def test_a_mock_of_send_in_a_program_s_tests() -> None:
    """A mock that is there before the SDK gets no client, and its response has no request."""
    done = subprocess.run(
        [sys.executable, "-c", MOCKED.format(http=http_library().__name__)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("mocked 1\n", "")
