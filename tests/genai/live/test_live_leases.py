"""Live: `max_concurrency` counts open sessions; however one ends, its place is free again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.genai import errors
from support.live import converse, opened, say

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply, plain_websockets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
Connect = Callable[..., Any]
KEYS, AT_ONCE, SESSIONS = "ABC", 5, 20


@pytest.fixture(autouse=True)
def _no_tls() -> Iterator[None]:
    """Let the SDK ask for no TLS on loopback."""
    with plain_websockets():
        yield


def limited() -> list[dict[str, Any]]:
    """Return entries of three keys with five sessions each."""
    return [{"key_id": key, "max_concurrency": AT_ONCE} for key in KEYS]


@pytest.mark.parametrize("end", ["close", "drop", "cancel"])
def test_no_key_has_more_sessions_than_it_may(
    end: str, gemini: FakeGemini, pool: Any, connect: Connect
) -> None:
    """Of twenty at once fifteen open, five of each key; the others find none, and later do."""
    pool(*limited(), max_wait_s=0)
    if end == "drop":
        gemini.always_any(Reply.dropped(1))  # not before all have met: at the first message
    go = asyncio.Event()
    client = connect()

    async def talk() -> str:
        try:
            async with opened(client) as session:
                await go.wait()
                if end == "drop":
                    await say(session)
                    await session._receive()
                elif end == "cancel":
                    await session._receive()
        except (keyrot_middleware.KeyPoolExhausted, errors.APIError, asyncio.CancelledError) as why:
            return type(why).__name__
        return "closed"

    async def everyone() -> list[str]:
        tasks = [asyncio.create_task(talk()) for _ in range(SESSIONS)]
        while sum(task.done() for task in tasks) < 5:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(gemini.wait_for, 15)
        go.set()
        for task in tasks if end == "cancel" else ():
            task.cancel()
        return await asyncio.gather(*tasks)

    left = {"close": "closed", "drop": "APIError", "cancel": "CancelledError"}[end]
    assert Counter(asyncio.run(everyone())) == {"KeyPoolExhausted": 5, left: 15}
    assert {key: gemini.peak(key) for key in KEYS} == dict.fromkeys(KEYS, AT_ONCE)
    assert pool.ledger.under_way == {}
    assert gemini.wait_idle()
    gemini.always_any(None)
    for _ in range(4):
        assert asyncio.run(converse(connect())).startswith("ok from")
