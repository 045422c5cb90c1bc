"""Parses responses: tokens, model, id, finish reasons, names of stored resources.

Input tokens are those of the prompt (cached ones included) and of tool results; output tokens
include thoughts, as in OpenTelemetry's GenAI conventions. In a stream each chunk repeats the usage
so far, so the last chunk with usage counts.

Most of a large body (an image, a thousand embeddings) is not needed here, so only its end is parsed
if possible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .affinity import find_resource_names
from .model import NO_USAGE, Usage
from .spending import service_tier

_NONE: Mapping[str, Any] = {}
_LARGE = 2_048
"""From this length on, parsing a whole body costs more than searching it."""
_META = '"usageMetadata"'
_OPENAI_USAGE = '"usage"'
_NAMING = ('"name"', 'ationToken"', 'PageToken"')
"""Keys of what is stored; model output cannot look like them, for its quotes are escaped."""
_MAX_COUNT = 10**18
"""No request has this many tokens; numbers larger than a float would break the arithmetic."""
_INPUT_DETAILS = {
    "AUDIO": "input_audio_tokens",
    "DOCUMENT": "input_image_tokens",
    "IMAGE": "input_image_tokens",
    "VIDEO": "input_video_tokens",
}
_OUTPUT_DETAILS = {
    "AUDIO": "output_audio_tokens",
    "IMAGE": "output_image_tokens",
    "VIDEO": "output_video_tokens",
}
_DETAILS = {
    "promptTokensDetails": _INPUT_DETAILS,
    "toolUsePromptTokensDetails": _INPUT_DETAILS,
    "cacheTokensDetails": {"AUDIO": "cache_audio_read_tokens"},
    "candidatesTokensDetails": _OUTPUT_DETAILS,
    "responseTokensDetails": _OUTPUT_DETAILS,
}
"""How `Usage.details` names the modalities in each list of details."""


class StreamLedger:
    """Collects the usage of one stream from its chunks."""

    __slots__ = ("_meta", "_model", "_names", "_reasons", "_response_id")

    marks = ()

    def __init__(self) -> None:
        self._meta: Mapping[str, Any] = _NONE
        self._model: str | None = None
        self._response_id: str | None = None
        self._reasons: dict[int, str] = {}
        self._names: dict[str, None] = {}

    def feed(self, body: Mapping[str, Any]) -> bool:
        """Add a chunk; return whether it is the last one."""
        meta = body.get("usageMetadata")
        if isinstance(meta, Mapping) and _has_numbers(meta):
            self._meta = meta
        self._model = _string(body.get("modelVersion")) or self._model
        self._response_id = _string(body.get("responseId")) or self._response_id
        reasons = _reasons(body.get("candidates"))
        self._reasons.update(reasons)
        self._names.update(dict.fromkeys(find_resource_names(body)))
        return bool(reasons)

    @property
    def usage(self) -> Usage:
        """Return the usage so far."""
        reasons = tuple(reason for _, reason in sorted(self._reasons.items()))
        return _usage(self._meta, self._model, self._response_id, reasons)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the stored resources named so far, mostly continuation tokens."""
        return tuple(self._names)


def parse_usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage of a complete response.

    Without `usageMetadata` there is none: the `totalTokens` of countTokens were not used.
    """
    meta = body.get("usageMetadata")
    return _usage(
        meta if isinstance(meta, Mapping) else _NONE,
        _string(body.get("modelVersion")),
        _string(body.get("responseId")),
        tuple(_reasons(body.get("candidates")).values()),
    )


def add_usage(one: Usage, other: Usage) -> Usage:
    """Return the tokens of two turns of a session; the rest is of the later one."""
    details = dict(one.details)
    for kind, count in other.details:
        details[kind] = details.get(kind, 0) + count
    return other._replace(
        input_tokens=_sum(one.input_tokens, other.input_tokens),
        output_tokens=_sum(one.output_tokens, other.output_tokens),
        cached_tokens=_sum(one.cached_tokens, other.cached_tokens),
        thought_tokens=_sum(one.thought_tokens, other.thought_tokens),
        details=tuple(details.items()),
    )


def parse_usage_text(text: object, *, in_full: bool = True) -> tuple[Usage, tuple[str, ...]]:
    """Return usage and names of stored resources of a response; none if it is no JSON text.

    Args:
        text: The body.
        in_full: More than its tokens and model. Else only the end of the body is parsed, if that
            will do.
    """
    if not isinstance(text, str):
        return NO_USAGE, ()
    begin = text.rfind(_META)
    whole = any(key in text for key in _NAMING) or (in_full and '"finishReason"' in text)
    if not whole and begin < 0:
        return NO_USAGE, ()
    # The rest after a key of the outermost object is an object; after others, brackets are left.
    body = _NONE if whole else parse_object("{" + text[begin:])
    if "modelVersion" not in body:
        body = parse_object(text)
    usage = parse_usage(body)
    counted = usage.input_tokens is not None or usage.output_tokens is not None
    return usage if counted or in_full else NO_USAGE, find_resource_names(body)


def parse_openai_usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage of a response, or of a chunk of one, in OpenAI's protocol.

    Thoughts are in Google's `total_tokens` whether or not `completion_tokens` has them.
    """
    counts = body.get("usage")
    counts = counts if isinstance(counts, Mapping) else _NONE
    sent, received, total = (
        _count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    if sent is not None and total is not None and total > sent:
        received = max(received or 0, total - sent)
    choices = body.get("choices")
    reasons = (
        one.get("finish_reason") if isinstance(one, Mapping) else None
        for one in (choices if isinstance(choices, list) else ())
    )
    return Usage(
        sent,
        received,
        _detail(counts, "prompt_tokens_details", "cached_tokens"),
        _detail(counts, "completion_tokens_details", "reasoning_tokens"),
        _string(body.get("model")),
        _string(body.get("id")),
        tuple(reason for reason in reasons if isinstance(reason, str)),
        service_tier=service_tier(body.get("service_tier")),
    )


def _detail(counts: Mapping[str, Any], group: str, name: str) -> int | None:
    found = counts.get(group)
    return _count(found.get(name)) if isinstance(found, Mapping) else None


def parse_openai_text(text: str, *, in_full: bool) -> tuple[Usage, tuple[str, ...]]:
    """Return usage and names of a response in OpenAI's protocol.

    Args:
        text: The body.
        in_full: More than its tokens. Else the end of a large body is parsed, if that will do.
    """
    begin = text.rfind(_OPENAI_USAGE) if not in_full and len(text) > _LARGE else -1
    body = (parse_object("{" + text[begin:]) if begin >= 0 else None) or parse_object(text)
    return parse_openai_usage(body), find_resource_names(body)


def parse_object(text: str | None) -> dict[str, Any]:
    """Return the JSON object that *text* is; empty if it is none."""
    if not text:
        return {}
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _usage(
    meta: Mapping[str, Any], model: str | None, response_id: str | None, reasons: tuple[str, ...]
) -> Usage:
    counts = {
        name: value if type(value) is int and 0 <= value < _MAX_COUNT else _count(value)
        for name, value in meta.items()
    }
    thoughts = counts.get("thoughtsTokenCount")
    candidates = counts.get("candidatesTokenCount", counts.get("responseTokenCount"))
    return Usage(
        _sum(counts.get("promptTokenCount"), counts.get("toolUsePromptTokenCount")),
        _sum(candidates, thoughts),
        counts.get("cachedContentTokenCount"),
        thoughts,
        model,
        response_id,
        reasons,
        details=_details(meta),
        service_tier=service_tier(meta.get("serviceTier")),
    )


def _details(meta: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return how many tokens are no text, by their kind."""
    found: dict[str, int] = {}
    for field, kinds in _DETAILS.items():
        if field not in meta:
            continue
        parts = meta[field]
        for part in parts if isinstance(parts, list) else ():
            modality = part.get("modality") if isinstance(part, dict) else None
            kind = kinds.get(modality) if isinstance(modality, str) else None
            count = _count(part.get("tokenCount")) if kind is not None else None
            if kind is not None and count:
                found[kind] = found.get(kind, 0) + count
    return tuple(found.items())


def _has_numbers(meta: Mapping[str, Any]) -> bool:
    return any(_count(value) is not None for value in meta.values())


def _count(value: object) -> int | None:
    """Return a count; 64-bit numbers may be strings in JSON."""
    if type(value) is int:  # not a bool
        return value if 0 <= value < _MAX_COUNT else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return None


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _reasons(candidates: object) -> dict[int, str]:
    """Return the finish reason of each candidate by its index, in lower case."""
    if not isinstance(candidates, list):
        return {}
    found: dict[int, str] = {}
    for place, candidate in enumerate(candidates):
        reason = candidate.get("finishReason") if isinstance(candidate, dict) else None
        if isinstance(reason, str):
            index = candidate.get("index")
            found[index if isinstance(index, int) else place] = reason.lower()
    return found
