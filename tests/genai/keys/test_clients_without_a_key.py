"""Copies of a client without a key of its own send no key of the pool to foreign hosts."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google import genai
from support.modes import MODES, ask, ask_async, http_library, run

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

KEY = "x-goog-api-key"
WAYS = (*MODES, "download", "async_download")


@pytest.fixture
def elsewhere(clock: Any) -> Iterator[FakeGemini]:
    """Serve at another address, which is not allowed."""
    with FakeGemini(clock) as server:
        yield server


def pool_keys(server: FakeGemini, gemini: FakeGemini) -> list[str]:
    """List the pool's values that arrived at a server."""
    ours = [gemini.key(label).value for label in "AB"]
    return [value for value in ours if value in repr([r.headers for r in server.log])]


def reinstalled(client: Any, pool: Any) -> Any:
    """Return the client after the pool was uninstalled and installed again."""
    keyrot_middleware.uninstall()
    pool("A", "B")
    return client


def copied(client: Any, _pool: Any) -> Any:
    """Return a client with a copy of its api client."""
    again = copy.copy(client)
    again._api_client = copy.copy(client._api_client)
    again._models = genai.models.Models(again._api_client)
    again._files = genai.files.Files(again._api_client)
    again._aio = genai.client.AsyncClient(again._api_client)
    return again


def of_options(client: Any, _pool: Any) -> Any:
    """Return a client made from another one's options."""
    return genai.Client(http_options=client._api_client._http_options)


def of_key(client: Any, _pool: Any) -> Any:
    """Return a client made with another one's key."""
    return genai.Client(
        api_key=client._api_client.api_key,
        http_options={"base_url": client._api_client._http_options.base_url},
    )


def removed(client: Any, _pool: Any) -> Any:
    """Return the client after the pool was uninstalled."""
    keyrot_middleware.uninstall()
    return client


@pytest.mark.parametrize(
    ("made", "mode"),
    list(zip([reinstalled, copied, of_options, of_key, removed, copied], WAYS, strict=True)),
)
def test_no_key_is_sent_to_a_foreign_host(
    made: Callable[[Any, Any], Any],
    mode: str,
    gemini: FakeGemini,
    elsewhere: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
) -> None:
    """A request with a base_url of its own has no key of the pool, with any such client."""
    pool("A", "B")
    first = connect()
    assert ask("sync", first).startswith("ok from")
    client = made(first, pool)
    config = {"http_options": {"base_url": elsewhere.url}}
    with contextlib.suppress(genai.errors.APIError):
        if mode == "download":
            client.files.download(file="files/abc", config=config)
        elif mode == "async_download":
            run(client, lambda: client.aio.files.download(file="files/abc", config=config))
        else:
            ask(mode, client, config=config)
    assert elsewhere.count() == 1
    assert elsewhere.log[0].header_values(KEY) in ([], [keyrot_middleware.POOL_KEY])
    assert pool_keys(elsewhere, gemini) == []


@pytest.mark.parametrize("inner", ["foreign", "foreign request", "bypass", "download", "own"])
def test_a_call_from_an_event_hook_gets_no_key_of_the_call_around_it(
    inner: str,
    gemini: FakeGemini,
    elsewhere: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
) -> None:
    """A hook of the HTTP client runs while a pool key is in use; its calls have none."""
    pool("A", "B", strategy="fill")
    own = elsewhere.add_key("own").value
    foreign = connect(own, client_options=elsewhere.http_options)
    at_home = connect(gemini.add_key("mine").value)
    stored = at_home.files.upload(file=io.BytesIO(b"hello"), config={"mime_type": "text/plain"})
    before = len(gemini.log)

    def call() -> None:
        if inner == "foreign":
            ask("sync", foreign)
        elif inner == "foreign request":
            ask("sync", at_home, config={"http_options": {"base_url": elsewhere.url}})
        elif inner == "bypass":
            with keyrot_middleware.bypass():
                ask("sync", at_home)
        elif inner == "download":
            at_home.files.download(file=stored.name)
        else:
            at_home._api_client.request("get", "models/x", {}, {"headers": {KEY: "FAKE-own"}})

    done: list[bool] = []

    def hook(_request: Any) -> None:
        if not done:
            done.append(True)
            with contextlib.suppress(genai.errors.APIError):
                call()

    client = connect(client_args={"event_hooks": {"request": [hook]}})
    assert ask("sync", client) == "ok from A"
    assert done
    assert pool_keys(elsewhere, gemini) == []
    sent = [request.header_values(KEY) for request in gemini.log[before:]]
    ours = [gemini.key("A").value]
    mine = [gemini.key("mine").value]
    # An uploaded file cannot be downloaded; whether it is there is asked with the same key.
    expected = {"bypass": [mine, ours], "download": [mine, mine, ours], "own": [["FAKE-own"], ours]}
    assert sent == expected.get(inner, [ours])


@pytest.mark.parametrize("name", ["httpx_client", "httpx_async_client"])
def test_an_http_client_of_the_programs_own(
    name: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """An injected client sends the pool's keys too, and is still the same object."""
    library = http_library()
    made = library.Client() if name == "httpx_client" else library.AsyncClient()
    before = dict(vars(made))
    pool("A", "B", strategy="fill")
    try:
        client = connect(**{name: made})
    except ValueError:
        pytest.skip("this SDK takes no client")

    async def call_and_close() -> str:
        async with made:
            return await ask_async("async", client)

    if name == "httpx_client":
        with made:
            assert ask("sync", client) == "ok from A"
    else:
        assert asyncio.run(call_and_close()) == "ok from A"
    keyrot_middleware.uninstall()
    assert vars(made).keys() == before.keys()
