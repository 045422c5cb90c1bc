"""OpenAI's protocol, which other providers speak too: what its replies and streams report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from ..core.model import NO_USAGE, Usage, service_tier
from .base import Events, text_size
from .hidden_errors import find_error

_decode = json.JSONDecoder().decode
_NONE: Mapping[str, Any] = {}
_LARGE = 2_048
"""From this length on, parsing a whole body costs more than searching it."""
_USAGE = '"usage"'
NOT_TEXT = frozenset({"model", "role", "type", "id", "url", "image_url", "data", "detail"})
_REST = rb'((?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+)"'
_REST_OF_TEXT = re.compile(_REST).match
_TEXT = re.compile(
    rb'"delta":\s?\{[^}]{0,99}?"(?:content|reasoning\w*+|text|arguments)":\s?"' + _REST
).search
"""A text in the line of a chunk. What it is in cannot be a text itself: its quotes are escaped."""
_PADDING = re.compile(rb',\s?"obfuscation":\s?"\w*+"').sub
"""By which OpenAI hides the length of a text; it differs in each event."""
_DEEPEST = 8
_BYTES = 2
"""Of a text for each token that is booked where the server counts none. Most texts have twice as
many: a budget is to hold for the others too, and where not all of an answer is shown."""
MAX_COUNT = 10**18
"""No request has this many tokens; numbers larger than a float would break the arithmetic."""


def parse_usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage of a response, or of a chunk of one; of the Responses API too.

    Thoughts are in `total_tokens` whether or not `completion_tokens` has them.
    """
    groq = body.get("x_groq")
    counts = body.get("usage") or (groq.get("usage") if isinstance(groq, Mapping) else None)
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
    """Collects the usage of one stream of chat completions, which has an end of its own.

    Where the server counts nothing, tokens are estimated by the bytes of all texts. Most chunks
    differ from the one before in one text alone. Of such a line only the text is read: the rest
    reports what it did before.
    """

    __slots__ = ("_begin", "_constant", "_counted", "_end", "_is_stored", "_line", "_size", "names")

    def __init__(self, *, is_stored: bool = False) -> None:
        """Start empty; *is_stored*: what it names by its id is kept there."""
        self._counted: Usage = NO_USAGE
        """The usage so far, without an estimate."""
        self.names, self._size = (), 0
        self._is_stored = is_stored
        self._line = b""
        """That of the event that is fed next."""
        self._begin = self._end = b""
        """What stood before a text and behind it in the event that was parsed last."""
        self._constant = 0
        """Bytes of all other texts in it."""

    @property
    def usage(self) -> Usage:
        """The usage so far, with an estimate where the server counts nothing."""
        if self._counted.input_tokens is not None or not self._size:
            return self._counted
        return self._counted._replace(output_tokens=ceil(self._size / _BYTES), estimated=True)

    def skim(self, line: bytes) -> bool:
        """Add the text of a chunk that is otherwise the same as the last one that was parsed."""
        if self._begin and line.startswith(self._begin):
            text = _REST_OF_TEXT(line, len(self._begin))
            if text is not None and _PADDING(b"", line[text.end() :]) == self._end:
                self._size += _size_in_json(text[1]) + self._constant
                return True
        self._line, self._begin = line, b""
        return False

    def feed(self, body: Mapping[str, Any]) -> bool:
        """Add a chunk; return whether it is the last one."""
        usage, before = parse_usage(body), self._counted
        if usage.input_tokens is None:
            choices = body.get("choices")
            self.add_text(
                [
                    one.get("delta") or one.get("text")
                    for one in (choices if isinstance(choices, list) else ())
                    if isinstance(one, Mapping)
                ]
            )
            if before.input_tokens is not None:
                output = usage.output_tokens or before.output_tokens
                usage = usage._replace(input_tokens=before.input_tokens, output_tokens=output)
        reasons = usage.finish_reasons or before.finish_reasons
        self._counted = usage._replace(finish_reasons=reasons)
        if self._is_stored and usage.response_id:
            self.names = (usage.response_id,)
        return False

    def is_error(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is an error; the first one may hide it as a body does."""
        if super().is_error(event):
            return True
        is_first = self._counted is NO_USAGE and not self._size and not event.get("choices")
        return is_first and find_error(json.dumps(event)) is not None

    def add_text(self, part: object) -> None:
        """Add the texts in a chunk, and keep what the next one may have in common with it."""
        size = _size_of(part)
        self._size += size
        found = _TEXT(self._line)
        if found is not None and size >= _size_in_json(found[1]):  # else it is not counted
            self._begin, self._end = self._line[: found.start(1)], self._line[found.end() :]
            self._end = _PADDING(b"", self._end)
            self._constant = size - _size_in_json(found[1])
        self._line = b""


def _size_in_json(text: bytes) -> int:
    """Return the bytes of a text that stands between two quotes of JSON."""
    if b"\\" not in text:
        return len(text)
    return text_size(_decode(f'"{text.decode("utf-8", "replace")}"'))


def _size_of(part: object, depth: int = _DEEPEST) -> int:
    """Return the bytes of the texts in a part of a reply."""
    if isinstance(part, str):
        return text_size(part)
    if isinstance(part, Mapping):
        part = [value for name, value in part.items() if name not in NOT_TEXT]
    return sum(_size_of(one, depth - 1) for one in part) if isinstance(part, list) and depth else 0


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
