"""A pydantic-ai program over google-genai or openai, without a line about key rotation."""

from __future__ import annotations

import os

from pydantic_ai import Agent

MODEL = os.environ["MODEL"]
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


plain = Agent(MODEL)
with_tool = Agent(MODEL, tools=[get_weather])


def sync() -> str:
    """Ask once."""
    return plain.run_sync(QUESTION).output


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return "".join(plain.run_stream_sync(QUESTION).stream_text(delta=True))


def tool() -> str:
    """Let an agent answer with its tool."""
    return with_tool.run_sync(QUESTION).output


async def async_() -> str:
    """Ask once, async."""
    return (await plain.run(QUESTION)).output


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    async with plain.run_stream(QUESTION) as answer:
        return "".join([text async for text in answer.stream_text(delta=True)])


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return (await with_tool.run(QUESTION)).output
