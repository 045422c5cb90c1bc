"""Added per call: the same client, with and without the pool, in turns of a few calls each."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from google import genai
from google.genai import types

import keyrot_middleware
from keyrot_middleware.runtime import current_pool

from .server import Place, server

MODEL = "gemini-3.1-flash-lite"
PROMPT = "Say in one sentence what a moving average is. " * 4
ROUNDS = 40
PER_ROUND = 40
WARM_UP = 40
"""Untimed calls before each turn. After so many a call runs as many instructions as after
hundreds, with the pool and without: nothing of the patching is left."""


class Turn(NamedTuple):
    """Some calls, one after the other."""

    micros: list[float]
    """What each took."""
    cpu_ms: float
    """CPU time of the process for each, its work in the background included."""


Samples = dict[str, list[Turn]]
"""The turns of each variant."""
Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make the same call."""

    settings: Mapping[str, Any] | None = None
    """Arguments of install(), beside the keys; None: without the pool."""
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """A context that is entered for the turn."""
    make_call: Callable[[Place], Call] | None = None
    """Make a function that calls another library; None: the SDK's `generate_content`."""
    make_async_call: Callable[[Place], AsyncCall] | None = None
    rest_s: float = 0.0
    """Pause after a turn for its background work, so that it does not slow other variants down."""


PLAIN = Variant()


def sync_calls(variants: Mapping[str, Variant], rounds: int = ROUNDS) -> Samples:
    """Time one call after the other, in turns."""
    with server(3) as place:
        client = client_of(place)

        def sdk() -> Any:
            return client.models.generate_content(model=MODEL, contents=PROMPT)

        calls = {
            name: variant.make_call(place) if variant.make_call else sdk
            for name, variant in variants.items()
        }

        def turn(name: str) -> Turn:
            call, variant = calls[name], variants[name]
            with variant.around(), _pool(variant, place):
                for _ in range(WARM_UP):
                    call()
                before = time.process_time()
                taken = [_timed(call) for _ in range(PER_ROUND)]
                time.sleep(variant.rest_s)
                return Turn(taken, _cpu_ms(before))

        return _interleave(variants, turn, rounds)


def async_calls(variants: Mapping[str, Variant], rounds: int = ROUNDS) -> Samples:
    """Do what `sync_calls` does with the asyncio client, one task, one loop."""
    with server(3) as place, asyncio.Runner() as runner:
        client = client_of(place)

        def sdk() -> Awaitable[Any]:
            return client.aio.models.generate_content(model=MODEL, contents=PROMPT)

        calls = {
            name: variant.make_async_call(place) if variant.make_async_call else sdk
            for name, variant in variants.items()
        }

        async def turn(name: str) -> Turn:
            call, variant = calls[name], variants[name]
            with variant.around(), _pool(variant, place):
                for _ in range(WARM_UP):
                    await call()
                before = time.process_time()
                taken = [await _atimed(call) for _ in range(PER_ROUND)]
                await asyncio.sleep(variant.rest_s)  # at least one iteration: connections close
                return Turn(taken, _cpu_ms(before))

        samples = _interleave(variants, lambda name: runner.run(turn(name)), rounds)
        runner.run(client.aio.aclose())
        return samples


def p50(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def added(samples: Samples, name: str, over: str = "plain") -> tuple[float, float]:
    """Return the added microseconds over another variant, and the ratio to it.

    Each is the median over all rounds of what one round shows at p50: other load of the machine
    comes and goes, and affects the two turns of a round alike.
    """
    bases, theirs = ([p50(turn.micros) for turn in samples[one]] for one in (over, name))
    turns = list(zip(bases, theirs, strict=True))
    return p50([b - a for a, b in turns]), p50([b / a for a, b in turns])


def micros(samples: Samples, name: str) -> float:
    """Return what a call takes at p50."""
    return p50([one for turn in samples[name] for one in turn.micros])


def format_added(samples: Samples, name: str) -> str:
    """Format what *name* adds to the plain SDK."""
    more, ratio = added(samples, name)
    return f"{more:.0f} µs ({ratio:.3f} × plain, {micros(samples, 'plain'):.0f} µs)"


def client_of(place: Place) -> genai.Client:
    """Make a client of the SDK, with one of the server's keys."""
    options = types.HttpOptions(base_url=place.url)
    return genai.Client(api_key=place.values[0], http_options=options)


@contextmanager
def _pool(variant: Variant, place: Place) -> Iterator[None]:
    if variant.settings is not None:
        hosts = (place.host,)
        keyrot_middleware.install(keys=place.values, allowed_hosts=hosts, **variant.settings)
    try:
        yield
        pool = current_pool()
        if pool is not None and pool.state.degraded:
            raise RuntimeError("Redis was lost in the middle of a turn: run the benchmark again")
    finally:
        keyrot_middleware.uninstall()


def _interleave(
    variants: Mapping[str, Variant], turn: Callable[[str], Turn], rounds: int
) -> Samples:
    samples: Samples = {name: [] for name in variants}
    for round_ in range(rounds + 2):  # the first two warm up
        for name in variants:
            taken = turn(name)
            if round_ >= 2:
                samples[name].append(taken)
    return samples


def _cpu_ms(before: float) -> float:
    return (time.process_time() - before) * 1e3 / PER_ROUND


def _timed(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e6


async def _atimed(call: AsyncCall) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1e6
