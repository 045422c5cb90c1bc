"""What is recorded and replayed: one program and pool per cassette. Also run by `make record`."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from google import genai
from google.genai import _api_client

MODEL = "gemini-2.5-flash"
PROMPT = "Count from one to five, in words."
ANSWER = "one two three four five"
"""What the fake answers; a recording of Google only has to contain the middle part."""

Program = Callable[[genai.Client], str]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cassette.

    Attributes:
        program: Makes one call with a client, closes it, and returns the text of the answer.
        calls: How often the program runs.
        traffic: The name of the key and the HTTP status of each request, in order.
    """

    program: Program
    calls: int
    traffic: tuple[tuple[str, int], ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.traffic))


def plain(client: genai.Client) -> str:
    with client:
        return client.models.generate_content(model=MODEL, contents=PROMPT).text or ""


def stream(client: genai.Client) -> str:
    with client:
        chunks = client.models.generate_content_stream(model=MODEL, contents=PROMPT)
        return "".join(chunk.text or "" for chunk in chunks)


def plain_async(client: genai.Client) -> str:
    async def call() -> str:
        async with client.aio as aio:
            return (await aio.models.generate_content(model=MODEL, contents=PROMPT)).text or ""

    return _run(call())


def stream_async(client: genai.Client) -> str:
    async def call() -> str:
        async with client.aio as aio:
            chunks = await aio.models.generate_content_stream(model=MODEL, contents=PROMPT)
            return "".join([chunk.text or "" async for chunk in chunks])

    return _run(call())


def _run(call: Coroutine[Any, Any, str]) -> str:
    """Run a call that the SDK sends by httpx: vcrpy's place in aiohttp is above the pool."""
    with patch.object(_api_client, "has_aiohttp", False):
        return asyncio.run(call)


# An exhausted minute, an invalid key, a good key; the second call uses the good key first.
_FAILOVER = (("key_1", 429), ("key_2", 400), ("key_3", 200), ("key_3", 200))
_SUSPENDED = (("key_1", 403),)

SCENARIOS = {
    "failover_sync": Scenario(plain, 2, _FAILOVER),
    "failover_sync_stream": Scenario(stream, 2, _FAILOVER),
    "failover_async": Scenario(plain_async, 2, _FAILOVER),
    "failover_async_stream": Scenario(stream_async, 2, _FAILOVER),
    "suspended_sync": Scenario(plain, 1, _SUSPENDED),
    "suspended_async_stream": Scenario(stream_async, 1, _SUSPENDED),
}


def values_for(names: Iterable[str]) -> dict[str, str]:
    """Make a value for each name: the same each time, shaped like a key, and FAKE."""
    return {name: f"AIzaFAKE{hashlib.sha256(name.encode()).hexdigest()[:31]}" for name in names}


def traffic(cassette: object) -> tuple[tuple[str, int], ...]:
    """Read the name of the key and the status of each request of a `vcr` cassette."""
    pairs = zip(cassette.requests, cassette.responses, strict=True)  # type: ignore[attr-defined]
    return tuple((sent.headers["x-key-name"], got["status"]["code"]) for sent, got in pairs)
