"""Added per call: the same client, with and without the pool, in turns of a few calls each."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from google import genai
from google.genai import types

import keyrot_middleware

from .server import server

MODEL = "gemini-2.5-flash"
PROMPT = "Say in one sentence what a moving average is. " * 4
ROUNDS = 60
PER_ROUND = 20

Samples = dict[str, list[float]]


def sync_calls(variants: dict[str, Callable[[], Any]]) -> Samples:
    """Time `generate_content` in turns; microseconds per variant, `plain` always among them."""
    with server(3) as (url, host, values):
        client = genai.Client(api_key=values[0], http_options=types.HttpOptions(base_url=url))

        def call() -> float:
            begun = time.perf_counter()
            client.models.generate_content(model=MODEL, contents=PROMPT)
            return (time.perf_counter() - begun) * 1e6

        return _interleave(call, variants, values, host)


def async_calls(variants: dict[str, Callable[[], Any]]) -> Samples:
    """Do what `sync_calls` does with the asyncio client."""
    with server(3) as (url, host, values), asyncio.Runner() as runner:
        client = genai.Client(api_key=values[0], http_options=types.HttpOptions(base_url=url))

        async def one() -> float:
            begun = time.perf_counter()
            await client.aio.models.generate_content(model=MODEL, contents=PROMPT)
            return (time.perf_counter() - begun) * 1e6

        samples = _interleave(lambda: runner.run(one()), variants, values, host)
        runner.run(client.aio.aclose())
        return samples


def _interleave(
    call: Callable[[], float], variants: dict[str, Callable[[], Any]], keys: list[str], host: str
) -> Samples:
    samples: Samples = {"plain": [], **{name: [] for name in variants}}
    for round_ in range(ROUNDS + 2):  # the first two warm up
        for name, prepare in {"plain": lambda: None, **variants}.items():
            undo = prepare()
            if name != "plain":
                keyrot_middleware.install(keys=keys, allowed_hosts=(host,))
            call()
            taken = [call() for _ in range(PER_ROUND)]
            keyrot_middleware.uninstall()
            if undo is not None:
                undo()
            if round_ >= 2:
                samples[name] += taken
    return samples


def p50(values: list[float]) -> float:
    """Give the median."""
    return statistics.median(values)
