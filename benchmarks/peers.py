"""LiteLLM's Router and proxy beside ours, in one run: `make bench-peers` writes PEERS.md.

LiteLLM requests `api_base` + `/models/MODEL:generateContent`, so its base is the server's with the
version of the API in it. All Routers of a process are notified of each other's calls, and memory is
that of a process, so each row is measured in processes of its own.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from support.servers import BINARIES, Server

from . import proxies
from .calls import (
    MODEL,
    PER_ROUND,
    PLAIN,
    PROMPT,
    Samples,
    Variant,
    async_calls,
    format_added,
    sync_calls,
)
from .page import Row, page
from .serve import peak_mb
from .server import Place

__all__ = ["main"]

ROUNDS = 10
REST_S = 0.1
"""LiteLLM logs a call in the background after it has returned."""
MESSAGES = [{"role": "user", "content": PROMPT}]


def variants(redis: str) -> dict[str, Variant]:
    """List the variants."""
    # A limit that is never reached, so that there is one to check.
    limits: dict[str, Any] = {
        "rpm": 1_000_000,
        "optional_pre_call_checks": ["enforce_model_rate_limits"],
    }
    return {
        "plain": PLAIN,
        "ours, state in memory": Variant({"state_url": "memory://"}, rest_s=REST_S),
        "LiteLLM without Router": _peer(_bare),
        "LiteLLM's Router": _peer(_router),
        "ours, state in Redis": Variant({"state_url": redis, "pool": "bench"}, rest_s=REST_S),
        "LiteLLM's Router with Redis": _peer(partial(_router, redis_url=redis)),
        "the same, holding limits": _peer(partial(_router, redis_url=redis, **limits)),
    }


Ways = tuple[Callable[..., Any], Callable[..., Awaitable[Any]]]
"""How a peer is called, by threads and by tasks."""


def _peer(made: Callable[[Place], Ways]) -> Variant:
    def make_call(place: Place) -> Callable[[], Any]:
        completion, _ = made(place)
        return lambda: _full(completion(model=MODEL, messages=MESSAGES))

    def make_async_call(place: Place) -> Callable[[], Awaitable[Any]]:
        _, acompletion = made(place)

        async def call() -> Any:
            return _full(await acompletion(model=MODEL, messages=MESSAGES))

        return call

    return Variant(make_call=make_call, make_async_call=make_async_call, rest_s=REST_S)


def _full(reply: Any) -> Any:
    assert reply.choices[0].message.content, "an answer without a text"
    return reply


def _bare(place: Place) -> Ways:
    litellm, params = import_module("litellm"), _params(place, 0)

    def completion(**more: Any) -> Any:
        return litellm.completion(**{**more, **params})

    def acompletion(**more: Any) -> Any:
        return litellm.acompletion(**{**more, **params})

    return completion, acompletion


def _router(place: Place, rpm: int | None = None, **more: Any) -> Ways:
    limit = {} if rpm is None else {"rpm": rpm}
    models = [
        {"model_name": MODEL, "litellm_params": _params(place, number) | limit}
        for number in range(len(place.values))
    ]
    router = import_module("litellm").Router(model_list=models, **more)
    return router.completion, router.acompletion


def _params(place: Place, number: int) -> dict[str, Any]:
    return {
        "model": f"gemini/{MODEL}",
        "api_base": f"{place.url}/v1beta",
        "api_key": place.values[number],
    }


def measure(name: str, redis: str, way: str) -> tuple[str, str, int]:
    """Measure one of `variants` in turns with the plain SDK.

    Returns:
        What a call adds, its CPU time, and the most megabytes of the process.
    """
    in_turns = sync_calls if way == "sync" else async_calls
    samples = in_turns({"plain": PLAIN, name: variants(redis)[name]}, ROUNDS)
    more = "–" if name == "plain" else format_added(samples, name)
    return more, _format_cpu(samples, name), peak_mb()


def _format_cpu(samples: Samples, name: str) -> str:
    plain, its = ([turn.cpu_ms for turn in samples[one]] for one in ("plain", name))
    ratio = median(b / a for a, b in zip(plain, its, strict=True))
    return f"{median(its):.2f} ms" + ("" if name == "plain" else f" ({ratio:.2f} × plain)")


def rows(redis: str) -> list[Row]:
    """Measure in a program: variant, added per call and CPU time of a call by each way, memory."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it uses the internet
    found: list[Row] = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for name in variants(redis):
            ways = [fresh.submit(measure, name, redis, way).result() for way in ("sync", "async")]
            (added, cpu, peak), (aadded, acpu, _) = ways
            found.append((name, added, aadded, cpu, acpu, f"{peak} MB"))
    return found


def main() -> None:
    """Write the tables."""
    redis = Server(BINARIES["valkey"])
    try:
        found = rows(redis.strict_url)
    finally:
        redis.remove()
    how = (
        f"LiteLLM {version('litellm')}. All call a loopback server with three keys, in turns with "
        f"the plain SDK of {PER_ROUND} calls, {ROUNDS} times, each row in processes of its own. A "
        "Router has three deployments and its defaults, which hold no limits; in the last row it "
        "holds them, as ours do. Added is the median over the rounds of the difference at p50. CPU "
        "is that of the process, with what it does behind a call. Memory is the most that the "
        "process of the sync calls had, google-genai included, which is in each. LiteLLM has an "
        "HTTP client of its own; its cost is in the row without Router."
    )
    kinds = ("added per call", "CPU of a call")
    head = ("who", *(f"{kind}, {way}" for kind in kinds for way in ("sync", "async")), "memory")
    text = f"{page('Peers', 'make bench-peers', how, head, found)}\n{proxies.section()}"
    (Path(__file__).parent / "PEERS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
