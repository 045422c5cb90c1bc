"""A program may run for months: no memory is kept of a finished call."""

import asyncio
import gc
import sys
from collections import deque
from collections.abc import Callable

import pytest
from support.modes import MODEL

from keyrot_middleware.testing import FakeGemini

CALLS = 900
"""In rounds of three hundred, one block of memory for each call would show."""
REQUEST = {"model": MODEL, "contents": "hello"}


@pytest.fixture
def gemini(clock):
    """Serve without keeping a log, which would grow."""
    with FakeGemini(clock, keep_log=1) as server:
        yield server


@pytest.fixture
def unrecorded(pool):
    """Install a pool whose ledger keeps nothing either, and that counts each call at its end."""

    def install(*keys, **settings):
        made = pool(*keys, **settings)
        pool.ledger.leases = pool.ledger._outcomes = deque(maxlen=0)
        pool.ledger.checked = False
        add = made.activity.add

        def add_and_send(record):
            add(record)
            made.activity.send()  # the refresher sends once a second

        made.activity.add = add_and_send
        pools.append(made)

    pools = []
    yield install
    for made in pools:
        made.settle_abandoned()
        assert made.state.ledger.under_way == {}


ROUNDS = 3
"""A leak grows in every round; a pool of connections or a cache that fills, in one."""
WARM_UP = 200


def keeps(work: Callable[[int], None], number: int, blocks: float = 0.7) -> bool:
    """Return whether each call leaves so many blocks of memory behind, after a warm-up.

    One round that leaves fewer is enough for a no.
    """
    work(min(WARM_UP, number // 4))
    return all(_grown_in_a_round(work, number // ROUNDS) >= blocks for _ in range(ROUNDS))


def _grown_in_a_round(work: Callable[[int], None], number: int) -> float:
    gc.collect()
    before = sys.getallocatedblocks()
    work(number)
    gc.collect()
    return (sys.getallocatedblocks() - before) / number


def test_sync_calls_leave_nothing(unrecorded, connect) -> None:
    """Whole answers, and streams, of which each second one is abandoned after its first chunk."""
    unrecorded("A", "B", "C")
    client = connect()

    def work(number: int) -> None:
        for turn in range(number // 2):
            client.models.generate_content(**REQUEST)
            stream = client.models.generate_content_stream(**REQUEST)
            next(stream)
            if turn % 2:
                list(stream)
            stream.close()

    assert not keeps(work, CALLS)


def test_async_calls_leave_nothing(unrecorded, connect) -> None:
    """As many tasks in one loop: whole answers, and streams, each second one abandoned."""
    unrecorded("A", "B", "C")
    client = connect()

    async def some(number: int) -> None:
        for _ in range(number // 10):
            calls = [client.aio.models.generate_content(**REQUEST) for _ in range(8)]
            await asyncio.gather(*calls)
            for left in (False, True):
                stream = await client.aio.models.generate_content_stream(**REQUEST)
                await anext(stream)
                if not left:
                    [chunk async for chunk in stream]
                await stream.aclose()

    with asyncio.Runner() as loop:
        assert not keeps(lambda number: loop.run(some(number)), CALLS)
        loop.run(client.aio.aclose())
