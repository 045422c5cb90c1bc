"""Ordinary answers of the models' verbs, whole and in chunks."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keyrot_middleware.testing.request import FakeRequest
from keyrot_middleware.testing.schema import example

__all__ = [
    "ModelAnswers",
    "Spoken",
    "pick",
]

# Reading JSON fields in either spelling: Google takes `displayName` and `display_name` alike ---


_CAPITAL = re.compile("([A-Z])")


def pick(value: Any, camel: str) -> Any:
    """Return a field of a JSON object by its camelCase name, or its snake_case one, or None."""
    if not isinstance(value, dict):
        return None
    if camel in value:
        return value[camel]
    return value.get(_CAPITAL.sub(r"_\1", camel).lower())


Spoken = str | dict[str, Any]
_PIECES = 4
_EMBEDDING = [0.013, -0.007, 0.021, 0.002]


@dataclass(slots=True)
class ModelAnswers:
    """What the models say.

    Attributes:
        answer: A text, a part, a whole response, or a function of the request's body that makes
            one; None is the default: `ok from LABEL`, a function call if tools are declared, or
            JSON if a response schema is given.
        function_args: The arguments of function calls; None makes them from the schema.
        thoughts: The `thoughtsTokenCount`.
        continuations: How many tokens of continuation were given, to tell them apart.
    """

    answer: Spoken | Callable[[dict[str, Any]], Spoken] | None = None
    function_args: dict[str, Any] | None = None
    thoughts: int = 5
    continuations: int = 0

    def generate(self, asked: FakeRequest, *, continues: bool = False) -> dict[str, Any]:
        """Return a whole GenerateContentResponse."""
        said = self._said(asked)
        if isinstance(said, dict) and "candidates" in said:
            return {**self._frame(asked, said), **said}
        part = {"text": said} if isinstance(said, str) else said
        candidate = self._candidate(part)
        if continues:
            candidate |= self._continuation(asked)
        return {"candidates": [candidate], **self._frame(asked, part)}

    def chunks(self, asked: FakeRequest, *, continues: bool = False) -> list[dict[str, Any]]:
        """Return the same as the chunks of a stream.

        Every chunk has the usage so far; only the last has a finish reason and the true usage.
        """
        whole = self.generate(asked, continues=continues)
        pieces = _split(_text_of(whole))
        if len(pieces) < 2:
            return [whole]
        last = whole["candidates"][0]
        chunks = [self._part_chunk(asked, whole, pieces, upto) for upto in range(1, len(pieces))]
        final = {**last, "content": {"role": "model", "parts": [{"text": pieces[-1]}]}}
        return [*chunks, {**whole, "candidates": [final]}]

    def embedding(self, asked: FakeRequest) -> dict[str, Any]:
        """Return an EmbedContentResponse or a BatchEmbedContentsResponse."""
        if asked.route.verb == "embedContent":
            return {"embedding": {"values": _EMBEDDING}}
        return {"embeddings": [{"values": _EMBEDDING} for _ in asked.body.get("requests", ())]}

    def predict(self, _asked: FakeRequest) -> dict[str, Any]:
        """Return a PredictResponse with one image of one pixel."""
        pixel = (
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
            "RU5ErkJggg=="
        )
        return {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": pixel}]}

    def interaction(self, asked: FakeRequest) -> dict[str, Any]:
        """Return a completed Interaction, with the fields of each SDK version."""
        text = _text_of(self.generate(asked))
        content = [{"type": "text", "text": text}]
        spoken = _tokens(text)
        return {
            "id": f"v1_{secrets.token_hex(12)}",
            "object": "interaction",
            "status": "completed",
            "model": asked.body.get("model", ""),
            "role": "model",
            "created": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
            "outputs": content,
            "steps": [{"type": "model_output", "content": content}],
            "usage": {
                "total_input_tokens": asked.tokens,
                "total_output_tokens": spoken,
                "total_tokens": asked.tokens + spoken,
            },
        }

    def _said(self, asked: FakeRequest) -> Spoken:
        if callable(self.answer):
            return self.answer(asked.body)
        return self.answer if self.answer is not None else self._default(asked)

    def _default(self, asked: FakeRequest) -> Spoken:
        if (declared := _function_wanted(asked.body)) is not None:
            return {"functionCall": {"name": declared["name"], "args": self._args(declared)}}
        config = pick(asked.body, "generationConfig")
        schema = pick(config, "responseJsonSchema") or pick(config, "responseSchema")
        return json.dumps(example(schema)) if schema else f"ok from {asked.label}"

    def _args(self, declared: dict[str, Any]) -> dict[str, Any]:
        if self.function_args is not None:
            return self.function_args
        schema = pick(declared, "parametersJsonSchema") or declared.get("parameters")
        return dict(example(schema)) if schema else {}

    def _candidate(self, part: dict[str, Any]) -> dict[str, Any]:
        content = {"role": "model", "parts": [part]}
        return {"content": content, "finishReason": "STOP", "index": 0}

    def _continuation(self, asked: FakeRequest) -> dict[str, str]:
        self.continuations += 1
        token = base64.b64encode(f"{asked.label}/{self.continuations}".encode()).decode()
        return {"finishReason": "CONTINUATION", "continuationToken": token}

    def _frame(self, asked: FakeRequest, part: dict[str, Any]) -> dict[str, Any]:
        return {
            "usageMetadata": self._usage(asked, _tokens(json.dumps(part))),
            "modelVersion": asked.route.model,
            "responseId": secrets.token_urlsafe(16),
        }

    def _usage(self, asked: FakeRequest, spoken: int) -> dict[str, Any]:
        return {
            "promptTokenCount": asked.tokens,
            "candidatesTokenCount": spoken,
            "thoughtsTokenCount": self.thoughts,
            "totalTokenCount": asked.tokens + spoken + self.thoughts,
        }

    def _part_chunk(
        self, asked: FakeRequest, whole: dict[str, Any], pieces: list[str], upto: int
    ) -> dict[str, Any]:
        part = {"text": pieces[upto - 1]}
        usage = self._usage(asked, upto)
        content = {"role": "model", "parts": [part]}
        return {**whole, "usageMetadata": usage, "candidates": [{"content": content, "index": 0}]}


def _tokens(text: str) -> int:
    return max(1, -(-len(text) // 4))


def _function_wanted(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first declared function, unless its response was the last thing said."""
    mode = pick(pick(pick(body, "toolConfig"), "functionCallingConfig"), "mode")
    if mode == "NONE" or _answers_a_call(body):
        return None
    for tool in body.get("tools") or ():
        for declared in pick(tool, "functionDeclarations") or ():
            return dict(declared)
    return None


def _answers_a_call(body: dict[str, Any]) -> bool:
    contents = body.get("contents") or [{}]
    last = contents[-1] if isinstance(contents, list) else contents
    return any(pick(part, "functionResponse") for part in last.get("parts") or ())


def _text_of(response: dict[str, Any]) -> str:
    parts = response["candidates"][0].get("content", {}).get("parts") or ()
    return "".join(part.get("text", "") for part in parts)


def _split(text: str) -> list[str]:
    """Cut a text into a few pieces that give it back when joined."""
    words = [word if not index else f" {word}" for index, word in enumerate(text.split(" "))]
    size = max(1, -(-len(words) // _PIECES))
    joined = ["".join(words[at : at + size]) for at in range(0, len(words), size)]
    return [piece for piece in joined if piece]
