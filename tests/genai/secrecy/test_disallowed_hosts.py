"""Ways in which a pool's key could be sent to a host that is not allowed, each of them closed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from google import genai
from google.genai import live
from google.genai._api_client import BaseApiClient
from support.modes import MODEL, MODES, ask

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

KEY = "x-goog-api-key"
PATH = f"models/{MODEL}:generateContent"
BODY = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


@pytest.fixture
def elsewhere(clock):
    """Serve at another address, which is not allowed."""
    with FakeGemini(clock) as server:
        yield server


def ours(server, gemini) -> list[str]:
    """List the pool's key values that a server has seen in its requests' headers."""
    value = gemini.key("A").value
    return [value for request in server.log if value in repr(request.headers)]


@pytest.mark.parametrize("spelling", ["base_url", "baseUrl"])
def test_a_dict_of_options_may_be_spelt_googles_way(
    spelling, gemini, elsewhere, pool, connect
) -> None:
    """The host is the one that the SDK reads from it, in either spelling."""
    pool("A")
    own = elsewhere.add_key("own").value
    options = {spelling: elsewhere.url}
    for client in (connect(), connect(own)):
        with contextlib.suppress(genai.errors.ClientError):
            client._api_client.request("post", PATH, dict(BODY), options)
    assert [request.header_values(KEY) for request in elsewhere.log] == [[], [own]]
    assert (gemini.count(), ours(elsewhere, gemini)) == (0, [])


def test_a_client_of_a_foreign_host_spelt_googles_way_gets_no_key(elsewhere, pool) -> None:
    """The SDK's own error reports the missing key, for its api client as well."""
    pool("A")
    for make in (genai.Client, BaseApiClient):
        with pytest.raises(ValueError, match="API key"):
            make(http_options={"baseUrl": elsewhere.url})


@pytest.mark.parametrize(
    ("reply", "codes", "sends"),
    [
        (Reply.OVERLOADED, [429, 503], 3),
        (Reply.QUOTA_MINUTE, [429, 503], 1),
        (Reply.QUOTA_MINUTE, [429], 1),
    ],
)
def test_retries_may_be_spelt_googles_way(reply, codes, sends, gemini, pool, connect) -> None:
    """The SDK retries as configured, except after an exhausted quota."""
    pool("A", max_wait_s=0, max_retries=0)
    gemini.always("A", reply)
    retry = {"attempts": 3, "httpStatusCodes": codes, "initialDelay": 0.01}
    with pytest.raises(genai.errors.APIError):
        connect()._api_client.request("post", PATH, dict(BODY), {"retryOptions": retry})
    assert gemini.sent("A") == sends


@pytest.mark.parametrize("mode", MODES)
def test_a_request_that_is_built_for_another_host_has_no_key(
    mode, gemini, elsewhere, pool, connect, monkeypatch
) -> None:
    """A redirection below us sends no key of the pool, and penalizes none."""
    build = BaseApiClient._build_request

    def astray(*args: Any, **kwargs: Any) -> Any:
        request = build(*args, **kwargs)
        request.url = request.url.replace(gemini.url, elsewhere.url)
        return request

    monkeypatch.setattr(BaseApiClient, "_build_request", astray)
    pool("A")
    with pytest.raises(genai.errors.ClientError):
        ask(mode, connect())
    assert [request.header_values(KEY) for request in elsewhere.log] == [[]]
    assert gemini.count() == 0
    status = keyrot_middleware.status()["keys"]["A"]
    assert (status["active"], status["in_cooldown"]) == (True, False)
    keyrot_middleware.uninstall()


@pytest.fixture
def connections(monkeypatch) -> list[tuple[str, Any]]:
    """List the addresses and headers that Live would connect with."""
    seen: list[tuple[str, Any]] = []

    @contextlib.asynccontextmanager
    async def connect(uri: str, additional_headers: Any = None, **_: Any) -> Any:
        seen.append((uri, dict(additional_headers)))
        raise ConnectionError("enough")
        yield

    monkeypatch.setattr(live, "ws_connect", connect)
    return seen


def session(client: Any, **options: Any) -> None:
    """Open a Live session, up to the connection."""

    async def go() -> None:
        config = {"http_options": options} if options else None
        async with client.aio.live.connect(model=MODEL, config=config):
            pass

    asyncio.run(go())


def test_a_pool_key_is_not_sent_by_a_live_session_to_a_foreign_host(
    gemini, pool, connect, connections
) -> None:
    """A session with a host of its own is refused before it connects, with a clear error.

    SDK 1.75 takes no options for a session, and raises an error itself.
    """
    pool("A")
    with pytest.raises(ValueError, match=r"KEYROT_ALLOWED_HOSTS|http_options"):
        session(connect(), base_url="https://proxy.example.com")
    assert connections == []


def test_other_live_sessions_are_unchanged(gemini, pool, connect, connections) -> None:
    """Live connects with the pool's key at its host, and with a key of its own anywhere."""
    pool("A")
    for client in (connect(), connect("FAKE-own", base_url="https://proxy.example.com")):
        with pytest.raises(ConnectionError):
            session(client)
    assert [headers[KEY] for _, headers in connections] == [gemini.key("A").value, "FAKE-own"]
