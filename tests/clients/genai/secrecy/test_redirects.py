"""Redirects: a key of the pool is not sent to another origin, with any surface of the SDK."""

import asyncio
from typing import Any

import pytest
from google import genai
from support.modes import MODES, ask, http_library, spread
from support.redirects import held
from support.scenes import OTHERS, other_calls

import keyrot_middleware
from keyrot_middleware.testing import plain_websockets

pytestmark = pytest.mark.promise(number=1)

CODES = (301, 302, 303, 307, 308)


def untouched() -> bool:
    keys = keyrot_middleware.status()["keys"].values()
    return all(key["active"] and not key["in_cooldown"] for key in keys)


@pytest.mark.parametrize(
    ("mode", "backend", "code"),
    spread(
        [*((mode, "default") for mode in MODES), ("async", "httpx"), ("async_stream", "httpx")],
        CODES,
    ),
)
def test_a_call_follows_no_redirect_elsewhere(mode, code, backend, redirect, elsewhere) -> None:
    """Nothing reaches the other host, the error explains it, and no key is penalized."""
    gateway = redirect(code, f"{elsewhere.url}/x")
    more = {"async_client_args": {"transport": transport()}} if backend == "httpx" else {}
    with pytest.raises(genai.errors.APIError, match="redirects this request") as caught:
        ask(mode, gateway.client(**more))
    assert (caught.value.code, elsewhere.host in str(caught.value)) == (code, True)
    assert (len(gateway.server.seen), elsewhere.seen) == (1, [])
    assert untouched()


def transport() -> Any:
    return http_library().AsyncHTTPTransport()


NEW = "/v1beta/models/new"


@pytest.mark.parametrize(
    ("mode", "there", "code"),
    spread([("sync", "relative"), ("sync", "absolute"), ("async", "relative")], CODES),
)
def test_redirects_within_one_origin_are_followed(mode, code, there, gemini, redirect) -> None:
    """As the SDK does: the key is sent again, and a POST stays one where the code requires it."""
    gateway = redirect(code, NEW)
    server = gateway.server
    if there == "absolute":
        server.headers["location"] = f"{server.url}{NEW}"
    server.bodies[NEW] = b'{"candidates": [{"content": {"parts": [{"text": "moved"}]}}]}'
    assert ask(mode, gateway.client()) == "moved"
    assert [method for method, _, _ in server.seen] == ["POST", "POST" if code > 303 else "GET"]
    assert all(gemini.key("A").value in headers for _, _, headers in server.seen)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("call", "own"), spread(OTHERS, ["", "A"]))
def test_other_calls_follow_none_elsewhere(call, own, gemini, redirect, elsewhere) -> None:
    gateway = redirect(307, f"{elsewhere.url}/x")
    client = gateway.client(own=own)
    with pytest.raises(Exception) as caught:
        other_calls(client)[call]()
    assert "307" in str(caught.value)
    assert held(gateway.server, gemini) == [gemini.key("A").value]
    assert elsewhere.seen == []
    assert untouched()


def test_live_follows_no_redirect_elsewhere(gemini, redirect, elsewhere) -> None:
    gateway = redirect(307, f"ws://{elsewhere.host}/x")

    async def session() -> None:
        async with gateway.client().aio.live.connect(model="gemini-3.1-flash-lite"):
            pass

    with (
        plain_websockets(),
        pytest.raises(keyrot_middleware.ConfigError, match="redirects this session"),
    ):
        asyncio.run(session())
    assert held(gateway.server, gemini) == [gemini.key("A").value]
    assert elsewhere.seen == []
