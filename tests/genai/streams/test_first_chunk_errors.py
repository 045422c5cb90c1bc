"""A stream whose first chunk is an error releases its connection before another key is tried."""

from __future__ import annotations

import pytest
from support.modes import AIOHTTP, calls, http_library

from keyrot_middleware.testing import Reply


@pytest.mark.parametrize(
    ("mode", "aiohttp"),
    [("sync_stream", False), ("async_stream", False), *[("async_stream", True)] * AIOHTTP],
)
def test_a_small_connection_pool_is_enough(
    mode, aiohttp, gemini, pool, connect, no_aiohttp
) -> None:
    """Twelve calls at once over three connections, and the first key fails in its first chunk."""
    options: dict = {}
    if not aiohttp:
        no_aiohttp()
        limits = http_library().Limits(max_connections=3, max_keepalive_connections=3)
        options = {"client_args": {"limits": limits}, "async_client_args": {"limits": limits}}
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.EXHAUSTED.in_stream(0))
    client = connect(timeout=60_000, **options)
    assert calls(mode, client, 12, 12) == ["ok from B"] * 12
