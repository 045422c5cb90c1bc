"""A gateway of this machine in clear, and a client that sends to it by a proxy: no key goes there.

`test_requests_of_programs.py` has the proxies of the environment that are there at `install()`.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
import requests
from google import genai
from support.http_modes import BODY, HEADERS, MODEL, PATH
from support.json_server import JsonServer, Response

import keyrot_middleware
from keyrot_middleware.clients import transport

aiohttp: Any = pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.promise(number=1),
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),
]

OWN = "FAKE-own-key"
ANSWER = {"candidates": [{"content": {"parts": [{"text": "by the proxy"}]}}]}
OPTIONS: dict[str, Any] = {"json": BODY, "headers": HEADERS}
Send = Callable[[str, Any], Any]
"""Sends a call to a base address by the proxy of an address; by none for None."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[JsonServer]:
    """Serve as a proxy does, in clear; no variable of the environment names it."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with JsonServer(lambda _: Response(200, ANSWER)) as server:
        yield server


def _sync(library: Any, make: Callable[[Any], dict[str, Any]]) -> Send:
    def send(url: str, proxy: Any) -> Any:
        with library.Client(**make(proxy)) as client:
            return client.post(url + PATH, **OPTIONS)

    return send


def _async(library: Any) -> Send:
    async def send(url: str, proxy: Any) -> Any:
        async with library.AsyncClient(proxy=proxy) as client:
            return await client.post(url + PATH, **OPTIONS)

    return lambda *args: asyncio.run(send(*args))


class _Wrapping(httpx.BaseTransport):
    """A transport of a program, as those that repeat or cache are."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def _requests(*, of_session: bool) -> Send:
    def send(url: str, proxy: Any) -> Any:
        with requests.Session() as session:
            proxies = {"http": proxy} if proxy else {}
            session.proxies.update(proxies if of_session else {})
            return session.post(url + PATH, **OPTIONS, proxies={} if of_session else proxies)

    return send


def _aiohttp(*, of_session: bool) -> Send:
    async def send(url: str, proxy: Any) -> Any:
        given = {"proxy": proxy}
        async with (
            aiohttp.ClientSession(**(given if of_session else {})) as session,
            session.post(url + PATH, **OPTIONS, **({} if of_session else given)) as response,
        ):
            return await response.read()

    return lambda *args: asyncio.run(send(*args))


def _genai(url: str, proxy: Any, key: str | None = None, name: str = "client_args") -> Any:
    options: Any = {"base_url": url, name: {"proxy": proxy}}
    with genai.Client(api_key=key, http_options=options) as client:
        if name == "client_args":
            return client.models.generate_content(model=MODEL, contents="x").text

        async def send() -> Any:
            async with client.aio as aio:
                return (await aio.models.generate_content(model=MODEL, contents="x")).text

        return asyncio.run(send())


SENDS: dict[str, Send] = {
    "httpx": _sync(httpx, lambda proxy: {"proxy": proxy}),
    "httpx2": _sync(httpx2, lambda proxy: {"proxy": proxy}),
    "httpx-async": _async(httpx),
    "httpx2-async": _async(httpx2),
    "httpx-mounts": _sync(
        httpx, lambda url: {"mounts": {"all://": httpx.HTTPTransport(proxy=url)}}
    ),
    "httpx-wrapped": _sync(
        httpx, lambda proxy: {"transport": _Wrapping(_Wrapping(httpx.HTTPTransport(proxy=proxy)))}
    ),
    "httpx-ours": _sync(
        httpx, lambda url: {"transport": transport(httpx.HTTPTransport(proxy=url))}
    ),
    "requests": _requests(of_session=False),
    "requests-session": _requests(of_session=True),
    "aiohttp": _aiohttp(of_session=False),
    "aiohttp-session": _aiohttp(of_session=True),
    "google-genai": _genai,
    "google-genai-async": lambda url, proxy: _genai(url, proxy, name="async_client_args"),
}
sends = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)


@sends
def test_a_clients_own_proxy_gets_no_key_in_clear(send, gemini, pool, proxy) -> None:
    """What it gets is what it gets without a pool, and the program is warned; without it, a key."""
    value = pool.key("A")
    pool("A", allowed_hosts=[gemini.host])
    with pytest.warns(keyrot_middleware.KeyrotWarning, match="a proxy would get"):
        send(gemini.url, proxy.url)
    [sent] = proxy.requests
    assert sent.headers["x-goog-api-key"] == "keyrot-pool"
    assert value not in repr(sent)
    send(gemini.url, None)
    assert (len(proxy.requests), gemini.sent("A")) == (1, 1)


@sends
@pytest.mark.parametrize("root", ["", "/odd"])
def test_a_home_key_stays_here_too(send, root, gemini, pool, proxy) -> None:
    """It takes a placeholder's place inside `bypass()`, below any path."""
    value = pool.key("A")
    pool("A", allowed_hosts=[gemini.host])
    with keyrot_middleware.bypass(), pytest.warns(keyrot_middleware.KeyrotWarning):
        send(gemini.url + root, proxy.url)
    assert len(proxy.requests) == 1
    assert value not in repr(proxy.requests)


@pytest.mark.parametrize("name", ["client_args", "async_client_args"])
def test_a_clients_own_key_goes_where_its_program_sends_it(name, gemini, pool, proxy) -> None:
    """google-genai holds the placeholder in its place while it sends; the proxy gets the key."""
    pool("A", allowed_hosts=[gemini.host])
    with pytest.warns(keyrot_middleware.KeyrotWarning, match="a proxy would get"):
        assert _genai(gemini.url, proxy.url, OWN, name) == "by the proxy"
    assert [one.headers["x-goog-api-key"] for one in proxy.requests] == [OWN]


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda one: one.__name__)
def test_a_proxy_that_the_environment_names_late_gets_none(
    library, gemini, pool, proxy, monkeypatch
) -> None:
    """Programs read a `.env` of their own behind `install()`."""
    pool("A", allowed_hosts=[gemini.host])
    monkeypatch.setenv("http_proxy", proxy.url)
    with pytest.warns(keyrot_middleware.KeyrotWarning, match="a proxy would get"):
        library.post(gemini.url + PATH, **OPTIONS)
    assert [one.headers["x-goog-api-key"] for one in proxy.requests] == ["keyrot-pool"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert library.post(gemini.url + PATH, **OPTIONS).status_code == 200
    assert gemini.sent("A") == 1


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda one: one.__name__)
def test_a_transport_that_is_not_known_counts_as_a_proxy(library, gemini, pool, proxy) -> None:
    """One of a version of httpx that keeps its connections elsewhere."""

    class Newer(library.HTTPTransport):  # type: ignore[misc]  # the class is a parameter
        def __init__(self) -> None:
            self._send = library.HTTPTransport().handle_request

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._send.__self__.close()

        def handle_request(self, request: Any) -> Any:
            return self._send(request)

    pool("A", allowed_hosts=[gemini.host])
    with pytest.warns(keyrot_middleware.KeyrotWarning, match="a proxy would get"):
        _sync(library, lambda _: {"transport": Newer()})(gemini.url, None)
    assert gemini.sent("A") == 0


def test_a_transport_that_sends_nothing_is_no_proxy(gemini, pool) -> None:
    """A MockTransport gets the key, as in tests of programs."""
    value, seen = pool.key("A"), list[str]()
    pool("A", allowed_hosts=[gemini.host])

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-goog-api-key"])
        return httpx.Response(200, json=ANSWER)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        client.post(gemini.url + PATH, **OPTIONS)
    assert seen == [value]
