"""Keys of the pool are sent over TLS, to loopback, or to a host that is allowed with `http://`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from google import genai
from support.modes import MODES, ask, calls

from keyrot_middleware.testing import FakeGemini

KEY = "x-goog-api-key"
HOST = "gateway.test"
GOOGLE = "generativelanguage.googleapis.com"


@pytest.fixture
def port(gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch) -> int:
    """Connect to the fake service, whatever the name and the port; return the service's port."""
    number = int(gemini.host.rpartition(":")[2])
    address = ("127.0.0.1", number)
    resolved = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
    connect = socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [resolved])
    monkeypatch.setattr(socket.socket, "connect", lambda self, _: connect(self, address))
    return number


def pool_keys(gemini: FakeGemini) -> list[str]:
    """List the pool's values in the headers of all requests."""
    ours = [gemini.key(label).value for label in "AB"]
    return [value for value in ours for request in gemini.log if value in repr(request.headers)]


@pytest.mark.parametrize("mode", MODES)
def test_a_host_is_not_allowed_over_plain_http_by_its_name(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any], port: int
) -> None:
    """The client's own key is sent there, as without the pool; a client without one sends none."""
    pool("A", "B", allowed_hosts=[f"{HOST}:{port}", f"{HOST}:443"])
    own = gemini.add_key("own").value
    assert ask(mode, connect(own, base_url=f"http://{HOST}:{port}")) == "ok from own"
    assert ask(mode, connect(own, base_url=f"http://{HOST}")) == "ok from own"
    options = {"http_options": {"base_url": f"http://{HOST}:{port}"}}
    keyless = connect(base_url=f"https://{HOST}:{port}")
    assert isinstance(calls(mode, keyless, 1, config=options)[0], genai.errors.ClientError)
    assert [request.header_values(KEY) for request in gemini.log] == [[own], [own], []]
    assert pool_keys(gemini) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_host_that_is_allowed_with_http(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any], port: int
) -> None:
    """`http://` in front of a host allows plain HTTP."""
    pool("A", "B", strategy="fill", allowed_hosts=[f"http://{HOST}:{port}"])
    assert ask(mode, connect(base_url=f"http://{HOST}:{port}")) == "ok from A"
    own = gemini.add_key("own").value
    assert ask(mode, connect(own, base_url=f"http://{HOST}:{port + 1}")) == "ok from own"


@pytest.mark.parametrize("name", ["client", "variable"])
def test_googles_own_host_over_plain_http(
    name: str,
    gemini: FakeGemini,
    pool: Any,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base URL with http:// by mistake gets no key of the pool, wherever it is written."""
    pool("A", "B", allowed_hosts=None)
    own, address = gemini.add_key("own").value, f"http://{GOOGLE}"
    options = {"base_url": address} if name == "client" else None
    if name == "variable":
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", address)
    with pytest.raises(ValueError, match="No API key"):
        genai.Client(http_options=options)
    with genai.Client(api_key=own, http_options=options) as client:
        assert ask("sync", client) == "ok from own"
    assert pool_keys(gemini) == []
