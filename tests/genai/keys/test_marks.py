"""A mark stands for the key of a request until it is sent, and one place puts the key there."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any

import pytest
from google.genai import _api_client
from support.interactions import SDK, create
from support.modes import MODES, ask, http_library

import keyrot_middleware
from keyrot_middleware import ConfigError, KeyrotWarning
from keyrot_middleware.adapters.patching import wrapper_chain
from keyrot_middleware.testing import FakeGemini, Reply

KEY = "x-goog-api-key"


def values(gemini: FakeGemini) -> list[list[str]]:
    """List the key headers of each request."""
    return [request.header_values(KEY) for request in gemini.log]


@pytest.mark.parametrize("own", [None, "own"])
@pytest.mark.parametrize("mode", MODES)
def test_what_the_sdk_builds_has_no_key(
    mode: str,
    own: str | None,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its code, and what is wrapped around that, has the request with the mark."""
    seen: list[str] = []

    def recording(name: str) -> None:
        inner = getattr(_api_client.BaseApiClient, name)

        def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(" ".join(map(str, request.headers.values())))
            return inner(client, request, *args, **kwargs)

        send.__kwdefaults__ = inner.__kwdefaults__
        monkeypatch.setattr(_api_client.BaseApiClient, name, send)

    recording("_request_once")
    recording("_async_request_once")
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)
    other = gemini.add_key("own").value
    client = connect(other) if own else connect()
    assert ask(mode, client) == "ok from B"
    assert values(gemini) == [[gemini.key(label).value] for label in "AB"]
    assert len(seen) == 2
    marks = {word for headers in seen for word in headers.split() if "keyrot-pool/" in word}
    assert len(marks) == 2
    assert min(map(len, marks)) >= len("keyrot-pool/") + 16, "another program could guess one"
    assert not [label for label in ("A", "B", "own") if gemini.key(label).value in "".join(seen)]


@pytest.mark.parametrize("surface", ["call", "interaction"])
def test_a_request_that_is_sent_in_another_context_has_its_key(
    surface: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """A client of the program's may send in a thread that has not the context of the call."""

    class Elsewhere(http_library().Client):  # type: ignore[misc]  # the SDK's HTTP library
        def send(self, request: Any, **options: Any) -> Any:
            return contextvars.Context().run(super().send, request, **options)

    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.KEY_INVALID)
    with Elsewhere() as http:
        client = connect(httpx_client=http)
        if surface == "call":
            assert ask("sync", client) == "ok from B"
        else:
            assert create("sync", client) == ["ok from B"]
    assert values(gemini) == [[gemini.key(label).value] for label in "AB"]


def unpatch_all() -> None:
    """Do what a mock or an instrumentation does that restores what it had found before."""
    for library, owner, name in (
        ("httpx", "Client", "send"),
        ("httpx", "AsyncClient", "send"),
        ("httpx2", "Client", "send"),
        ("httpx2", "AsyncClient", "send"),
        ("aiohttp", "ClientSession", "request"),
    ):
        if library in sys.modules:
            cls = getattr(sys.modules[library], owner)
            *_, method = wrapper_chain(vars(cls)[name])
            setattr(cls, name, method)


@pytest.mark.parametrize("mode", MODES)
def test_a_send_without_our_layer_is_sent_again_and_blames_no_key(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """Google refuses the mark; the layer is put back, with a warning, and the call succeeds."""
    pool("A")
    client = connect()
    unpatch_all()
    with pytest.warns(KeyrotWarning, match="another library has removed patches"):
        assert ask(mode, client) == "ok from A"
    assert values(gemini)[-1] == [gemini.key("A").value]
    assert len(values(gemini)) == 2
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


def test_an_interaction_without_our_layer_blames_no_key(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """From 2.0 on its retries are the SDK's: it fails, and the next one has the layer again."""
    pool("A")
    client = connect()
    assert client.interactions  # whose modules are imported now, which repairs the patches
    unpatch_all()
    with pytest.warns(KeyrotWarning, match="another library has removed patches"):
        if SDK >= (2, 0):
            with pytest.raises(ConfigError, match="no key is penalized"):
                create("sync", client)
        assert create("sync", client) == ["ok from A"]
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


def test_a_client_that_never_sends_by_its_library_is_an_error_that_says_so(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """No key is rejected for the mark that it sends."""
    library = http_library()
    *_, send = wrapper_chain(vars(library.Client)["send"])

    class Own(library.Client):  # type: ignore[misc]  # the SDK's HTTP library
        def send(self, request: Any, **options: Any) -> Any:
            return send(self, request, **options)

    pool("A", max_retries=0)
    with Own() as http, pytest.raises(ConfigError, match="no key is penalized"):
        ask("sync", connect(httpx_client=http))
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


@pytest.mark.parametrize("sender", ["google-genai-sdk/3.6.1", "a program's own"])
def test_a_mark_that_outlives_its_send_is_not_sent(
    sender: str, gemini: FakeGemini, pool: Any
) -> None:
    """It stands for the home key, as the placeholder does."""
    pool("A")
    headers = {KEY: "keyrot-pool/0", "x-goog-api-client": sender}
    with http_library().Client() as client:
        client.get(f"{gemini.url}/v1beta/models", headers=headers)
    assert values(gemini) == [[gemini.key("A").value]]
