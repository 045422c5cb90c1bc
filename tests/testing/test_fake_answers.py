"""Ordinary answers: text, tools, schemas, continuation, lists, embeddings; sync and async."""

from __future__ import annotations

import pytest
from google import genai
from google.genai import types
from pydantic import BaseModel

from keyrot_middleware.testing import Reply

MODEL = "gemini-2.5-flash"
MAJOR = int(genai.__version__.split(".")[0])


def test_an_answer_has_usage_and_names(gemini, connect) -> None:
    """Tokens add up, and the model and the response have their ids."""
    client = connect(gemini.add_key("a"))
    response = client.models.generate_content(model=MODEL, contents="twelve chars")
    usage = response.usage_metadata
    assert response.text == "ok from a"
    assert (usage.prompt_token_count, usage.thoughts_token_count) == (3, 5)
    spoken = usage.candidates_token_count
    assert usage.total_token_count == 3 + 5 + spoken
    assert (response.model_version, bool(response.response_id)) == (MODEL, True)
    assert response.candidates[0].finish_reason == types.FinishReason.STOP


def test_a_test_sets_the_answers(gemini, connect) -> None:
    """A text, a function of the body, a part, and a whole response."""
    client = connect(gemini.add_key("a"))

    def call() -> types.GenerateContentResponse:
        return client.models.generate_content(model=MODEL, contents="hello")

    gemini.answer("forty-two")
    assert call().text == "forty-two"
    gemini.answer(lambda body: body["contents"][0]["parts"][0]["text"].upper())
    assert call().text == "HELLO"
    gemini.answer({"functionCall": {"name": "f", "args": {"x": 1}}})
    assert call().function_calls[0].args == {"x": 1}
    gemini.answer({"candidates": [{"finishReason": "SAFETY"}]})
    assert call().candidates[0].finish_reason == types.FinishReason.SAFETY
    gemini.answer(None)
    assert call().text == "ok from a"


def test_a_declared_function_is_called_and_its_response_answered(gemini, connect) -> None:
    """The SDK runs the tool once, sends its response, and gets a text: two requests."""
    client = connect(gemini.add_key("a"))
    calls: list[tuple[str, int]] = []

    def weather(city: str, days: int) -> str:
        """Return the weather."""
        calls.append((city, days))
        return "sunny"

    # SDK 1.75 does not resolve annotations that are strings.
    weather.__annotations__.update(city=str, days=int)
    chat = client.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[weather]))
    assert chat.send_message("hello").text == "ok from a"
    gemini.function_args({"city": "Oslo", "days": 3})
    assert chat.send_message("again").text == "ok from a"
    assert calls == [("text", 1), ("Oslo", 3)]
    assert gemini.sent("a") == 4


def test_a_response_schema_is_satisfied(gemini, connect) -> None:
    """Structured output parses into the caller's own class."""

    class Recipe(BaseModel):
        name: str
        minutes: int
        steps: list[str]

    client = connect(gemini.add_key("a"))
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_schema=Recipe
    )
    response = client.models.generate_content(model=MODEL, contents="cake", config=config)
    assert response.parsed == Recipe(name="text", minutes=1, steps=["text"])


@pytest.mark.skipif(MAJOR < 2, reason="the SDK follows continuations since 2.0")
def test_a_continuation_is_followed_hop_by_hop(gemini, connect) -> None:
    """Two scripted hops make three requests; each hands back the token of the one before."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.CONTINUATION, Reply.CONTINUATION)
    response = client.models.generate_content(model=MODEL, contents="hello")
    assert response.text == "ok from a" * 3
    tokens = [request.body.get("continuationToken") for request in gemini.log]
    assert tokens[0] is None
    assert len(set(tokens)) == 3
