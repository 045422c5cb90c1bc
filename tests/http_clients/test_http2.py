"""HTTP/2: clients send many calls over one connection, and the pool serves each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest
from support.http2 import http2_in_front
from support.http_modes import send, send_async

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda m: m.__name__)
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture
def front(gemini, tmp_path) -> Iterator[Any]:
    """Serve HTTP/2 in front of the fake."""
    with http2_in_front(gemini, tmp_path) as found:
        yield found


def options(front, versions: list[str]) -> dict[str, Any]:
    """Return the arguments of a client, which notes the protocol of each response."""

    def note(response: Any) -> None:
        versions.append(response.http_version)

    return {"http2": True, "verify": front[1], "event_hooks": {"response": [note]}}


@LIBRARIES
@STREAM
def test_sixty_calls_meet_each_bad_key_once(library, stream, front, gemini, one_good) -> None:
    """An exhausted and an invalid key cost one request each, and none of 60 calls fails."""
    url, versions = front[0], list[str]()
    one_good(allowed_hosts=(url.partition("//")[2],))
    with library.Client(**options(front, versions)) as client:
        texts = {send(library, client, url, "keyrot-pool", stream=stream) for _ in range(60)}
    assert texts == {"ok from C"}
    assert (gemini.sent("A"), gemini.sent("B"), gemini.sent("C")) == (1, 1, 60)
    assert versions == ["HTTP/2"] * 60


@LIBRARIES
@STREAM
def test_concurrent_calls_share_a_connection(library, stream, front, gemini, pool) -> None:
    """Twenty tasks at once over one connection: one limit of 15 holds for all of them."""
    url = front[0]
    pool({"key_id": "A", "rpm": 15}, allowed_hosts=(url.partition("//")[2],), max_wait_s=0)

    async def go() -> list[Any]:
        limits = library.Limits(max_connections=1)
        async with library.AsyncClient(http2=True, verify=front[1], limits=limits) as client:
            calls = (send_async(client, url, "keyrot-pool", stream=stream) for _ in range(20))
            return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(go())
    assert found.count("ok from A") == gemini.sent("A") == 15
    assert sum(isinstance(one, library.HTTPStatusError) for one in found) == 5
