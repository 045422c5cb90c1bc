"""Live: what the server says when it refuses a session shows no key of the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from support.key_search import texts_of
from support.modes import MODEL
from websockets.asyncio.server import serve

from keyrot_middleware.testing import FakeGemini

KEY = "x-goog-api-key"


def echo(value: str) -> str:
    """Say what Google says of a suspended key, as far as a close frame has room for it."""
    return f"Consumer 'api_key:{value}' has been suspended."


async def close(connection: Any) -> None:
    """Refuse the session by a close frame."""
    await connection.close(1008, echo(connection.request.headers[KEY]))


def refuse(connection: Any, request: Any) -> Any:
    """Refuse the handshake."""
    return connection.respond(HTTPStatus.FORBIDDEN, echo(request.headers[KEY]))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["handshake", "close"])
def test_a_refused_session_shows_no_key(
    how: str,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the SDK's error nor what it was raised from has the key that was repeated."""

    async def session() -> BaseException | None:
        process = refuse if how == "handshake" else None
        async with serve(close, "127.0.0.1", 0, process_request=process) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            pool("A", allowed_hosts=[host])
            client = connect(base_url=f"http://{host}")
            api = client._api_client
            base = type(api)._websocket_base_url
            monkeypatch.setattr(
                type(api), "_websocket_base_url", lambda *args: base(*args).replace("wss:", "ws:")
            )
            api._websocket_ssl_ctx.clear()
            try:
                async with client.aio.live.connect(model=MODEL) as live:
                    await anext(live.receive())
            except Exception as error:
                return error
        return None

    error = asyncio.run(session())
    assert error is not None
    shown = "".join(texts_of(error)) + repr(getattr(getattr(error, "response", None), "body", ""))
    assert gemini.key("A").value not in shown
    assert "suspended" in shown
