"""A program of llm and llm-gemini as its user wrote it, without a line about key rotation."""

from __future__ import annotations

import llm

MODEL = "gemini/gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


model = llm.get_model(MODEL)
async_model = llm.get_async_model(MODEL)


def sync() -> str:
    """Ask once."""
    return str(model.prompt(QUESTION, stream=False).text())


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return "".join(model.prompt(QUESTION))


def tool() -> str:
    """Let the model use a tool."""
    return str(model.chain(QUESTION, tools=[get_weather]).text())


async def async_() -> str:
    """Ask once, async."""
    return str(await async_model.prompt(QUESTION, stream=False).text())


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    return "".join([chunk async for chunk in async_model.prompt(QUESTION)])


async def async_tool() -> str:
    """Let the model use a tool, async."""
    return str(await async_model.chain(QUESTION, tools=[get_weather]).text())
