"""An instructor program over openai as its user wrote it, without a line about key rotation."""

from __future__ import annotations

from typing import Any

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "gemini-3.1-flash-lite"
tool_runs: list[str] = []


class Answer(BaseModel):
    """The answer to a question."""

    text: str


client = instructor.from_openai(OpenAI())
async_client = instructor.from_openai(AsyncOpenAI())
REQUEST: dict[str, Any] = {
    "model": MODEL,
    "response_model": Answer,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
}


def sync() -> str:
    """Ask once."""
    return str(client.chat.completions.create(**REQUEST).text)


def stream() -> str:
    """Ask once and read the answer as it grows."""
    return [str(partial.text) for partial in client.chat.completions.create_partial(**REQUEST)][-1]


async def async_() -> str:
    """Ask once, async."""
    return str((await async_client.chat.completions.create(**REQUEST)).text)


async def async_stream() -> str:
    """Ask once and read the answer as it grows, async."""
    partials = async_client.chat.completions.create_partial(**REQUEST)
    return [str(partial.text) async for partial in partials][-1]
