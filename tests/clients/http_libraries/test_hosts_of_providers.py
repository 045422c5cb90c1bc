"""Whose key a request gets: of a host that providers share, and on paths that no table has."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import permutations
from typing import Any

import httpx
import pytest
from support.json_server import JsonServer, Request, Response

import keyrot_middleware
from keyrot_middleware import ConfigError
from keyrot_middleware.settings import load

pytestmark = pytest.mark.promise(number=1)

PLACEHOLDER = {"authorization": "Bearer keyrot-pool"}
OF_ANTHROPIC = {"x-api-key": "keyrot-pool"}
VERSIONED = {**OF_ANTHROPIC, "anthropic-version": "2023-06-01"}
KEYS = {
    "openai": "sk-proj-FAKEQ7w8E9r0T1y2U3i4O5p6A7s8D9f0",
    "anthropic": "sk-ant-api03-FAKEQ7w8E9r0T1y2U3i4O5p6A7s8D9f0",
    "groq": "gsk_FAKEQ7w8E9r0T1y2U3i4O5p6A7s8D9f0",
}
Serve = Callable[..., JsonServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return what starts a gateway and installs a pool with a key of each provider."""
    servers: list[JsonServer] = []

    def start(
        *hosts: str,
        answer: Callable[[Request], Response] = lambda _: Response(200, {}),
        more: str = "",
    ) -> JsonServer:
        server = JsonServer(answer)
        servers.append(server)
        for name, key in KEYS.items():
            monkeypatch.setenv(f"{name.upper()}_API_KEYS", key + more.format(key=key))
        allowed = [host.format(url=server.url) for host in hosts]
        keyrot_middleware.install(allowed_hosts=allowed, max_wait_s=0)
        return server

    yield start
    keyrot_middleware.uninstall()
    for server in servers:
        server.close()


def _sent(server: JsonServer) -> list[str]:
    said = [str(dict(request.headers)) for request in server.requests]
    names = {**KEYS, "placeholder": "keyrot-pool"}
    return [" ".join(name for name, key in names.items() if key in text) for text in said]


@pytest.mark.parametrize("order", list(permutations(KEYS)))
def test_header_path_and_api_decide_on_a_shared_host(order: Any, serve: Serve) -> None:
    """In whatever order the providers are named."""
    server = serve(*(f"{name}={{url}}" for name in order))
    asked: list[tuple[str, str, dict[str, str], str]] = [
        ("POST", "/v1/messages", OF_ANTHROPIC, "anthropic"),
        ("POST", "/v1/messages", PLACEHOLDER, "anthropic"),
        ("POST", "/v1/messages/batches", PLACEHOLDER, "anthropic"),
        ("GET", "/v1/models", VERSIONED, "anthropic"),
        ("GET", "/v1/files", VERSIONED, "anthropic"),
        ("GET", "/v1/models", PLACEHOLDER, "openai"),
        ("POST", "/v1/chat/completions", PLACEHOLDER, "openai"),
        ("POST", "/gw/v1/responses", PLACEHOLDER, "openai"),
        ("POST", "/openai/v1/chat/completions", PLACEHOLDER, "groq"),
        ("GET", "/openai/v1/odd", PLACEHOLDER, "groq"),
    ]
    for method, path, headers, _ in asked:
        httpx.request(method, server.url + path, headers=headers)
    assert _sent(server) == [name for *_, name in asked]


def test_a_path_says_for_whom_a_request_is(serve: Serve) -> None:
    """Whole segments of it; elsewhere no key goes, of that provider."""
    server = serve("openai={url}/a", "groq={url}/b/openai", "anthropic={url}")
    for path in ("/a/v1/models", "/b/openai/v1/models", "/b/openai/../openai/v1/models"):
        httpx.get(server.url + path, headers=PLACEHOLDER)
    assert _sent(server)[:2] == ["openai", "groq"]
    for path in ("/ab/v1/models", "/b/v1/models", "/a/%2e%2e/b/openai/v1/models"):
        httpx.get(server.url + path, headers=PLACEHOLDER)
    assert not {"openai", "groq"} & set(_sent(server)[3:])


def test_what_no_request_can_decide_is_an_error_at_install(monkeypatch: Any) -> None:
    """Two providers with the same paths and the same header, at one place."""
    monkeypatch.setenv("OPENAI_API_KEYS", KEYS["openai"])
    monkeypatch.setenv("MISTRAL_API_KEYS", "FAKE" + "m" * 28)
    with pytest.raises(ConfigError, match=r"openai or for mistral|mistral or for openai"):
        keyrot_middleware.install(allowed_hosts=["openai=https://gw.test", "mistral=gw.test"])
    assert load(allowed_hosts=["openai=https://gw.test/Open", "mistral=gw.test/m"]).allowed


@pytest.mark.parametrize("host", ["gw.test/openai", "openai=gw.test/a/../b", "openai=gw.test/a b"])
def test_a_path_that_cannot_be_meant_is_refused(host: str) -> None:
    """It is of one provider, and goes nowhere but down."""
    with pytest.raises(ConfigError, match="allowed_hosts"):
        load(allowed_hosts=[host])


def test_an_unknown_path_goes_with_the_home_key_and_its_refusals_are_read(serve: Serve) -> None:
    """A key that is refused there is rejected like anywhere; the request counts for no model."""

    def answer(request: Request) -> Response:
        refused = KEYS["openai"] in request.headers["authorization"]
        error = {"message": "No", "type": "x", "code": "invalid_api_key"}
        good = f"{KEYS['openai']}2" in request.headers["authorization"] or not refused
        return Response(200, {"id": "x"}) if good else Response(401, {"error": error})

    server = serve("openai={url}", answer=answer, more=",{key}2")
    body = {"model": "gpt-5", "query": "x"}
    for _ in range(2):
        reply = httpx.post(f"{server.url}/v1/odd/search", json=body, headers=PLACEHOLDER)
        assert reply.status_code == 200
    assert len(server.requests) == 3
    keys = keyrot_middleware.status()["keys"]
    assert [keys[f"openai_{number}"]["state"] for number in (1, 2)] == ["rejected", "available"]
    assert "gpt-5" not in str(keys)


def test_a_callers_own_key_on_an_unknown_path_is_left_alone(serve: Serve) -> None:
    """The pool has no part in it."""
    server = serve("openai={url}")
    httpx.get(f"{server.url}/v1/odd", headers={"authorization": "Bearer own-FAKE-key"})
    assert server.requests[0].headers["authorization"] == "Bearer own-FAKE-key"
    with closing(server):
        assert len(server.requests) == 1
