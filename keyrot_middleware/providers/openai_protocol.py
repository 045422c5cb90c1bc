"""OpenAI's protocol, which other providers speak too: what its replies and streams report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.amounts import service_tier
from ..core.model import NO_USAGE, Usage
from .base import Events

_decode = json.JSONDecoder().decode
_NONE: Mapping[str, Any] = {}
_LARGE = 2_048
"""From this length on, parsing a whole body costs more than searching it."""
_USAGE = '"usage"'
MAX_COUNT = 10**18
"""No request has this many tokens; numbers larger than a float would break the arithmetic."""


def parse_usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage of a response, or of a chunk of one; of the Responses API too.

    Thoughts are in `total_tokens` whether or not `completion_tokens` has them.
    """
    counts = body.get("usage")
    counts = counts if isinstance(counts, Mapping) else _NONE
    asked, answer = ("prompt", "completion") if "prompt_tokens" in counts else ("input", "output")
    sent, received, total = (
        as_count(counts.get(f"{what}_tokens")) for what in (asked, answer, "total")
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
        _detail(counts, f"{asked}_tokens_details", "cached_tokens"),
        _detail(counts, f"{answer}_tokens_details", "reasoning_tokens"),
        as_text(body.get("model")),
        as_text(body.get("id")),
        tuple(reason for reason in reasons if isinstance(reason, str)),
        service_tier=service_tier(body.get("service_tier")),
    )


def _detail(counts: Mapping[str, Any], group: str, name: str) -> int | None:
    found = counts.get(group)
    return as_count(found.get(name)) if isinstance(found, Mapping) else None


def parse_text(text: str, *, in_full: bool) -> tuple[Usage, Mapping[str, Any]]:
    """Return the usage of a response, and its body, or the end of it.

    Args:
        text: The body.
        in_full: More than its tokens. Else the end of a large body is parsed, if that will do.
    """
    begin = text.rfind(_USAGE) if not in_full and len(text) > _LARGE else -1
    body = (parse_object("{" + text[begin:]) if begin >= 0 else None) or parse_object(text)
    return parse_usage(body), body


class ChatEvents(Events):
    """Collects the usage of one stream of chat completions, which has an end of its own."""

    __slots__ = ("usage",)

    def __init__(self) -> None:
        self.usage = NO_USAGE

    def feed(self, body: Mapping[str, Any]) -> bool:
        """Add a chunk; return whether it is the last one."""
        usage, before = parse_usage(body), self.usage
        known = before if usage.input_tokens is None else NO_USAGE
        self.usage = usage._replace(
            input_tokens=usage.input_tokens or known.input_tokens,
            output_tokens=usage.output_tokens or known.output_tokens,
            finish_reasons=usage.finish_reasons or before.finish_reasons,
        )
        return False


def parse_object(text: str | None) -> dict[str, Any]:
    """Return the JSON object that *text* is; empty if it is none."""
    if not text:
        return {}
    try:
        body = _decode(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def as_count(value: object) -> int | None:
    """Return a count; 64-bit numbers may be strings in JSON."""
    if type(value) is int:  # not a bool
        return value if 0 <= value < MAX_COUNT else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return None


def as_text(value: object) -> str | None:
    """Return a text that is not empty; None for all else."""
    return value if isinstance(value, str) and value else None
