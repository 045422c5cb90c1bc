"""An AutoGen program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

MODEL = "gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


# For a model of Gemini this client goes to Google by itself.
client = OpenAIChatCompletionClient(model=MODEL)
MESSAGES = [UserMessage(content=QUESTION, source="user")]


async def async_() -> str:
    """Ask once, async."""
    return str((await client.create(MESSAGES)).content)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    chunks = [chunk async for chunk in client.create_stream(MESSAGES)]
    return "".join(chunk for chunk in chunks if isinstance(chunk, str))


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    agent = AssistantAgent(
        "weatherman", model_client=client, tools=[get_weather], reflect_on_tool_use=True
    )
    return str((await agent.run(task=QUESTION)).messages[-1].to_text())
