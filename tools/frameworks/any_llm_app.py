"""A program of any-llm as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from typing import Any

from any_llm import AnyLLM

REQUEST: dict[str, Any] = {
    "model": "gemini-3.1-flash-lite",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
}
tool_runs: list[str] = []
llm = AnyLLM.create("gemini")


def text_of(chunk: Any) -> str:
    """Return the text of one chunk of a stream."""
    return "".join(choice.delta.content or "" for choice in chunk.choices)


def sync() -> str:
    """Ask once."""
    return str(llm.completion(**REQUEST).choices[0].message.content)


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return "".join(text_of(chunk) for chunk in llm.completion(**REQUEST, stream=True))


async def async_() -> str:
    """Ask once, async."""
    return str((await llm.acompletion(**REQUEST)).choices[0].message.content)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    chunks = await llm.acompletion(**REQUEST, stream=True)
    return "".join([text_of(chunk) async for chunk in chunks])
