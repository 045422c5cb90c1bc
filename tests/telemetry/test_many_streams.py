"""A hundred streams of the real SDK at once, ended in every way: spans keep their parents.

Each reader has a span of its own, and makes one for its work after each chunk. However a stream
ends, no span of a reader may become a child of ours, each of ours ends once (the fixture
`traced` checks), and OpenTelemetry may not complain ("Failed to detach context").
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from support.otel import RecordedMetrics

import keyrot_middleware

STREAMS = 100
REQUEST = {"model": "gemini-2.5-flash", "contents": "hello"}
LEFT = 2
"""Chunks of the fake's answer after the first."""
THREAD_FATES = ("end", "close", "drop", "hand over", "interleave")
TASK_FATES = ("end", "close", "drop", "hand over", "cancel")


@pytest.fixture
def watched(pool: Any, traced: Any) -> RecordedMetrics:
    """Install a pool with tracing and metrics."""
    metered = RecordedMetrics()
    pool("a", "b").observers = (traced.observer, metered.observer)
    return metered


class Readers:
    """What all readers do, and the checks of the result."""

    def __init__(self, traced: Any) -> None:
        self.traced = traced

    def work(self, number: int, current: object) -> None:
        """Do what a consumer does with a chunk; its own span must be the current one."""
        assert trace.get_current_span() is current
        self.traced.tracer.start_span(f"work {number}").end()

    def ended(self, watched: RecordedMetrics, streams: int) -> None:
        """Check that every span has ended and has its parent, and that all were counted."""
        gc.collect()
        traced = self.traced
        calls, attempts = traced.named("generate_content"), traced.named("attempt")
        assert len(calls) == len(attempts) == streams
        assert {traced.parent_of(one)[:6] for one in calls} == {"reader"}
        assert {traced.parent_of(one) for one in attempts} == {"generate_content gemini-2.5-flash"}
        work = traced.named("work")
        readers = {None, *(f"reader {number}" for number in range(STREAMS))}
        assert len(work) >= STREAMS
        assert {traced.parent_of(one) for one in work} <= readers
        ours = {one.context.span_id for one in (*calls, *attempts)}
        assert not [one for one in work if one.parent and one.parent.span_id in ours]
        failed = [one for one in calls if one.attributes.get("error.type")]
        counted = watched.by("keyrot.call.attempts", "error.type")
        assert counted[None] == streams - len(failed)
        assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_hundred_streams_in_threads(traced: Any, watched: RecordedMetrics, connect: Any) -> None:
    """Read to the end, closed, dropped, read on in other threads, two of them in turns."""
    readers, client = Readers(traced), connect()
    elsewhere = ThreadPoolExecutor(8)

    def read_on(number: int, stream: Iterator[Any]) -> int:
        chunks = 0
        for _ in stream:
            readers.work(number, trace.INVALID_SPAN)
            chunks += 1
        return chunks

    def read(number: int) -> None:
        fate = THREAD_FATES[number % 5]
        with traced.tracer.start_as_current_span(f"reader {number}") as reader:
            streams = [client.models.generate_content_stream(**REQUEST) for _ in range(2)]
            mine, other = streams
            next(mine)
            readers.work(number, reader)
            if fate == "close":
                mine.close()
            elif fate == "hand over":
                assert elsewhere.submit(read_on, number, mine).result(30) == LEFT
            elif fate != "drop":
                for _ in zip(mine, other, strict=False):
                    readers.work(number, reader)
            readers.work(number, reader)
            if fate != "end":
                other.close()

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(read, range(STREAMS)))
    elsewhere.shutdown()
    keyrot_middleware.status()  # streams that were closed or dropped are settled
    # The other stream was sent only if it was read.
    readers.ended(watched, STREAMS + STREAMS // 5 * 2)


async def test_a_hundred_streams_in_tasks(
    traced: Any, watched: RecordedMetrics, connect: Any
) -> None:
    """Read to the end, closed, dropped, cancelled while they wait, read on in other tasks."""
    readers, client = Readers(traced), connect()

    async def read_on(number: int, stream: AsyncIterator[Any], current: object) -> int:
        chunks = 0
        async for _ in stream:
            readers.work(number, current)
            chunks += 1
        return chunks

    async def read(number: int) -> None:
        fate = TASK_FATES[number % 5]
        with traced.tracer.start_as_current_span(f"reader {number}") as reader:
            stream = await client.aio.models.generate_content_stream(**REQUEST)
            await anext(stream)
            readers.work(number, reader)
            if fate == "close":
                await stream.aclose()
            elif fate == "hand over":  # a task begins in a copy of its creator's context
                assert await asyncio.create_task(read_on(number, stream, reader)) == LEFT
            elif fate == "cancel":
                task = asyncio.create_task(read_on(number, stream, reader))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            elif fate == "end":
                await read_on(number, stream, reader)
            readers.work(number, reader)

    try:
        await asyncio.gather(*map(read, range(STREAMS)))
        for _ in range(500):  # for the loop to close dropped streams
            gc.collect()
            if len(traced.named("generate_content")) == STREAMS:
                break
            await asyncio.sleep(0.01)
    finally:
        await client.aio.aclose()
    readers.ended(watched, STREAMS)
