"""A stream that a program leaves has no lease any more, also where its first attempt failed.

What is left of the failure must not hold the stream in a cycle, which only the collector ends. So
the collector is off here, and no test asks it for help.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.live import opened, say
from support.modes import MODEL, STREAMS, run, skip_where_the_sdk_reconnects
from support.streams import REQUEST, collected

from keyrot_middleware.testing import Reply, plain_websockets

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::UserWarning")]
PRO = "gemini-2.5-pro"

FAILURES = {
    "429": Reply.EXHAUSTED,
    "invalid key": Reply.KEY_INVALID,
    "dropped connection": Reply.RESET,
    "429 as first chunk": Reply.EXHAUSTED.in_stream(0),
}
WAYS = ("break", "close", "del", "break of a function")
LIBRARIES = [("sync_stream", "httpx"), ("async_stream", "httpx"), ("async_stream", "aiohttp")]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("failure", "way"), list(zip(FAILURES, WAYS, strict=True)))
@pytest.mark.parametrize(("mode", "library"), LIBRARIES)
def test_a_left_stream_has_no_lease(
    mode, library, way, failure, gemini, pool, connect, no_aiohttp
) -> None:
    """The first key fails, the second serves, the program leaves the stream in its middle.

    A stream of the SDK's that is async is a cycle of its own; dropped unclosed, it is collected.
    """
    skip_where_the_sdk_reconnects(mode)
    if library == "httpx":
        no_aiohttp()
    pool("A", "B", strategy="fill", max_retries=1)
    gemini.script("A", FAILURES[failure])
    leave(mode, way, connect(), pool)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mode", "library"), LIBRARIES)
def test_a_left_stream_of_the_second_model_has_no_lease(
    mode, library, way, gemini, pool, connect, no_aiohttp
) -> None:
    """No key can serve the first model, so what the program leaves is a stream of the second."""
    if library == "httpx":
        no_aiohttp()
    pool("A", "B", fallback_models=f"{PRO}>{MODEL}", max_wait_s=0)
    for label in ("A", "B"):
        gemini.limit(f"project-{label}", PRO, rpd=0)
        gemini.spend(label, PRO)
    leave(mode, way, connect(), pool, model=PRO)


@pytest.mark.parametrize("failure", ["429"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", STREAMS)
def test_a_left_stream_of_an_interaction_has_no_lease(
    mode, way, failure, gemini, pool, connect
) -> None:
    """A closed one at once; one that is lost is a cycle of the SDK's own, so it is collected."""
    pool("A", "B", strategy="fill", max_retries=1)
    gemini.script("A", FAILURES[failure].as_interactions())
    leave(mode, way, connect(), pool, interaction=True)


@pytest.mark.parametrize("failure", ["429", "invalid key"])
def test_a_lost_session_has_no_lease(failure, gemini, pool, connect) -> None:
    """The same for a Live session that the program drops without closing it."""
    pool("A", "B", strategy="fill", max_retries=1)
    gemini.script("A", FAILURES[failure])

    async def lose(client: Any) -> None:
        manager = opened(client)
        session = await manager.__aenter__()
        await say(session)
        assert pool.ledger.under_way == {"B": 1}
        del session, manager
        for _ in range(500):  # the SDK's generator closes the connection, in the loop
            if not pool.ledger.under_way:
                break
            await asyncio.sleep(0.01)
        assert pool.ledger.under_way == {}

    with plain_websockets():
        client = connect()
        run(client, lambda: lose(client))


def leave(mode: str, way: str, client: Any, pool: Any, **asked: Any) -> None:
    """Open a stream, leave it in its middle, and check that no lease is left at once."""
    if mode == "async_stream":
        run(client, lambda: _leave_async(client, way, pool, asked))
    else:
        _leave(client, way, asked)
        if "interaction" in asked and way != "close":
            assert collected(pool)
        assert pool.ledger.under_way == {}


def _open(client: Any, asked: dict[str, Any]) -> Any:
    if "interaction" in asked:
        return client.interactions.create(model=MODEL, input="hello", stream=True)
    return client.models.generate_content_stream(**{**REQUEST, **asked})


def _leave(client: Any, way: str, asked: dict[str, Any]) -> None:
    stream = _open(client, asked)
    for _chunk in stream:
        break
    if way == "close":
        stream.close()
    elif way == "del":
        del stream


async def _leave_async(client: Any, way: str, pool: Any, asked: dict[str, Any]) -> None:
    if way == "break of a function":
        await _break(client, asked)
    else:
        stream = await _open(client.aio, asked)
        async for _chunk in stream:
            break
        if way == "close":
            await (stream.close if hasattr(stream, "close") else stream.aclose)()
        elif way == "del":
            del stream
        else:
            stream = None
    for _ in range(100):  # the loop closes the SDK's generators
        if not pool.ledger.under_way:
            break
        gc.collect()
        await asyncio.sleep(0.01)
    assert pool.ledger.under_way == {}


async def _break(client: Any, asked: dict[str, Any]) -> None:
    async for _chunk in await _open(client.aio, asked):
        break
