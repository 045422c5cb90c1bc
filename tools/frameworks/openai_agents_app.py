"""A program of the OpenAI Agents SDK as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled
from openai.types.responses import ResponseTextDeltaEvent

MODEL = "gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []

set_default_openai_api("chat_completions")  # Google has no Responses API
set_tracing_disabled(disabled=True)  # traces would go to OpenAI


@function_tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


plain = Agent(name="plain", model=MODEL)
with_tool = Agent(name="with_tool", model=MODEL, tools=[get_weather])


def sync() -> str:
    """Ask once."""
    return str(Runner.run_sync(plain, QUESTION).final_output)


def tool() -> str:
    """Let an agent answer with its tool."""
    return str(Runner.run_sync(with_tool, QUESTION).final_output)


async def async_() -> str:
    """Ask once, async."""
    return str((await Runner.run(plain, QUESTION)).final_output)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    events = Runner.run_streamed(plain, QUESTION).stream_events()
    data = [event.data async for event in events if event.type == "raw_response_event"]
    return "".join(one.delta for one in data if isinstance(one, ResponseTextDeltaEvent))


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return str((await Runner.run(with_tool, QUESTION)).final_output)
