"""OpenAI's protocol as Google serves it under `/v1beta/openai/`: a translation to the native one.

Sources: docs/gemini-api.md#the-openai-protocol; usage in every chunk: ogx-ai/ogx#5122; no usage of
embeddings, and no index of the first: spring-projects/spring-ai#2485, #7019. How Google sends an
error inside a stream is not recorded: it has the native form here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from keyrot_middleware.testing.request import FakeRequest, Route

DONE = b"data: [DONE]\n\n"
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}


def bearer_tokens(headers: list[str]) -> list[str]:
    """Return the tokens of the `Authorization` headers that are of the scheme Bearer."""
    parts = (header.partition(" ") for header in headers)
    return [token.strip() for scheme, _, token in parts if scheme.lower() == "bearer"]


def to_native(route: Route, body: dict[str, Any]) -> tuple[Route, dict[str, Any]]:
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
