"""The models' answers, whole and in chunks, the tokens they count, and both in OpenAI's protocol.

Google serves that protocol under `/v1beta/openai/`. Sources:
docs/gemini-api.md#the-openai-protocol; usage in every chunk: ogx-ai/ogx#5122; no usage of
embeddings, and no index of the first: spring-projects/spring-ai#2485, #7019. How Google sends an
error inside a stream is not recorded: it has the native form here.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from keyrot_middleware.testing.request import FakeRequest, FakeRoute

# JSON fields in either spelling: Google accepts both `displayName` and `display_name` ----------


_CAPITAL = re.compile("([A-Z])")


def get_field(value: Any, camel: str) -> Any:
    """Return a field of a JSON object by its camelCase name, or its snake_case one, or None."""
    if not isinstance(value, dict):
        return None
    if camel in value:
        return value[camel]
    return value.get(_CAPITAL.sub(r"_\1", camel).lower())


ModelAnswer = str | dict[str, Any]
_PIECES = 4
_LEAST_CACHED = 1_024
"""Tokens; shorter beginnings are not cached."""
_EMBEDDING = [0.013, -0.007, 0.021, 0.002]


@dataclass(slots=True)
class ModelAnswers:
    """Generates the models' answers.

    Attributes:
        answer: A text, a part, a whole response, or a function of the request's body that
            returns one; None is the default: `ok from LABEL`, a function call if tools are
            declared, or JSON if a response schema is given.
        function_args: The arguments of function calls; None makes them from the schema.
        thoughts: The `thoughtsTokenCount`.
        continuations: How many continuation tokens were issued; makes each unique.
        signs_thoughts: Parts have a thought signature of their model.
        signatures: How many of them were issued; makes each unique.
        first: By project, model and beginning of a prompt the first request that had it: later ones
            find it in the project's implicit cache.
    """

    answer: ModelAnswer | Callable[[dict[str, Any]], ModelAnswer] | None = None
    function_args: dict[str, Any] | None = None
    thoughts: int = 5
    continuations: int = 0
    signs_thoughts: bool = False
    signatures: int = 0
    first: dict[tuple[str, str, str], FakeRequest] = field(default_factory=dict)

    def generate(self, request: FakeRequest, *, continues: bool = False) -> dict[str, Any]:
        """Return a whole GenerateContentResponse."""
        content = self._content(request)
        if isinstance(content, dict) and "candidates" in content:
            return {**self._response_metadata(request, content), **content}
        part = {"text": content} if isinstance(content, str) else dict(content)
        if self.signs_thoughts:
            part["thoughtSignature"] = self._sign(request.route.model)
        candidate = self._candidate(part)
        if continues:
            candidate |= self._continuation(request)
        return {"candidates": [candidate], **self._response_metadata(request, part)}

    def chunks(self, request: FakeRequest, *, continues: bool = False) -> list[dict[str, Any]]:
        """Return the same answer as the chunks of a stream.

        Every chunk has the usage so far; only the last has a finish reason and the true usage.
        """
        whole = self.generate(request, continues=continues)
        pieces = _split(_response_text(whole))
        if len(pieces) < 2:
            return [whole]
        last = whole["candidates"][0]
        chunks = [self._part_chunk(request, whole, pieces, upto) for upto in range(1, len(pieces))]
        part = {**last["content"]["parts"][0], "text": pieces[-1]}
        final = {**last, "content": {"role": "model", "parts": [part]}}
        return [*chunks, {**whole, "candidates": [final]}]

    def embedding(self, request: FakeRequest) -> dict[str, Any]:
        """Return an EmbedContentResponse or a BatchEmbedContentsResponse."""
        if request.route.verb == "embedContent":
            return {"embedding": {"values": _EMBEDDING}}
        return {"embeddings": [{"values": _EMBEDDING} for _ in request.body.get("requests", ())]}

    def predict(self, _request: FakeRequest) -> dict[str, Any]:
        """Return a PredictResponse with one image of one pixel."""
        pixel = (
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
            "RU5ErkJggg=="
        )
        return {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": pixel}]}

    def interaction(self, request: FakeRequest, *, continues: bool = False) -> dict[str, Any]:
        """Return a completed Interaction, with the fields of each SDK version."""
        text = _response_text(self.generate(request))
        content = [{"type": "text", "text": text}]
        output_tokens = _estimate_tokens(text)
        named = {name: request.body[name] for name in ("agent",) if name in request.body}
        value = {
            "id": f"v1_{secrets.token_hex(12)}",
            "object": "interaction",
            "status": "completed",
            "model": request.body.get("model", ""),
            **named,
            **_served_tier(request, "service_tier"),
            "role": "model",
            "created": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
            "outputs": content,
            "steps": [{"type": "model_output", "content": content}],
            "usage": {
                "total_input_tokens": request.tokens,
                "total_output_tokens": output_tokens,
                "total_thought_tokens": self.thoughts,
                "total_tokens": request.tokens + output_tokens + self.thoughts,
            },
        }
        if continues:
            token = self._continuation(request)["continuationToken"]
            value |= {"status": "requires_continuation", "continuation_token": token}
        return value

    def events(self, interaction: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream that ends with this interaction."""
        name = interaction["id"]
        begun = {"id": name, "object": "interaction", "status": "in_progress"}
        if interaction.get("model"):
            begun["model"] = interaction["model"]
        pieces = _split("".join(part["text"] for part in interaction.get("outputs", ())))
        deltas = [{"type": "text", "text": piece} for piece in pieces]
        events: list[dict[str, Any]] = [
            {"event_type": "interaction.created", "interaction": begun},
            {"event_type": "interaction.status_update", "interaction_id": name}
            | {"status": "in_progress"},
            {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
            *({"event_type": "step.delta", "index": 0, "delta": delta} for delta in deltas),
            {"event_type": "step.stop", "index": 0},
            {"event_type": "interaction.completed", "interaction": interaction},
        ]
        return [{**event, "event_id": str(number)} for number, event in enumerate(events, 1)]

    def decision(self, request: FakeRequest) -> dict[str, Any]:
        """Return the answers to the questions of a decision."""
        questions = request.body.get("questions") or {}
        return {
            "answers": {name: {"type": "noul", "value": "yes"} for name in questions},
            "usage": {"total_input_tokens": request.tokens, "total_output_tokens": 1},
        }

    def _content(self, request: FakeRequest) -> ModelAnswer:
        if callable(self.answer):
            return self.answer(request.body)
        return self.answer if self.answer is not None else self._default(request)

    def _default(self, request: FakeRequest) -> ModelAnswer:
        if (declared := _function_to_call(request.body)) is not None:
            return {"functionCall": {"name": declared["name"], "args": self._args(declared)}}
        config = get_field(request.body, "generationConfig")
        schema = get_field(config, "responseJsonSchema") or get_field(config, "responseSchema")
        return json.dumps(example_value(schema)) if schema else f"ok from {request.label}"

    def _args(self, declared: dict[str, Any]) -> dict[str, Any]:
        if self.function_args is not None:
            return self.function_args
        schema = get_field(declared, "parametersJsonSchema") or declared.get("parameters")
        return dict(example_value(schema)) if schema else {}

    def _candidate(self, part: dict[str, Any]) -> dict[str, Any]:
        content = {"role": "model", "parts": [part]}
        return {"content": content, "finishReason": "STOP", "index": 0}

    def has_foreign_signature(self, request: FakeRequest) -> bool:
        """Return whether a request carries a thought signature that another model made."""
        contents = request.body.get("contents")
        parts = [part for one in contents or () for part in one.get("parts") or ()]
        found = (get_field(part, "thoughtSignature") for part in parts)
        return self.signs_thoughts and any(
            _signer(signature) != request.route.model for signature in found if signature
        )

    def _sign(self, model: str) -> str:
        self.signatures += 1
        return base64.b64encode(f"{model}/{self.signatures}".encode()).decode()

    def _continuation(self, request: FakeRequest) -> dict[str, str]:
        self.continuations += 1
        token = base64.b64encode(f"{request.label}/{self.continuations}".encode()).decode()
        return {"finishReason": "CONTINUATION", "continuationToken": token}

    def _response_metadata(self, request: FakeRequest, part: dict[str, Any]) -> dict[str, Any]:
        return {
            "usageMetadata": self._usage(request, _estimate_tokens(json.dumps(part))),
            "modelVersion": request.model,
            "responseId": secrets.token_urlsafe(16),
        }

    def _usage(self, request: FakeRequest, output_tokens: int) -> dict[str, Any]:
        return {
            "promptTokenCount": request.tokens,
            "candidatesTokenCount": output_tokens,
            "thoughtsTokenCount": self.thoughts,
            "totalTokenCount": request.tokens + output_tokens + self.thoughts,
            **_served_tier(request, "serviceTier"),
            **self._cached(request),
        }

    def _cached(self, request: FakeRequest) -> dict[str, int]:
        """Return how much of the prompt is cached: a long beginning that is not new."""
        body = request.body
        begin = json.dumps([get_field(body, "systemInstruction"), (body.get("contents") or [0])[0]])
        tokens = min(_estimate_tokens(begin), request.tokens)
        name = request.project, request.route.model, begin
        if tokens < _LEAST_CACHED or self.first.setdefault(name, request) is request:
            return {}
        return {"cachedContentTokenCount": tokens}

    def _part_chunk(
        self, request: FakeRequest, whole: dict[str, Any], pieces: list[str], upto: int
    ) -> dict[str, Any]:
        part = {"text": pieces[upto - 1]}
        usage = self._usage(request, upto)
        content = {"role": "model", "parts": [part]}
        return {**whole, "usageMetadata": usage, "candidates": [{"content": content, "index": 0}]}


def _signer(signature: str) -> str:
    try:
        return base64.urlsafe_b64decode(signature.replace("+", "-")).decode().partition("/")[0]
    except ValueError:
        return ""


def _served_tier(request: FakeRequest, field: str) -> dict[str, str]:
    """Return the service tier of an answer: the one that the request asks for, if it asks."""
    tier = get_field(request.body, "serviceTier")
    return {field: tier} if isinstance(tier, str) else {}


def _estimate_tokens(text: str) -> int:
    return max(1, -(-len(text) // 4))


def _function_to_call(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first declared function, unless the last content is its response."""
    mode = get_field(get_field(get_field(body, "toolConfig"), "functionCallingConfig"), "mode")
    if mode == "NONE" or _is_function_response(body):
        return None
    for tool in body.get("tools") or ():
        for declared in get_field(tool, "functionDeclarations") or ():
            return dict(declared)
    return None


def _is_function_response(body: dict[str, Any]) -> bool:
    contents = body.get("contents") or [{}]
    last = contents[-1] if isinstance(contents, list) else contents
    return any(get_field(part, "functionResponse") for part in last.get("parts") or ())


def _response_text(response: dict[str, Any]) -> str:
    parts = response["candidates"][0].get("content", {}).get("parts") or ()
    return "".join(part.get("text", "") for part in parts)


def _split(text: str) -> list[str]:
    """Split a text into a few pieces that join to the same text."""
    words = [word if not index else f" {word}" for index, word in enumerate(text.split(" "))]
    size = max(1, -(-len(words) // _PIECES))
    joined = ["".join(words[at : at + size]) for at in range(0, len(words), size)]
    return [piece for piece in joined if piece]


# Values that satisfy a JSON schema, for function calls and structured answers ---------------------

_DEFAULTS: dict[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
}


def example_value(schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """Return a value for a schema of OpenAPI (`STRING`) or JSON Schema (`string`) kind.

    Args:
        schema: The schema; `$ref` into `$defs`, `anyOf`, `enum`, `const` and `default` work.
        root: Where `$defs` are; the schema itself if None.
    """
    root = schema if root is None else root
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return example_value(_resolve(schema["$ref"], root), root)
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return example_value(schema[choice][0], root)
    return _by_type(schema, root)


def _by_type(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = str(kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example_value(inner, root) for name, inner in properties.items()}
    if kind == "array":
        return [example_value(schema.get("items") or {}, root)]
    if kind in {"integer", "number"} and "minimum" in schema:
        return max(_DEFAULTS[kind], schema["minimum"])
    return _DEFAULTS.get(kind, "text")


def _resolve(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


# Input tokens of a request ---------------------------------------------------------------------

_INPUTS = ("input", "system_instruction")
"""Of an interaction."""
_TEXT_FIELDS = ("systemInstruction", "contents", "content", "requests", "generateContentRequest")


def _texts(value: Any) -> Iterator[str]:
    """Yield every `text` inside a JSON value."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "text" and isinstance(inner, str):
                yield inner
            else:
                yield from _texts(inner)


def _inputs(value: Any) -> Iterator[str]:
    """Yield the texts of an interaction's input, which may be a text itself."""
    if isinstance(value, str):
        yield value
    else:
        yield from _texts(value)


def count_tokens(body: dict[str, Any]) -> int:
    """Return a quarter of the characters of all texts, rounded up; at least 1."""
    characters = sum(len(text) for name in _TEXT_FIELDS for text in _texts(get_field(body, name)))
    characters += sum(len(text) for name in _INPUTS for text in _inputs(body.get(name)))
    return max(1, -(-characters // 4))


DONE = b"data: [DONE]\n\n"
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}


def bearer_tokens(headers: list[str]) -> list[str]:
    """Return the tokens of the `Authorization` headers that are of the scheme Bearer."""
    parts = (header.partition(" ") for header in headers)
    return [token.strip() for scheme, _, token in parts if scheme.lower() == "bearer"]


def to_native(route: FakeRoute, body: dict[str, Any]) -> tuple[FakeRoute, dict[str, Any]]:
    """Return the native verb and body of a request, so that one set of rules holds for both."""
    if route.verb == "embeddings.create":
        given = body.get("input")
        if not isinstance(given, list):
            return replace(route, verb="embedContent"), {**_named(body), "content": _text(given)}
        requests = [{"content": _text(text)} for text in given]
        return replace(route, verb="batchEmbedContents"), {**_named(body), "requests": requests}
    if route.verb == "chat.completions.create":
        verb = "streamGenerateContent" if body.get("stream") else "generateContent"
        return replace(route, verb=verb), _generate(body)
    return route, body


def _named(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": body["model"]} if "model" in body else {}


def _text(value: Any) -> dict[str, Any]:
    return {"parts": [{"text": value}]}


def _generate(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages") or ()
    contents = [_content(one) for one in messages]
    native = {**_named(body), "contents": [one for one in contents if one["role"] != "system"]}
    if system := [part for one in contents if one["role"] == "system" for part in one["parts"]]:
        native["systemInstruction"] = {"parts": system}
    functions = [tool["function"] for tool in body.get("tools") or () if "function" in tool]
    if functions:
        native["tools"] = [{"functionDeclarations": functions}]
    if body.get("tool_choice") == "none":
        native["toolConfig"] = {"functionCallingConfig": {"mode": "NONE"}}
    format_ = body.get("response_format") or {}
    if schema := (format_.get("json_schema") or {}).get("schema"):
        native["generationConfig"] = {"responseJsonSchema": schema}
    if "stream_options" in body:
        native["stream_options"] = body["stream_options"]
    return native


def _content(message: dict[str, Any]) -> dict[str, Any]:
    given, role = message.get("content"), message.get("role")
    # A part with a text is the same in both protocols; no other one is read.
    parts = given if isinstance(given, list) else [{"text": given}] if given else []
    if role == "tool":
        return {"role": "user", "parts": [{"functionResponse": {"response": {"result": given}}}]}
    parts = [*parts, *(_call(call) for call in message.get("tool_calls") or ())]
    names = {"assistant": "model", "system": "system", "developer": "system"}
    return {"role": names.get(str(role), "user"), "parts": parts}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    signature = ((call.get("extra_content") or {}).get("google") or {}).get("thought_signature")
    named = {"functionCall": {"name": call["function"]["name"]}}
    return named | ({"thoughtSignature": signature} if signature else {})


# From a native response to OpenAI's --------------------------------------------------------------


def from_native(value: Any, request: FakeRequest) -> Any:
    """Return a native response, or the chunks of a stream, in OpenAI's form."""
    verb = request.route.verb
    if verb == "models.list":
        return {"object": "list", "data": [_model(one) for one in value.get("models", ())]}
    if verb == "models.get":
        return _model(value)
    if verb in ("embedContent", "batchEmbedContents"):
        vectors = value["embeddings"] if "embeddings" in value else [value["embedding"]]
        data = [_embedding(number, one["values"]) for number, one in enumerate(vectors)]
        return {"object": "list", "data": data, "model": request.route.model}
    if isinstance(value, list):
        counted = (request.body.get("stream_options") or {}).get("include_usage", False)
        chunks = [_completion(one, request, "delta", counted=counted) for one in value]
        return [{**one, "object": "chat.completion.chunk"} for one in chunks]
    return _completion(value, request, "message", counted=True)


def _model(native: dict[str, Any]) -> dict[str, Any]:
    names = {"id": native["name"], "display_name": native["displayName"]}
    return {**names, "object": "model", "owned_by": "google"}


def _embedding(index: int, values: list[float]) -> dict[str, Any]:
    named = {"object": "embedding", "embedding": values}
    return {**named, "index": index} if index else named  # as JSON of protobuf: no zero


def _completion(
    native: dict[str, Any], request: FakeRequest, field: str, *, counted: bool
) -> dict[str, Any]:
    choices = [_choice(one, request, field) for one in native["candidates"]]
    usage = {"usage": _usage(native["usageMetadata"])} if counted else {}
    return {
        "choices": choices,
        "created": int(request.now),
        "id": native["responseId"],
        "model": native["modelVersion"],
        "object": "chat.completion",
        **usage,
    }


def _choice(candidate: dict[str, Any], request: FakeRequest, field: str) -> dict[str, Any]:
    parts = (candidate.get("content") or {}).get("parts") or ()
    message: dict[str, Any] = {"role": "assistant"}
    if text := "".join(part.get("text", "") for part in parts):
        message["content"] = text
    calls = [_tool_call(part, request) for part in parts if "functionCall" in part]
    if calls:
        message["tool_calls"] = calls
    choice = {field: message, "index": candidate.get("index", 0)}
    if reason := candidate.get("finishReason"):
        ended = "tool_calls" if calls else _FINISH.get(reason, str(reason).lower())
        choice["finish_reason"] = ended
    return choice


def _tool_call(part: dict[str, Any], request: FakeRequest) -> dict[str, Any]:
    call, signature = part["functionCall"], part.get("thoughtSignature")
    arguments = json.dumps(call.get("args") or {})
    made = {
        "function": {"name": call["name"], "arguments": arguments},
        "id": f"function-call-{request.label}-{call['name']}",
        "type": "function",
    }
    if signature:
        made["extra_content"] = {"google": {"thought_signature": signature}}
    return made


def _usage(native: dict[str, Any]) -> dict[str, Any]:
    usage = {
        "completion_tokens": native.get("candidatesTokenCount", 0),
        "prompt_tokens": native.get("promptTokenCount", 0),
        # The thoughts are in no other field.
        "total_tokens": native.get("totalTokenCount", 0),
    }
    cached = native.get("cachedContentTokenCount")
    return usage | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {})
