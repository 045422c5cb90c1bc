"""The program: ordinary google-genai code, without a line about keys."""

from __future__ import annotations

from google import genai
from google.genai import types
from google.genai.errors import APIError
from opentelemetry import trace

MODEL = "gemini-3.8-flash"
QUESTION = "Say hello."
TRIP = "What is the weather in Rome?"

tracer = trace.get_tracer("the program")


def get_weather(city: str) -> str:
    """Return the weather in a city."""
    with tracer.start_as_current_span("get_weather"):
        return f"sunny in {city}"


TOOLS = types.GenerateContentConfig(tools=[get_weather])


def ask(client: genai.Client) -> str:
    return client.models.generate_content(model=MODEL, contents=QUESTION).text or ""


def ask_twice(client: genai.Client) -> str:
    try:
        return ask(client)
    except APIError:
        return ask(client)


def stream(client: genai.Client) -> str:
    chunks = client.models.generate_content_stream(model=MODEL, contents=QUESTION)
    return "".join(chunk.text or "" for chunk in chunks)


def use_tool(client: genai.Client) -> str:
    return client.chats.create(model=MODEL, config=TOOLS).send_message(TRIP).text or ""


async def ask_async(client: genai.Client) -> str:
    answer = await client.aio.models.generate_content(model=MODEL, contents=QUESTION)
    return answer.text or ""


async def ask_twice_async(client: genai.Client) -> str:
    try:
        return await ask_async(client)
    except APIError:
        return await ask_async(client)


async def stream_async(client: genai.Client) -> str:
    chunks = await client.aio.models.generate_content_stream(model=MODEL, contents=QUESTION)
    return "".join([chunk.text or "" async for chunk in chunks])


async def use_tool_async(client: genai.Client) -> str:
    answer = await client.aio.chats.create(model=MODEL, config=TOOLS).send_message(TRIP)
    return answer.text or ""
