"""The four ways to create an interaction: sync and async, whole and as a stream."""

from typing import Any

import pytest
from google import genai

from support.modes import MODEL, run

SDK = tuple(int(part) for part in genai.__version__.split(".")[:2])

SDK_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        r"\w+ usage is experimental",
        "Async interactions client cannot use aiohttp",
        "Granular retry options are not supported",
    )
]
"""Of parts of the SDK that are not stable, and of 1.x."""


def text_of(interaction: Any) -> str:
    value = interaction.model_dump(mode="json")
    parts = value.get("outputs") or value["steps"][-1]["content"]
    return "".join(part["text"] for part in parts)


def joined(events: list[Any]) -> str:
    """Return the text of a stream's events, or raise for an error event."""
    values = [event.model_dump(mode="json") for event in events]
    for value in values:
        if value.get("event_type") == "error":
            return f"error event: {value['error']['code']}"
    deltas = [value["delta"] for value in values if value.get("event_type") == "step.delta"]
    return "".join(delta["text"] for delta in deltas)


def create_sync(mode: str, client: Any, **asked: Any) -> str:
    asked = {"model": MODEL, "input": "hello", **asked}
    if "agent" in asked:
        del asked["model"]
    if mode == "sync":
        return text_of(client.interactions.create(**asked))
    return joined(list(client.interactions.create(stream=True, **asked)))


async def create_async(mode: str, client: Any, **asked: Any) -> str:
    asked = {"model": MODEL, "input": "hello", **asked}
    if "agent" in asked:
        del asked["model"]
    if mode == "async":
        return text_of(await client.aio.interactions.create(**asked))
    stream = await client.aio.interactions.create(stream=True, **asked)
    return joined([event async for event in stream])


def create(mode: str, client: Any, times: int = 1, **asked: Any) -> list[str]:
    """Create *times* interactions, one after the other; return their texts."""
    if not mode.startswith("async"):
        return [create_sync(mode, client, **asked) for _ in range(times)]

    async def all_of_them() -> list[str]:
        return [await create_async(mode, client, **asked) for _ in range(times)]

    return list(run(client, all_of_them))


def error_type(name: str) -> Any:
    """Return an exception class of the SDK for Interactions, such as `RateLimitError`."""
    if SDK < (2, 0):
        from google.genai._interactions import _exceptions as errors
    else:
        from google.genai._gaos.lib import compat_errors as errors  # type: ignore[no-redef]
    return getattr(errors, name)


def keys_of(gemini: Any) -> list[str]:
    return [request.key for request in gemini.log]
