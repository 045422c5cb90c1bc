"""A stream whose first chunk is an error releases its connection before another key is tried."""

from __future__ import annotations

import pytest
from google.genai import _api_client
from support.modes import calls, http_library

from keyrot_middleware.testing import Reply

UNREAD = Reply.EXHAUSTED.in_stream(0)


@pytest.mark.parametrize("aiohttp", [False, True])
def test_a_small_connection_pool_is_enough(aiohttp, gemini, pool, connect, monkeypatch) -> None:
    """Twelve calls at once over three connections, and the first key fails in its first chunk."""
    options = {"limits": _three_connections()}
    if aiohttp and _api_client.has_aiohttp:
        options = {}
    else:
        monkeypatch.setattr(_api_client, "has_aiohttp", False)
    pool("A", "B", strategy="fill")
    gemini.always("A", UNREAD)
    client = connect(timeout=60_000, async_client_args=options)
    assert calls("async_stream", client, 12, 12) == ["ok from B"] * 12


def test_a_small_sync_connection_pool_is_enough(gemini, pool, connect) -> None:
    """The same with threads."""
    pool("A", "B", strategy="fill")
    gemini.always("A", UNREAD)
    client = connect(timeout=60_000, client_args={"limits": _three_connections()})
    assert calls("sync_stream", client, 12, 12) == ["ok from B"] * 12


def _three_connections() -> object:
    """Return limits of the SDK's HTTP library."""
    return http_library().Limits(max_connections=3, max_keepalive_connections=3)
