"""Async streams of which 2 % come late, with and without a deadline.

`PYTHONPATH=tests python -m benchmarks.first_token` prints a line for each.

Each way of calling sends streams to a server on loopback. Its late ones have no head for `LATE_S`,
or the head at once and then nothing, or comments. Every chunk carries the number of its stream.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

import aiohttp
import httpx
from google import genai
from support.pool import LeaseLog

import keyrot_middleware
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing.server import Head, HttpRequest, LoopbackServer, ResponsePlan

__all__ = ["main"]

STREAMS, AT_ONCE = int(os.environ.get("STREAMS", "3000")), 16
SHARE, LATE_S, DEADLINE_S = 0.02, 20.0, 8.0
MODEL, PIECES = "gemini-2.5-flash", 6
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
Way = tuple[Callable[[], AsyncIterator[Any]], Callable[[], Awaitable[Any]]]
HEADERS = {"x-goog-api-key": "keyrot-pool"}


class Late:
    """Answers with streams of which some are late."""

    def __init__(self, seed: str, streams: int) -> None:
        # Between comments; 0: no head either. google-genai cannot read comments.
        self.comments = (0.0,) if "genai" in seed else (0.0, 1.0, LATE_S)
        self.random, self.numbers = random.Random(seed), count(1)
        self.are_late = set(self.random.sample(range(1, streams + 1), int(streams * SHARE)))
        self.requests = self.late = 0
        self.server = LoopbackServer(self.answer, self.answer)

    def answer(self, http: HttpRequest) -> ResponsePlan:
        self.requests += 1
        number = next(self.numbers)
        content = {"role": "model", "parts": [{"text": f"{number} "}]}
        event = f"data: {json.dumps({'candidates': [{'content': content}]})}\n\n".encode()
        delay, comments = self.random.uniform(0.01, 0.03), 0.0
        if number in self.are_late:
            self.late += 1
            delay, comments = LATE_S, self.random.choice(self.comments)
        head = Head(200, "text/event-stream", time.time(), None)
        return ResponsePlan(
            head, (event,) * PIECES, lambda: None, delay_s=delay, gap_s=0.001, keep_alive_s=comments
        )


# Ways of calling: each returns what opens a stream of texts, and what closes the client -----------


async def _texts(lines: Any) -> AsyncIterator[Any]:
    async for line in lines:
        text = (line if isinstance(line, str) else line.decode()).strip()
        if text.startswith("data:"):
            body = json.loads(text[5:])
            yield body["candidates"][0]["content"]["parts"][0]["text"]


def by_httpx(url: str) -> Way:
    client = httpx.AsyncClient(timeout=60)

    async def texts() -> AsyncIterator[Any]:
        async with client.stream("POST", url + NATIVE, json=BODY, headers=HEADERS) as response:
            async for one in _texts(response.aiter_lines()):
                yield one

    return texts, client.aclose


def by_aiohttp(url: str) -> Way:
    session = aiohttp.ClientSession()

    async def texts() -> AsyncIterator[Any]:
        async with session.post(url + NATIVE, json=BODY, headers=HEADERS) as response:
            async for one in _texts(response.content):
                yield one

    return texts, session.close


def by_genai(url: str) -> Way:
    client = genai.Client(api_key="keyrot-pool", http_options={"base_url": url})

    async def texts() -> AsyncIterator[Any]:
        ask = client.aio.models.generate_content_stream
        async for chunk in await ask(model=MODEL, contents="hello"):
            yield chunk.text

    return texts, client.aio.aclose


NATIVE = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
WAYS = (by_httpx, by_aiohttp, by_genai)


# Run ----------------------------------------------------------------------------------------------


class Read:
    """What was read of streams: when the first text came, and whether all are of one stream."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.mixed = 0
        self.failed: list[BaseException] = []

    def add(self, first: float, texts: list[str]) -> None:
        self.first.append(first)
        words = "".join(texts).split()
        self.mixed += len(words) != PIECES or len(set(words)) != 1

    def at(self, share: float) -> float:
        if not self.first:
            return 0.0
        return sorted(self.first)[min(int(len(self.first) * share), len(self.first) - 1)]


async def read(make: Callable[[str], Way], url: str, number: int) -> Read:
    found, (opener, close), turn = Read(), make(url), asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turn:
            began, first, texts = time.monotonic(), 0.0, []
            try:
                async for text in opener():
                    first = first or time.monotonic() - began
                    texts.append(text or "")
            except Exception as error:
                found.failed.append(error)
            else:
                found.add(first, texts)

    await asyncio.gather(*[one() for _ in range(number)])
    await close()
    return found


def run(way: Any, number: int, deadline_s: float) -> tuple[Read, Late, LeaseLog]:
    """Send streams, and wait until all of them are booked."""
    late = Late(f"{way.__name__} {deadline_s}", number)
    late.server.start()
    host = f"127.0.0.1:{late.server.port}"
    keyrot_middleware.install(
        keys=[f"FAKE-{name}" for name in "ABCD"], allowed_hosts=(host,), first_token_s=deadline_s
    )
    pool = current_pool()
    assert pool is not None
    ledger = LeaseLog(pool.state, pool)
    url = f"http://{host}"
    try:
        found = asyncio.run(read(way, url, number))
        pool.settle_abandoned()
        ledger.check()
    finally:
        keyrot_middleware.uninstall()
        late.server.stop()
    return found, late, ledger


def main() -> int:
    """Print a line for each way."""
    number = STREAMS // len(WAYS)
    print(f"{number} streams each ({number // 5} without a deadline), {AT_ONCE} at once")
    print(
        "way                 deadline  p50    p98    p99   late  cut  more requests  failed mixed"
    )
    wrong = 0
    for way in WAYS:
        for deadline in (0.0, DEADLINE_S):
            sent = number if deadline else number // 5
            found, late, ledger = run(way, sent, deadline)
            kinds = [kind.value for kind in ledger.kinds]
            assert len(kinds) == late.requests == len(ledger.leases)
            times = [found.at(share) for share in (0.5, 0.98, 0.99)]
            more = late.requests / sent - 1
            print(
                f"{way.__name__:19} {deadline or '-':>8}  "
                + "  ".join(f"{one:5.2f}" for one in times)
                + f"  {late.late:4}  {kinds.count('failure'):3}  {more:12.1%}  "
                f"{len(found.failed):6} {found.mixed:5}",
                flush=True,
            )
            if found.failed:
                print(repr(found.failed[0]))
            wrong += bool(found.failed or found.mixed)
            wrong += bool(deadline) and (found.at(0.99) > DEADLINE_S + 1 or more > 0.03)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
