"""A DSPy program as its user wrote it, without a line about key rotation."""

from __future__ import annotations

import dspy
from dspy.streaming import StreamListener

QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


dspy.configure(lm=dspy.LM("gemini/gemini-3.1-flash-lite", cache=False))
plain = dspy.Predict("question -> answer")
with_tool = dspy.ReAct("question -> answer", tools=[get_weather], max_iters=1)


def streamed(*, is_async: bool) -> object:
    """Return the program as one that streams."""
    listeners = [StreamListener(signature_field_name="answer")]
    return dspy.streamify(plain, stream_listeners=listeners, async_streaming=is_async)


def sync() -> str:
    """Ask once."""
    return str(plain(question=QUESTION).answer)


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return list(streamed(is_async=False)(question=QUESTION))[-1].answer


def tool() -> str:
    """Let an agent answer with its tool."""
    return str(with_tool(question=QUESTION).answer)


async def async_() -> str:
    """Ask once, async."""
    return str((await plain.acall(question=QUESTION)).answer)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    return [chunk async for chunk in streamed(is_async=True)(question=QUESTION)][-1].answer


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return str((await with_tool.acall(question=QUESTION)).answer)
