"""A key of the pool is sent to allowed hosts only, over TLS or to loopback."""

import asyncio
import contextlib
import copy
import socket
from collections.abc import Callable
from typing import Any

import pytest
from google import genai
from google.auth.credentials import Credentials
from google.genai import live, types
from google.genai._api_client import BaseApiClient
from support.modes import MODEL, MODES, ask, calls, run, spread

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = pytest.mark.promise(number=1)

KEY = "x-goog-api-key"


@pytest.fixture
def foreign(clock):
    """Serve at another address, which is not allowed."""
    with FakeGemini(clock) as server:
        yield server


def pool_values(server, gemini) -> list[str]:
    """List the pool's key values that a server has seen anywhere in its requests."""
    ours = [gemini.key(label).value for label in "AB"]
    seen = repr([(request.headers, request.path, request.body) for request in server.log])
    return [value for value in ours if value in seen]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_of_a_foreign_host_is_untouched(mode, gemini, foreign, pool, connect) -> None:
    """Its own key is sent to its own host, once, and the pool records nothing."""
    pool("A", "B")
    client = connect(foreign.add_key("own").value, client_options=foreign.http_options)
    assert ask(mode, client) == "ok from own"
    foreign.script("own", Reply.QUOTA_MINUTE)
    with pytest.raises(genai.errors.ClientError) as caught:
        ask(mode, client)
    assert not hasattr(caught.value, "__notes__")
    assert [request.key for request in foreign.log] == ["own", "own"]
    assert (gemini.count(), pool_values(foreign, gemini)) == (0, [])


@pytest.mark.parametrize(("mode", "form"), spread(MODES, [dict, types.HttpOptions]))
def test_a_request_elsewhere_is_untouched(mode, form, gemini, foreign, pool, connect) -> None:
    """The effective host counts: the client's own key goes there, and none if it has none."""
    pool("A", "B")
    own = foreign.add_key("own").value
    options = form(base_url=foreign.url, headers={"x-custom": "kept"})
    assert ask(mode, connect(own), config={"http_options": options}) == "ok from own"
    assert isinstance(calls(mode, connect(), 1, config={"http_options": options})[0], Exception)
    assert [request.header_values(KEY) for request in foreign.log] == [[own], []]
    assert [request.header_values("x-custom") for request in foreign.log] == [["kept"]] * 2
    assert (gemini.count(), pool_values(foreign, gemini)) == (0, [])
    headers = {KEY.title(): own}
    options = form(base_url=foreign.url, headers=headers)
    assert ask(mode, connect(), config={"http_options": options}) == "ok from own"


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    **{mode: lambda client, config, mode=mode: ask(mode, client, config=config) for mode in MODES},
    "list": lambda client, config: list(client.files.list(config=config)),
    "cache": lambda client, config: client.caches.get(name="cachedContents/x", config=config),
    "download": lambda client, config: client.files.download(file="files/abc", config=config),
    "async download": lambda client, config: run(
        client, lambda: client.aio.files.download(file="files/abc", config=config)
    ),
}


def reinstalled(client: Any, pool: Any) -> Any:
    keyrot_middleware.uninstall()
    pool("A", "B")
    return client


def copied(client: Any, _pool: Any) -> Any:
    again = copy.copy(client)
    again._api_client = copy.copy(client._api_client)
    again._models = genai.models.Models(again._api_client)
    again._files = genai.files.Files(again._api_client)
    again._aio = genai.client.AsyncClient(again._api_client)
    return again


MADE: list[Callable[[Any, Any], Any]] = [
    lambda client, _: client,
    reinstalled,
    copied,
    lambda client, _: genai.Client(http_options=client._api_client._http_options),
    lambda client, _: genai.Client(
        api_key=client._api_client.api_key,
        http_options={"base_url": client._api_client._http_options.base_url},
    ),
    lambda client, _: keyrot_middleware.uninstall() or client,
]


@pytest.mark.parametrize(("call", "made", "bypassed"), spread(CALLS, MADE, [False, True]))
def test_no_pool_key_goes_elsewhere(call, made, bypassed, gemini, foreign, pool, connect) -> None:
    """Not by any call, nor by a copy of a client that has none of its own."""
    pool("A", "B")
    first = connect()
    ask("sync", first)
    client = made(first, pool)
    inside = keyrot_middleware.bypass() if bypassed else contextlib.nullcontext()
    with inside, contextlib.suppress(genai.errors.APIError):
        CALLS[call](client, {"http_options": {"base_url": foreign.url}})
    client.close()
    assert foreign.count() == 1
    assert foreign.log[0].header_values(KEY) in ([], [keyrot_middleware.POOL_KEY])
    assert pool_values(foreign, gemini) == []


@pytest.mark.parametrize("make", [genai.Client, BaseApiClient])
@pytest.mark.parametrize("spelling", ["base_url", "baseUrl"])
def test_a_foreign_client_without_a_key_gets_none(spelling, make, foreign, pool) -> None:
    pool("A", "B")
    with pytest.raises(ValueError, match="API key"):
        make(http_options={spelling: foreign.url})


def test_a_host_is_allowed_with_its_port(gemini, foreign, pool, connect) -> None:
    """Another port of the same machine is another host; a slash or capitals are the same one."""
    pool("A", "B", strategy="fill")
    for url in (f"{gemini.url}/", f"HTTP://{gemini.host}"):
        assert ask("sync", connect("FAKE-own-key", base_url=url)) == "ok from A"
    other = connect("FAKE-own-key", client_options=foreign.http_options)
    assert ask("sync", other, config={"http_options": {"base_url": gemini.url}}) == "ok from A"
    calls("sync", other, 1)
    assert pool_values(foreign, gemini) == []


class _Token(Credentials):
    """Credentials that never expire."""

    expired = False

    def __init__(self) -> None:
        super().__init__()
        self.token = "FAKE-token"

    def refresh(self, request: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_vertex_client_without_a_key_gets_none(by, gemini, pool, monkeypatch) -> None:
    if by == "variable":
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "True")
    pool("A", "B")
    client = genai.Client(
        vertexai=True if by == "argument" else None,
        credentials=_Token(),
        project="p",
        location="us-central1",
        http_options=gemini.http_options,
    )
    assert isinstance(calls("sync", client, 1)[0], Exception)
    client.close()
    assert gemini.log[0].header_values(KEY) == []
    assert gemini.log[0].header_values("authorization") == ["Bearer FAKE-token"]


@pytest.mark.usefixtures("v1beta")
def test_live_sends_the_pools_key_to_its_own_host_only(gemini, pool, connect, monkeypatch) -> None:
    """A session with a host of its own is refused before it connects; a key of its own is not.

    SDK 1.75 takes no options for a session, and raises an error itself.
    """
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def dial(uri: str, additional_headers: Any = None, **_: Any) -> Any:
        seen.append(dict(additional_headers)[KEY])
        raise ConnectionError("enough")
        yield

    async def session(client: Any, config: Any = None) -> None:
        async with client.aio.live.connect(model=MODEL, config=config):
            pass

    monkeypatch.setattr(live, "ws_connect", dial)
    pool("A")
    proxy = "https://proxy.example.com"
    with pytest.raises(ValueError, match=r"KEYROT_ALLOWED_HOSTS|http_options"):
        asyncio.run(session(connect(), {"http_options": {"base_url": proxy}}))
    assert seen == []
    for client in (connect(), connect("FAKE-own", base_url=proxy)):
        with pytest.raises(ConnectionError):
            asyncio.run(session(client))
    assert seen == [gemini.key("A").value, "FAKE-own"]


# Plain HTTP --------------------------------------------------------------------------------------

HOST = "gateway.test"


@pytest.fixture
def port(gemini, monkeypatch) -> int:
    """Connect to the fake service, whatever the name and the port; return the service's port."""
    number = int(gemini.host.rpartition(":")[2])
    address = ("127.0.0.1", number)
    resolved = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
    connect = socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [resolved])
    monkeypatch.setattr(socket.socket, "connect", lambda self, _: connect(self, address))
    return number


@pytest.mark.parametrize("mode", MODES)
def test_a_name_does_not_allow_plain_http(mode, gemini, pool, connect, port) -> None:
    """The client's own key is sent there, as without the pool; a client without one sends none."""
    pool("A", "B", allowed_hosts=[f"{HOST}:{port}", f"{HOST}:443"])
    own = gemini.add_key("own").value
    for url in (f"http://{HOST}:{port}", f"http://{HOST}"):
        assert ask(mode, connect(own, base_url=url)) == "ok from own"
    options = {"http_options": {"base_url": f"http://{HOST}:{port}"}}
    keyless = connect(base_url=f"https://{HOST}:{port}")
    assert isinstance(calls(mode, keyless, 1, config=options)[0], genai.errors.ClientError)
    assert [request.header_values(KEY) for request in gemini.log] == [[own], [own], []]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_host_that_is_allowed_with_http(mode, gemini, pool, connect, port) -> None:
    pool("A", "B", strategy="fill", allowed_hosts=[f"http://{HOST}:{port}"])
    assert ask(mode, connect(base_url=f"http://{HOST}:{port}")) == "ok from A"
    own = gemini.add_key("own").value
    assert ask(mode, connect(own, base_url=f"http://{HOST}:{port + 1}")) == "ok from own"


@pytest.mark.parametrize("by", ["client", "variable"])
def test_googles_own_host_over_plain_http(by, gemini, pool, port, monkeypatch) -> None:
    """A base URL with http:// by mistake gets no key of the pool, wherever it is written."""
    pool("A", "B", allowed_hosts=None)
    address = "http://generativelanguage.googleapis.com"
    options = {"base_url": address} if by == "client" else None
    if by == "variable":
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", address)
    with pytest.raises(ValueError, match="No API key"):
        genai.Client(http_options=options)
    with genai.Client(api_key=gemini.add_key("own").value, http_options=options) as client:
        assert ask("sync", client) == "ok from own"
    assert pool_values(gemini, gemini) == []
