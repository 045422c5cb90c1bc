"""Redirects: a key of the pool is not sent to another origin, with any surface of the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google import genai
from support.modes import MODES, ask, http_library, run
from support.redirects import Gateway, Server, held

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

CODES = (301, 302, 303, 307, 308)


def untouched() -> bool:
    """Return whether no key was penalized."""
    keys = keyrot_middleware.status()["keys"].values()
    return all(key["active"] and not key["in_cooldown"] for key in keys)


@pytest.mark.parametrize(
    ("mode", "backend"),
    [*((mode, "default") for mode in MODES), ("async", "httpx"), ("async_stream", "httpx")],
)
@pytest.mark.parametrize("code", CODES)
def test_a_call_follows_no_redirect_to_another_origin(
    mode: str,
    code: int,
    backend: str,
    redirect: Callable[[int, str], Gateway],
    elsewhere: Server,
) -> None:
    """Nothing reaches the other host, the error explains it, and no key is penalized."""
    gateway = redirect(code, f"{elsewhere.url}/x")
    more = {"async_client_args": {"transport": transport()}} if backend == "httpx" else {}
    with pytest.raises(genai.errors.APIError, match="redirects this request") as caught:
        ask(mode, gateway.client(**more))
    assert (caught.value.code, elsewhere.host in str(caught.value)) == (code, True)
    assert (len(gateway.server.seen), elsewhere.seen) == (1, [])
    assert untouched()


def transport() -> Any:
    """Return a transport of the SDK's library, which keeps it from using aiohttp."""
    return http_library().AsyncHTTPTransport()


@pytest.mark.parametrize("mode", MODES)
def test_an_allowed_host_is_another_origin_too(
    mode: str, redirect: Callable[[int, str], Gateway], elsewhere: Server
) -> None:
    """The redirect is the server's choice; the setting is about the program's."""
    client = redirect(307, f"{elsewhere.url}/x").client(hosts=[elsewhere.host])
    with pytest.raises(genai.errors.APIError, match="redirects this request"):
        ask(mode, client)
    assert elsewhere.seen == []


NEW = "/v1beta/models/new"


@pytest.mark.parametrize(
    ("mode", "there"), [("sync", "relative"), ("sync", "absolute"), ("async", "relative")]
)
@pytest.mark.parametrize("code", CODES)
def test_redirects_within_one_origin_are_followed(
    mode: str, code: int, there: str, gemini: FakeGemini, redirect: Callable[[int, str], Gateway]
) -> None:
    """As the SDK does: the key is sent again, and a POST stays one where the code requires it."""
    gateway = redirect(code, NEW)
    server = gateway.server
    if there == "absolute":
        server.headers["location"] = f"{server.url}{NEW}"
    server.bodies[NEW] = b'{"candidates": [{"content": {"parts": [{"text": "moved"}]}}]}'
    assert ask(mode, gateway.client()) == "moved"
    assert [method for method, _, _ in server.seen] == ["POST", "POST" if code > 303 else "GET"]
    assert all(gemini.key("A").value in headers for _, _, headers in server.seen)


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_redirects_for_ever(
    mode: str, redirect: Callable[[int, str], Gateway]
) -> None:
    """It ends with the error of the SDK's HTTP library."""
    with pytest.raises(Exception, match=r"redirects|TooManyRedirects|/again"):
        ask(mode, redirect(307, "/v1beta/models/again").client())
    assert untouched()


def other_calls() -> dict[str, Callable[[Any], Any]]:
    """Return calls that do not use the four methods, or not as a call of a model."""

    def aio(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda client: run(client, lambda: work(client))

    def create(client: Any) -> Any:
        return client.interactions.create(model="gemini-2.5-flash", input="hello")

    return {
        "files.get": lambda client: client.files.get(name="files/abc"),
        "files.download": lambda client: client.files.download(file="files/abc"),
        "aio.files.get": aio(lambda client: client.aio.files.get(name="files/abc")),
        "aio.files.download": aio(lambda client: client.aio.files.download(file="files/abc")),
        "interactions": create,
        "aio.interactions": aio(lambda client: create(client.aio)),
    }


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("call", other_calls())
def test_other_calls_follow_no_redirect_to_another_origin(
    call: str,
    gemini: FakeGemini,
    redirect: Callable[[int, str], Gateway],
    elsewhere: Server,
) -> None:
    """A client without a key of its own sends the pool's, which stays there."""
    gateway = redirect(307, f"{elsewhere.url}/x")
    client = gateway.client()
    with pytest.raises(Exception) as caught:
        other_calls()[call](client)
    assert "307" in str(caught.value)
    assert held(gateway.server, gemini) == [gemini.key("A").value]
    assert elsewhere.seen == []
    assert untouched()


def test_a_download_is_redirected_within_its_origin(
    redirect: Callable[[int, str], Gateway],
) -> None:
    """As at Google: files/x:download is redirected to another path of the same host."""
    gateway = redirect(302, "/download/abc")
    gateway.server.bodies["/download/abc"] = b"content"
    client = gateway.client()
    assert client.files.download(file="files/abc") == b"content"
    found = run(client, lambda: client.aio.files.download(file="files/abc"))
    assert found == b"content"


@pytest.mark.parametrize("mode", MODES)
def test_a_client_with_a_key_of_its_own_that_bypasses_the_pool_is_left_alone(
    mode: str, gemini: FakeGemini, redirect: Callable[[int, str], Gateway], elsewhere: Server
) -> None:
    """Its key is its own, and may follow a redirect."""
    client = redirect(307, f"{elsewhere.url}/x").client("FAKE-own")
    with keyrot_middleware.bypass(), pytest.raises(genai.errors.ClientError, match="not valid"):
        ask(mode, client)
    assert len(elsewhere.seen) == 1
    assert held(elsewhere, gemini) == []


def test_live_follows_no_redirect_to_another_origin(
    gemini: FakeGemini,
    redirect: Callable[[int, str], Gateway],
    elsewhere: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handshake with the other host is not begun."""
    from google.genai import _api_client

    gateway = redirect(307, f"ws://{elsewhere.host}/x")
    base = _api_client.BaseApiClient._websocket_base_url
    monkeypatch.setattr(
        _api_client.BaseApiClient,
        "_websocket_base_url",
        lambda *args: base(*args).replace("wss:", "ws:"),
    )

    async def session() -> None:
        client = gateway.client()
        client._api_client._websocket_ssl_ctx.clear()
        async with client.aio.live.connect(model="gemini-2.5-flash"):
            pass

    with pytest.raises(keyrot_middleware.ConfigError, match="redirects this session"):
        asyncio.run(session())
    assert held(gateway.server, gemini) == [gemini.key("A").value]
    assert elsewhere.seen == []
