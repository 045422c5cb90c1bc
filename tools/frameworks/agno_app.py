"""An agno program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from typing import Any

from agno.agent import Agent, RunEvent
from agno.models.google import Gemini
from agno.run.base import RunStatus

MODEL = "gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


plain = Agent(model=Gemini(id=MODEL))
with_tool = Agent(model=Gemini(id=MODEL), tools=[get_weather])


def text_of(run: Any) -> str:
    """Return the answer; agno returns an error as the content of a failed run."""
    if run.status == RunStatus.error:
        raise RuntimeError(run.content)
    return str(run.content)


def piece_of(event: Any) -> str:
    """Return the text of one event of a stream."""
    if event.event == RunEvent.run_error:
        raise RuntimeError(event.content)
    return str(event.content) if event.event == RunEvent.run_content and event.content else ""


def sync() -> str:
    """Ask once."""
    return text_of(plain.run(QUESTION))


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return "".join(piece_of(event) for event in plain.run(QUESTION, stream=True))


def tool() -> str:
    """Let an agent answer with its tool."""
    return text_of(with_tool.run(QUESTION))


async def async_() -> str:
    """Ask once, async."""
    return text_of(await plain.arun(QUESTION))


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    return "".join([piece_of(event) async for event in plain.arun(QUESTION, stream=True)])


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return text_of(await with_tool.arun(QUESTION))
