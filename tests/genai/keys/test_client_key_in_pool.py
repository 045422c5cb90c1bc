"""A client whose own key is in the pool: above all the single key of the environment."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from google import genai
from support.redirects import Gateway, Server, held

from keyrot_middleware.testing import FakeGemini

CALLS: dict[str, Callable[[genai.Client], Any]] = {
    "download": lambda client: client.files.download(file="files/a"),
    "async download": lambda client: asyncio.run(downloaded(client)),
}


async def downloaded(client: genai.Client) -> Any:
    """Download a file with the async client, and close that."""
    try:
        return await client.aio.files.download(file="files/a")
    finally:
        await client.aio.aclose()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_its_key_follows_no_redirect_to_another_origin(
    call: Callable[[genai.Client], Any],
    gemini: FakeGemini,
    redirect: Callable[[int, str], Gateway],
    elsewhere: Server,
) -> None:
    """The pool's key is not sent elsewhere, although the program set it on the client itself."""
    client = redirect(307, f"{elsewhere.url}/x").client(own="A")
    with pytest.raises(genai.errors.APIError, match="redirects this request"):
        call(client)
    assert (elsewhere.seen, held(elsewhere, gemini)) == ([], [])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_error_that_echoes_its_key_does_not_show_it(
    call: Callable[[genai.Client], Any],
    gemini: FakeGemini,
    redirect: Callable[[int, str], Gateway],
) -> None:
    """Neither the text of the error nor the locals of its frames hold the key."""
    body = b'{"error": {"code": 403, "message": "Consumer \'api_key:%b\'", "status": "X"}}'
    gateway = redirect(403, "")
    client, value = gateway.client(own="A"), gemini.key("A").value
    gateway.server.answer = body % value.encode()
    with pytest.raises(genai.errors.APIError) as caught:
        call(client)
    text = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=False).format()
    )
    assert value not in text
    assert value not in str(caught.value)
