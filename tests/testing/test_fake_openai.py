"""OpenAI's protocol under `/v1beta/openai/`, and keys in the address of native paths."""

import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from keyrot_middleware.testing import FakeGemini, FakeKey

MODEL = "gemini-3.1-flash-lite"
HELLO: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1beta/openai/chat/completions"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading them takes 100 ms a client."""

Sdk = Callable[[FakeKey], openai.OpenAI]


@pytest.fixture
def http(gemini: FakeGemini) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gemini.url, timeout=60, verify=NO_CERTIFICATES) as client:
        yield client


@pytest.fixture
def sdk(gemini: FakeGemini) -> Iterator[Sdk]:
    clients: list[openai.OpenAI] = []

    def make(key: FakeKey) -> openai.OpenAI:
        url = f"{gemini.url}/v1beta/openai/"
        plain = openai.DefaultHttpxClient(verify=NO_CERTIFICATES)
        options: Any = {"base_url": url, "max_retries": 0, "timeout": 10, "http_client": plain}
        clients.append(openai.OpenAI(api_key=key.value, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def bearer(key: FakeKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.value}"}


def test_a_stream_ends_with_done(gemini: FakeGemini, http: httpx.Client) -> None:
    """Chunks are events; without `include_usage` none has usage."""
    response = http.post(CHAT, json={**HELLO, "stream": True}, headers=bearer(gemini.add_key("a")))
    assert response.headers["content-type"] == "text/event-stream"
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "ok from a"
    assert [chunk["choices"][0].get("finish_reason") for chunk in chunks] == [None, None, "stop"]
    assert not any("usage" in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert gemini.log[0].stream


def test_the_openai_sdk_reads_answers_tools_and_schemas(gemini: FakeGemini, sdk: Sdk) -> None:
    """A declared function is called first; its result is answered; a schema is satisfied."""
    completions = sdk(gemini.add_key("a")).chat.completions
    asked = completions.create(**HELLO, tools=[TOOL]).choices[0]
    (call,) = asked.message.tool_calls or ()
    assert (asked.finish_reason, call.type) == ("tool_calls", "function")
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "text"}')
    messages = [*HELLO["messages"], asked.message.to_dict()]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    answered = completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert answered.choices[0].message.content == "ok from a"
    schema = {"name": "s", "schema": {"properties": {"a": {"type": "integer"}}}}
    format_: Any = {"type": "json_schema", "json_schema": schema}
    made = completions.create(**HELLO, response_format=format_).choices[0]
    assert made.message.content == '{"a": 1}'
    assert completions.create(**HELLO, tools=[TOOL], tool_choice="none").choices[0].message.content
