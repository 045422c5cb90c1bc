"""A Google ADK program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from google.adk.agents import Agent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import InMemoryRunner
from google.genai import types

if TYPE_CHECKING:
    from google.adk.events import Event

MODEL = "gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


def runner_of(agent: Agent) -> InMemoryRunner:
    """Return a runner of the agent that makes sessions as they are named."""
    runner = InMemoryRunner(agent=agent, app_name=agent.name)
    runner.auto_create_session = True
    return runner


plain = runner_of(Agent(name="plain", model=MODEL))
with_tool = runner_of(Agent(name="with_tool", model=MODEL, tools=[get_weather]))


def request(*, stream: bool) -> dict[str, Any]:
    """One question in a session of its own."""
    mode = StreamingMode.SSE if stream else StreamingMode.NONE
    return {
        "user_id": "user",
        "session_id": uuid.uuid4().hex,
        "new_message": types.UserContent(QUESTION),
        "run_config": RunConfig(streaming_mode=mode),
    }


def text_of(events: list[Event]) -> str:
    """Return the agent's text, without counting streamed text twice."""
    contents = [event.content for event in events if event.content and not event.partial]
    return "".join(part.text or "" for content in contents for part in content.parts or [])


def sync() -> str:
    """Ask once."""
    return text_of(list(plain.run(**request(stream=False))))


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return text_of(list(plain.run(**request(stream=True))))


def tool() -> str:
    """Let an agent answer with its tool."""
    return text_of(list(with_tool.run(**request(stream=False))))


async def async_() -> str:
    """Ask once, async."""
    return text_of([event async for event in plain.run_async(**request(stream=False))])


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    return text_of([event async for event in plain.run_async(**request(stream=True))])


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return text_of([event async for event in with_tool.run_async(**request(stream=False))])
