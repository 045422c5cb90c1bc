"""A Haystack program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from typing import Any

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import tool as as_tool
from haystack_integrations.components.generators.google_genai import GoogleGenAIChatGenerator

MODEL = "gemini-3.1-flash-lite"
MESSAGES = [ChatMessage.from_user("What is the weather in Paris?")]
tool_runs: list[str] = []


@as_tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


llm = GoogleGenAIChatGenerator(model=MODEL)
agent = Agent(chat_generator=GoogleGenAIChatGenerator(model=MODEL), tools=[get_weather])


def sync() -> str:
    """Ask once."""
    return str(llm.run(MESSAGES)["replies"][0].text)


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    chunks: list[str] = []
    llm.run(MESSAGES, streaming_callback=lambda chunk: chunks.append(chunk.content))
    return "".join(chunks)


def tool() -> str:
    """Let an agent answer with its tool."""
    return last_of(agent.run(MESSAGES))


async def async_() -> str:
    """Ask once, async."""
    return str((await llm.run_async(MESSAGES))["replies"][0].text)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    chunks: list[str] = []

    async def keep(chunk: StreamingChunk) -> None:
        chunks.append(chunk.content)

    await llm.run_async(MESSAGES, streaming_callback=keep)
    return "".join(chunks)


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return last_of(await agent.run_async(MESSAGES))


def last_of(run: dict[str, Any]) -> str:
    """Return the text of an agent's last message."""
    return str(run["messages"][-1].text)
