"""Parses responses: tokens, model, id, finish reasons, names of stored resources.

Input tokens are those of the prompt (cached ones included) and of tool results; output tokens
include thoughts, as in OpenTelemetry's GenAI conventions. In a stream each chunk repeats the usage
so far, so the last chunk with usage counts.

The SDK passes bodies as text. Most of a large body (an image, a thousand embeddings) is not needed
here, so it is searched before it is parsed, and only its tail is parsed if possible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .affinity import find_resource_names
from .model import NO_USAGE, Usage
from .spending import service_tier

_NONE: Mapping[str, Any] = {}
_LARGE = 2_048
"""From this length on, parsing a whole body costs more than searching it."""
_TAIL = 16_384
"""How many characters at the end are searched for the end of the content."""
_META = '"usageMetadata"'
_OPENAI_USAGE = '"usage"'
_PAGE = 'PageToken"'
_MARKERS = (_META, '"name"', 'Token"', '"finishReason"', '"modelVersion"')
_META_OBJECT = re.compile(r'"usageMetadata"\s*:\s*(?=\{)')
_MODEL = re.compile(r'"modelVersion"\s*:\s*"([^"\\]+)"')
_decode_at = json.JSONDecoder().raw_decode
_REDUCIBLE = re.compile(r'\s*\{\s*"(candidates|embeddings?)"')
_FINISH = re.compile(r'"finishReason"\s*:\s*"(\w+)"')
_MAX_COUNT = 10**18
"""No request has this many tokens; numbers larger than a float would break the arithmetic."""
_FURTHER = re.compile(r'"index"\s*:\s*[1-9]|"continuationToken"')
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
_AFTER = {"modelVersion", "responseId"}
"""Keys that follow the usage in Google's order; if missing there, they come before."""


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


def parse_usage_text(body: object) -> tuple[Usage, tuple[str, ...]]:
    """Return usage and names of stored resources of a response as text; none if it is no JSON."""
    read = _read(body) if isinstance(body, str) else _NONE
    return (parse_usage(read), find_resource_names(read)) if read else (NO_USAGE, ())


def parse_token_counts(body: object) -> tuple[Usage, tuple[str, ...]]:
    """Return only tokens and model, all that the pool and a price need; no more is parsed.

    In JSON a quote inside a string is escaped, so model output cannot look like these keys. A
    response that may name a stored resource is parsed.
    """
    if not isinstance(body, str) or '"name"' in body or 'ationToken"' in body or _PAGE in body:
        return parse_usage_text(body)
    begin = body.rfind(_META)
    if begin < 0:
        return NO_USAGE, ()
    start = _META_OBJECT.match(body, begin)
    try:
        meta, end = _decode_at(body, start.end()) if start is not None else ({}, begin)
    except (ValueError, RecursionError):
        return NO_USAGE, ()
    model = _MODEL.search(body, end)
    if model is None and '"modelVersion"' in body:  # before the usage
        return parse_usage_text(body)
    usage = _usage(meta, model[1] if model is not None else None, None, ())
    return (NO_USAGE if usage.input_tokens is None and usage.output_tokens is None else usage), ()


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


def _read(text: str) -> Mapping[str, Any]:
    """Parse the needed part of a body; empty if there is none, or it is no JSON object."""
    if len(text) > _LARGE and (reduced := _reduce(text)) is not None:
        return reduced
    return parse_object(text) if any(marker in text for marker in _MARKERS) else _NONE


def _reduce(text: str) -> Mapping[str, Any] | None:
    """Parse only the tail of a response, after the content; None if that is not possible.

    It is possible for embeddings, and for one complete candidate without a continuation token.
    """
    head = _REDUCIBLE.match(text)
    if head is None:
        return None
    begin = max(len(text) - _TAIL, 0)
    start = text.rfind(_META, begin)
    if head[1] != "candidates":
        return _NONE if start < 0 else _parse_from(text, start)
    reasons = _FINISH.findall(text, begin, max(start, 0))
    if len(reasons) != 1 or reasons[0] == "CONTINUATION" or _FURTHER.search(text, begin, start):
        return None
    tail = _parse_from(text, start)
    if tail is None or not tail.keys() >= _AFTER:
        return None
    return {**tail, "candidates": [{"finishReason": reasons[0]}]}


def _parse_from(text: str, start: int) -> dict[str, Any] | None:
    """Parse from *start*; None unless a key of the outermost object starts there.

    The rest after such a key is a valid object; after a nested key brackets would be left over.
    """
    return parse_object("{" + text[start:]) or None


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
