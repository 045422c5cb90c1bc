"""The fakes of `keyrot_middleware.testing`, whose models also call a function.

They call `TOOL` once, if it is declared and the question names the weather; every other question
gets a text that begins with "ok". Programs like Claude Code declare functions with each question.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from keyrot_middleware.testing import FakeAnthropic, FakeGemini, FakeOpenAI
from keyrot_middleware.testing.fake_openai import Asked


class Tool(NamedTuple):
    """A function that a program declares, and what a model calls it with."""

    name: str = "weather"
    arguments: str = '{"city": "Paris"}'


RESULTS = ("functionResponse", '"tool"', "function_call_output", "tool_result")
"""What a body has that answers a function call: Gemini's, OpenAI's two, Anthropic's."""


def is_call_due(tool: Tool, body: dict[str, Any]) -> bool:
    """Return whether the model calls the function now."""
    text = json.dumps([body.get(part) for part in ("contents", "messages", "input")])
    is_asked = "weather" in text and not any(result in text for result in RESULTS)
    return is_asked and f'"{tool.name}"' in json.dumps(body.get("tools"))


class Gemini(FakeGemini):
    """Gemini, with a tool."""

    def __init__(self, tool: Tool) -> None:
        super().__init__()
        call = {"functionCall": {"name": tool.name, "args": json.loads(tool.arguments)}}
        self.answer(lambda body: call if is_call_due(tool, body) else "ok from Gemini")


class OpenAI(FakeOpenAI):
    """OpenAI and Mistral, with a tool."""

    def __init__(self, tool: Tool, flavor: Any = "openai") -> None:
        super().__init__(flavor)
        self._tool = tool

    def reply(self, asked: Asked) -> Any:
        """Return the body of an answer; a list: the events of a stream."""
        usual, name, arguments = super().reply(asked), self._tool.name, self._tool.arguments
        if self.flavor == "mistral" and asked.path == "files":
            return {**usual, "sample_type": "instruct", "source": "upload"}
        if not is_call_due(self._tool, asked.body):
            return usual
        if asked.path == "responses":
            call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name}
            call |= {"arguments": arguments, "status": "completed"}
            return _response(usual, call)
        function = {"name": name, "arguments": arguments}
        message = {"tool_calls": [{"id": "call00001", "type": "function", "function": function}]}
        return _chat(usual, message)


class Anthropic(FakeAnthropic):
    """Anthropic, with a tool."""

    def __init__(self, tool: Tool) -> None:
        super().__init__()
        self._tool = tool

    def reply(self, asked: Asked) -> Any:
        """Return the body of an answer; a list: the events of a stream."""
        usual, arguments = super().reply(asked), self._tool.arguments
        if asked.path != "messages" or not is_call_due(self._tool, asked.body):
            return usual
        call = {"type": "tool_use", "id": "toolu_1", "name": self._tool.name, "input": {}}
        if isinstance(usual, dict):
            call["input"] = json.loads(arguments)
            return {**usual, "content": [call], "stop_reason": "tool_use"}
        delta = {"type": "input_json_delta", "partial_json": arguments}
        usual[-2]["delta"]["stop_reason"] = "tool_use"
        begin = {"type": "content_block_start", "index": 0, "content_block": call}
        piece = {"type": "content_block_delta", "index": 0, "delta": delta}
        return [usual[0], begin, piece, *usual[-3:]]


def _chat(usual: Any, message: dict[str, Any]) -> Any:
    """Return a chat completion, or the chunks of one, that calls a function."""
    if isinstance(usual, dict):
        choice = usual["choices"][0]
        choice |= {"message": {"role": "assistant", "content": None, **message}}
        choice |= {"finish_reason": "tool_calls"}
        return usual
    last = next(n for n, chunk in enumerate(usual) if chunk["choices"][0]["finish_reason"])
    delta = {"role": "assistant", "tool_calls": [{"index": 0, **message["tool_calls"][0]}]}
    usual[0]["choices"][0]["delta"] = delta
    usual[last]["choices"][0]["finish_reason"] = "tool_calls"
    return [usual[0], *usual[last:]]


def _response(usual: Any, call: dict[str, Any]) -> Any:
    """Return a response, or the events of one, that calls a function."""
    if isinstance(usual, dict):
        return {**usual, "output": [call]}
    at = {"output_index": 0, "item_id": call["id"]}
    begun = {**call, "arguments": "", "status": "in_progress"}
    arguments = call["arguments"]
    middle = (
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.function_call_arguments.delta", **at, "delta": arguments},
        {"type": "response.function_call_arguments.done", **at, "arguments": arguments},
        {"type": "response.output_item.done", "output_index": 0, "item": call},
    )
    last = {**usual[-1], "response": {**usual[-1]["response"], "output": [call]}}
    events = [usual[0], *middle, last]
    return [{**event, "sequence_number": n} for n, event in enumerate(events)]
