"""A stream that a program leaves has no lease any more, also where its first attempt failed.

What is left of the failure must not hold the stream in a cycle, which only the collector ends. So
the collector is off here, and no test asks it for help.
"""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.modes import MODEL, STREAMS, run, skip_where_the_sdk_reconnects, spread
from support.streams import REQUEST, collected

from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::UserWarning")]

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


@pytest.mark.parametrize(("mode", "library", "failure", "way"), spread(LIBRARIES, FAILURES, WAYS))
def test_no_lease_is_left(mode, library, way, failure, gemini, pool, connect, no_aiohttp) -> None:
    """The first key fails, the second serves, the program leaves the stream in its middle.

    A stream of the SDK's that is async is a cycle of its own; dropped unclosed, it is collected.
    """
    skip_where_the_sdk_reconnects(mode)
    if library == "httpx":
        no_aiohttp()
    pool("A", "B", strategy="fill", max_retries=1)
    gemini.script("A", FAILURES[failure])
    leave(mode, way, connect(), pool)


@pytest.mark.parametrize(("mode", "way"), spread(STREAMS, WAYS))
def test_a_left_stream_of_an_interaction_has_no_lease(mode, way, gemini, pool, connect) -> None:
    """A closed one at once; one that is lost is a cycle of the SDK's own, so it is collected."""
    pool("A", "B", strategy="fill", max_retries=1)
    gemini.script("A", Reply.EXHAUSTED.as_interactions())
    leave(mode, way, connect(), pool, interaction=True)


def leave(mode: str, way: str, client: Any, pool: Any, **asked: Any) -> None:
    """Open a stream, leave it in its middle, and check that no lease is left at once."""
    if mode == "async_stream":
        run(client, lambda: _leave_async(client, way, pool, asked))
    else:
        _leave(client, way, asked)
        if "interaction" in asked and way != "close":
            assert collected(pool)
        assert pool.ledger.under_way == {}
    assert pool.ledger.kinds[-1] is LeaseOutcome.ABANDONED


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
    for _ in range(1_000):  # the loop closes the SDK's generators
        if not pool.ledger.under_way:
            break
        gc.collect()
        await asyncio.sleep(0.01)
    assert pool.ledger.under_way == {}


async def _break(client: Any, asked: dict[str, Any]) -> None:
    async for _chunk in await _open(client.aio, asked):
        break
