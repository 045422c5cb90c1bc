"""Streams that are interleaved, dropped, cancelled, closed, or read elsewhere."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import aclosing
from typing import Any

import pytest
from opentelemetry import trace
from support.scripted_pool import Chunks, ScriptedPool

from keyrot_middleware.telemetry import semconv as names


def scripted(traced: Any, streams: int = 1, chunks: int = 3) -> ScriptedPool:
    made = ScriptedPool([traced.observer], keys=("flash_01",))
    made.script = {"flash_01": [Chunks(chunks, tracer=traced.tracer) for _ in range(streams)]}
    return made


async def iterations(count: int) -> None:
    """Let the loop run so many iterations."""
    for _ in range(count):
        await asyncio.sleep(0)


def outcomes(traced: Any) -> set[Any]:
    return {span.attributes[names.ATTEMPT_OUTCOME] for span in traced.named("attempt")}


def statuses(traced: Any) -> set[str]:
    spans = [*traced.named("attempt"), *traced.named("generate_content")]
    return {span.status.status_code.name for span in spans}


def test_spans_of_the_reader_between_chunks_are_its_own(traced: Any) -> None:
    """Spans of the consumer of two interleaved streams are children of the consumer's span."""
    made = scripted(traced, streams=2)
    with traced.tracer.start_as_current_span("reader") as reader:
        for _ in zip(made.stream(), made.stream(), strict=True):
            traced.tracer.start_span("work").end()
            assert trace.get_current_span() is reader
    assert {traced.parent_of(span) for span in traced.named("work")} == {"reader"}
    assert {traced.parent_of(span) for span in traced.named("HTTP")} == {"attempt flash_01"}
    assert {traced.parent_of(span) for span in traced.named("generate_content")} == {"reader"}
    assert len(traced.named("generate_content")) == len(traced.named("attempt")) == 2


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stream_that_its_reader_abandons(traced: Any, how: str) -> None:
    """Closed or dropped, the spans end at once, are no error, and are abandoned."""
    stream = scripted(traced).stream()
    next(stream)
    if how == "close":
        stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert outcomes(traced) == {"abandoned"}
    assert statuses(traced) == {"UNSET"}


def test_a_stream_that_is_read_in_another_thread(traced: Any) -> None:
    """Reading on elsewhere neither moves the spans nor leaves one current there."""
    stream = scripted(traced, chunks=4).stream()
    with traced.tracer.start_as_current_span("opener"):
        next(stream)
    left: list[Any] = []

    def read() -> None:
        list(stream)
        left.append(trace.get_current_span())

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(10)
    assert left == [trace.INVALID_SPAN]
    assert outcomes(traced) == {"success"}
    assert traced.parent_of(traced.named("generate_content")[0]) == "opener"


async def test_a_cancelled_reader(traced: Any) -> None:
    """Cancellation is raised again, and is the error of both spans."""
    made = scripted(traced)
    made.script["flash_01"][0].gate = asyncio.Event()

    async def read() -> None:
        async with aclosing(await made.astream()) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(read())
    await iterations(10)
    assert made.seen
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes(traced) == {"abandoned"}
    for span in (traced.named("attempt")[0], traced.named("generate_content")[0]):
        assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
        assert span.status.description == "CancelledError"


async def test_a_hundred_streams_at_once(traced: Any) -> None:
    """Read to the end, closed, cancelled or dropped in any mixture, each span ends exactly once."""
    made = scripted(traced, streams=100, chunks=5)

    async def read(number: int) -> None:
        with traced.tracer.start_as_current_span(f"reader {number}") as reader:
            stream = await made.astream()
            async for chunk in stream:
                await asyncio.sleep(0)
                traced.tracer.start_span(f"work {number}").end()
                assert trace.get_current_span() is reader
                if number % 4 == 1 and chunk == 2:
                    await stream.aclose()
                if number % 4 == 2 and chunk == 2:
                    raise asyncio.CancelledError

    ended = await asyncio.gather(*map(read, range(100)), return_exceptions=True)
    assert sum(isinstance(end, asyncio.CancelledError) for end in ended) == 25
    del ended
    gc.collect()
    await iterations(10)  # for the loop to close dropped streams
    assert len(traced.named("attempt")) == len(traced.named("generate_content")) == 100
    assert all(traced.parent_of(s) == f"reader {s.name[5:]}" for s in traced.named("work"))
    assert {traced.parent_of(span) for span in traced.named("HTTP")} == {"attempt flash_01"}
