"""LiteLLM's Router against the same server: `make bench-peers` writes PEERS.md.

Needs the extra `bench`. LiteLLM asks `api_base` + `/models/MODEL:generateContent`, so its base is
the server's with the version of the API in it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .calls import MODEL, PER_ROUND, PLAIN, PROMPT, Samples, Variant, async_calls, sync_calls, told
from .page import Row, page
from .server import Place
from .valkey import missing, valkey

__all__ = ["main"]

ROUNDS = 15
REST_S = 0.1
"""LiteLLM logs a call in the background after it has returned."""
MESSAGES = [{"role": "user", "content": PROMPT}]


def variants(redis: str | None) -> dict[str, Variant]:
    """List who takes turns."""
    found = {
        "plain": PLAIN,
        "ours, state in memory": Variant({"state_url": "memory://"}),
        "LiteLLM without Router": _peer(_bare),
        "LiteLLM's Router, no Redis": _peer(_router),
    }
    if redis is not None:
        found["ours, state in Redis"] = Variant({"state_url": redis})
        found["LiteLLM's Router with Redis"] = _peer(lambda place: _router(place, redis_url=redis))
    return found


Ways = tuple[Callable[..., Any], Callable[..., Awaitable[Any]]]
"""How a peer is called, by threads and by tasks."""


def _peer(made: Callable[[Place], Ways]) -> Variant:
    def ask(place: Place) -> Callable[[], Any]:
        completion, _ = made(place)
        return lambda: _full(completion(model=MODEL, messages=MESSAGES))

    def aask(place: Place) -> Callable[[], Awaitable[Any]]:
        _, acompletion = made(place)

        async def call() -> Any:
            return _full(await acompletion(model=MODEL, messages=MESSAGES))

        return call

    return Variant(ask=ask, aask=aask, rest_s=REST_S)


def _full(reply: Any) -> Any:
    assert reply.choices[0].message.content, "an answer without a text"
    return reply


def _bare(place: Place) -> Ways:
    litellm, params = _litellm(), _params(place, 0)

    def completion(**more: Any) -> Any:
        return litellm.completion(**{**more, **params})

    def acompletion(**more: Any) -> Any:
        return litellm.acompletion(**{**more, **params})

    return completion, acompletion


def _router(place: Place, **more: Any) -> Ways:
    models = [
        {"model_name": MODEL, "litellm_params": _params(place, number)}
        for number in range(len(place.values))
    ]
    router = _litellm().Router(model_list=models, **more)
    return router.completion, router.acompletion


def _params(place: Place, number: int) -> dict[str, Any]:
    return {
        "model": f"gemini/{MODEL}",
        "api_base": f"{place.url}/v1beta",
        "api_key": place.values[number],
    }


def _litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet
    return import_module("litellm")


def rows(redis: str | None) -> list[Row]:
    """Measure: who, added per call sync, added per call async."""
    taking_turns = variants(redis)
    sync, asynchronous = sync_calls(taking_turns, ROUNDS), async_calls(taking_turns, ROUNDS)
    names = [name for name in taking_turns if name != "plain"]
    found: list[Row] = [(name, _of(sync, name), _of(asynchronous, name)) for name in sorted(names)]
    if redis is None:
        why = str(missing())
        found.append(("with Redis", why, why))
    return found


def _of(samples: Samples, name: str) -> str:
    return told(samples, name)


def main() -> None:
    """Write the table."""
    if missing() is None:
        with valkey() as url:
            found = rows(url)
    else:
        found = rows(None)
    how = (
        f"LiteLLM {version('litellm')}. Everyone calls the same loopback server with three keys, "
        f"in turns of {PER_ROUND} calls, {ROUNDS} times; a Router has three deployments and its "
        "defaults. Added is p50 less the p50 of the plain SDK in the same run; LiteLLM brings an "
        "HTTP client of its own, whose share is in the row without Router."
    )
    head = ("who", "added per call, sync", "added per call, async")
    text = page("Peers", "make bench-peers", how, head, found)
    (Path(__file__).parent / "PEERS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
