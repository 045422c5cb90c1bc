"""The main job: a call that an available key can serve is served by it, with every HTTP client."""

import inspect
from typing import Any

import pytest
from google.genai import _api_client
from support.interactions import SDK
from support.modes import MODES, ask, ask_async, calls, http_library, run, spread

from keyrot_middleware.testing import Reply


def one_exhausted_one_invalid(gemini, pool, **settings) -> None:
    """Let A always answer 429, B 400, and C succeed."""
    pool("A", "B", "C", **settings)
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)


def sent(gemini) -> tuple[int, int, int]:
    return gemini.sent("A"), gemini.sent("B"), gemini.sent("C")


@pytest.mark.parametrize(("strategy", "mode"), spread(["spread", "fill", "sticky"], MODES))
def test_sixty_calls_meet_each_bad_key_once(mode, strategy, gemini, pool, connect, clock) -> None:
    """An exhausted and an invalid key cost one request each, none of 60 calls fails or waits."""
    one_exhausted_one_invalid(gemini, pool, strategy=strategy)
    began = clock.time()
    assert set(call_sixty_times(mode, connect(), strategy)) == {"ok from C"}
    assert sent(gemini) == (1, 1, 60)
    assert clock.time() == began


def call_sixty_times(mode, client, strategy) -> list:
    """Make 60 calls; under `sticky` in 60 conversations, or they might never use A and B."""
    if strategy != "sticky":
        return calls(mode, client, 60)
    return [calls(mode, client, 1, contents=f"conversation {n}")[0] for n in range(60)]


@pytest.mark.parametrize("mode", MODES)
def test_sixty_calls_from_32_callers_at_once(mode, gemini, pool, connect, clock) -> None:
    """No caller uses a bad key after one has failed with it, except those already in flight."""
    one_exhausted_one_invalid(gemini, pool)
    gemini.delay(0.01)
    began = clock.time()
    texts = calls(mode, connect(), 60, at_once=32)
    assert texts == ["ok from C"] * 60
    a, b, c = sent(gemini)
    assert 1 <= a <= 32
    assert 1 <= b <= 32
    assert c == 60
    assert clock.time() == began


CHOOSES = "GOOGLE_GENAI_HTTP_CLIENT" in inspect.getsource(_api_client)
"""Whether this SDK reads the variable (from 2.x on)."""


def library(name: str) -> Any:
    if name == "httpx2" and not CHOOSES:
        pytest.skip("this SDK knows httpx only")
    return pytest.importorskip(name)


@pytest.mark.parametrize(("name", "mode"), spread(["httpx", "httpx2"], MODES))
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


@pytest.mark.parametrize(("choice", "mode"), spread(["httpx", "httpx2", "auto"], MODES))
def test_the_variable_of_the_http_client(mode, choice, gemini, pool, connect, monkeypatch) -> None:
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


def test_a_mock_of_send_in_a_programs_tests(pool, connect, monkeypatch) -> None:
    """Its response has no request."""
    http = http_library()
    text = '{"candidates": [{"content": {"role": "model", "parts": [{"text": "mocked"}]}}]}'
    monkeypatch.setattr(http.Client, "send", lambda *_, **__: http.Response(200, text=text))
    pool("A")
    assert ask("sync", connect()) == "mocked"


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
