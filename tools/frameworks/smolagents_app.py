"""A smolagents program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from smolagents import CodeAgent, LiteLLMModel
from smolagents import tool as as_tool

QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


@as_tool
def get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: Its name.
    """
    tool_runs.append(city)
    return "sunny"


# By default it waits two minutes or more after a 429, and tries again.
model = LiteLLMModel("gemini/gemini-3.1-flash-lite", retry=False)
plain = CodeAgent(tools=[], model=model)
streaming = CodeAgent(tools=[], model=model, stream_outputs=True)
with_tool = CodeAgent(tools=[get_weather], model=model)


def sync() -> str:
    """Ask once."""
    return str(plain.run(QUESTION))


def stream() -> str:
    """Ask once and read the steps as they come, and what the model writes chunk by chunk."""
    return str(list(streaming.run(QUESTION, stream=True))[-1].output)


def tool() -> str:
    """Let an agent answer with its tool."""
    return str(with_tool.run(QUESTION))
