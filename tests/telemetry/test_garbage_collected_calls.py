"""Calls that the garbage collector closes: their spans end once, with the pool's next call."""

from __future__ import annotations

import asyncio
import gc
import types
from collections import deque
from typing import Any

from support.scripted_pool import Chunks, ScriptedPool

from keyrot_middleware.telemetry import semconv as names


def check_that_the_spans_ended_once(traced: Any, made: ScriptedPool) -> None:
    """No span has ended in the collector, each has after the next call; `traced` checks: once."""
    assert traced.named("attempt") == []
    made.run()
    attempts = traced.named("attempt")
    outcomes = [span.attributes[names.ATTEMPT_OUTCOME] for span in attempts]
    assert sorted(outcomes) == ["abandoned", "success"]
    assert len(traced.named("generate_content")) == 2


def test_a_reader_that_is_collected(traced: Any) -> None:
    """A task that waits for the second chunk of a stream, and whose loop is closed."""
    made = ScriptedPool([traced.observer], keys=("flash_01",))
    made.pool.abandoned = deque()
    chunks = Chunks(3)
    chunks.gate = asyncio.Event()
    made.script = {"flash_01": [chunks]}

    async def read() -> None:
        async for _ in await made.astream():
            pass

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains of a task that is still pending
    task = loop.create_task(read())
    for _ in range(100):  # turns of the loop, until it waits at the gate
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task, loop, chunks
    made.script = {}
    gc.collect()
    check_that_the_spans_ended_once(traced, made)


def test_a_call_that_is_collected(traced: Any) -> None:
    """A coroutine that waits for its answer, and is dropped in a cycle."""
    made = ScriptedPool([traced.observer], keys=("flash_01",))
    made.pool.abandoned = deque()

    @types.coroutine
    def hang(lease: Any) -> Any:
        yield

    made.asend = hang  # type: ignore[method-assign,assignment]
    call = made.arun()
    call.send(None)
    cycle: list[Any] = [call]
    cycle.append(cycle)
    del call, cycle
    gc.collect()
    check_that_the_spans_ended_once(traced, made)
