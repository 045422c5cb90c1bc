"""Estimates of the input tokens of a request.

The estimate only reserves capacity: every response corrects the reservation, and `TokenScale`
learns from it how far estimates for that model are off. So it is cheap compared with the SDK's own
work, and never decodes base64 or counts it as text. request_body.py walks over the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

# "A token is equivalent to about 4 characters" (ai.google.dev/gemini-api/docs/tokens). Scripts of
# two and three UTF-8 bytes a character have fewer: ~2.4 characters a token for Cyrillic, ~1.7 for
# Chinese and Japanese. A charge for each byte beyond the first approximates both.
PER_CHAR = 1 / 4
_PER_EXTRA_BYTE = 0.17

# Media, from the same page: 258 tokens a tile of an image, 32 a second of audio, 263 a second of
# video, and 258 a page of a document; a Gemini 3 image has 1,120 and a page 560 unless set
# otherwise (…/docs/media-resolution); the tiles of a photograph in older models are about as many.
# The body has no lengths, so they are estimated from bytes by usual bit rates and page sizes.
_IMAGE = 1_120.0
_PER_BYTE = {
    "audio/wav": 32 / 32_000,
    "audio/x-wav": 32 / 32_000,
    "audio/pcm": 32 / 32_000,
    "audio/l16": 32 / 32_000,
    "audio": 32 / 8_000,
    "video": 263 / 125_000,
    "application/pdf": 560 / 50_000,
}
_FILE = 2_580.0
"""A stored file, whose size is unknown: ten pages, ten seconds of video, 80 s of audio."""
_CACHE = 1_024.0
"""Cached content, or the history of an interaction: the minimum that Google caches."""


def count_requests(verb: str, body: Mapping[str, Any]) -> int:
    """Return how many requests it counts as in RPM: each item of a batchEmbedContents is one."""
    if verb == "batchEmbedContents":
        items = body.get("requests")
    elif verb == "embedContent":
        items = body.get("input")  # OpenAI's: one text or several
    else:
        return 1
    return max(1, len(items)) if isinstance(items, list) else 1


def text_cost(value: str) -> float:
    """Return the tokens of a text."""
    count = len(value)
    extra = 0 if value.isascii() else len(value.encode("utf-8", "surrogatepass")) - count
    return count * PER_CHAR + extra * _PER_EXTRA_BYTE


def get_mime_type(node: Mapping[str, Any]) -> str | None:
    """Return the media type of an object, in lower case."""
    mime = node.get("mimeType") or node.get("mime_type")
    return mime.lower() if isinstance(mime, str) else None


def media_cost(mime: str, size: int) -> float:
    """Return the tokens of *size* bytes of media; types without a rate count as text."""
    family = mime.partition("/")[0]
    if family == "image":
        return _IMAGE
    exact = mime.partition(";")[0]
    return size * (_PER_BYTE.get(exact) or _PER_BYTE.get(family, PER_CHAR))


def _inline(node: Mapping[str, Any], value: str) -> float:
    mime = get_mime_type(node)
    if mime is None and isinstance(kind := node.get("format"), str):
        mime = f"audio/{kind}"  # OpenAI's input_audio
    return text_cost(value) if mime is None else media_cost(mime, len(value) * 3 // 4)


def _encoded(node: Mapping[str, Any], value: str) -> float:
    return media_cost(get_mime_type(node) or "image/", len(value) * 3 // 4)


def _file(node: Mapping[str, Any], value: str) -> float:
    return _IMAGE if (get_mime_type(node) or "").startswith("image/") else _FILE


def _uri(node: Mapping[str, Any], value: str) -> float:
    return text_cost(value) if get_mime_type(node) is None else _file(node, value)


def _data_url(node: Mapping[str, Any], value: str) -> float:
    """Return the tokens of what OpenAI's messages have as a URL: the data, or an address."""
    if not value.startswith("data:"):
        return text_cost(value)
    head, _, data = value.partition(",")
    return media_cost(head[5:].partition(";")[0].lower() or "image/", len(data) * 3 // 4)


def _cache(node: Mapping[str, Any], value: str) -> float:
    return _CACHE


def _nothing(node: Mapping[str, Any], value: str) -> float:
    return 0.0


COSTS: dict[str, Callable[[Mapping[str, Any], str], float]] = {
    "data": _inline,
    "bytesBase64Encoded": _encoded,
    "imageBytes": _encoded,
    "encodedVideo": _encoded,
    "fileUri": _file,
    "file_uri": _file,
    "uri": _uri,
    "url": _data_url,
    "file_data": _data_url,
    "cachedContent": _cache,
    "cached_content": _cache,
    "previous_interaction_id": _cache,
    **dict.fromkeys(
        ("role", "model", "mimeType", "mime_type", "thoughtSignature", "thought_signature"),
        _nothing,
    ),
    **dict.fromkeys(("continuationToken", "continuation_token", "taskType", "ttl"), _nothing),
}
"""The tokens of a string under a key, if they are not those of its text."""

SKIPPED = frozenset({"_url", "_query", "safetySettings", "toolConfig", "labels"})


_SIZES = 32
_MAX_MODELS = 256
_DECAY = 0.01
_MIN_FACTOR = 0.1
_MAX_FACTOR = 8.0
_MAX_EXTRA_TOKENS = 8_192


class TokenScale:
    """The factor between estimated and true input tokens, learned per model.

    The factor rises at once to the highest ratio seen and falls by a hundredth of the difference
    with each lower one, so that it reserves too much rather than too little. There is one per order
    of magnitude of the estimate: what a search tool adds to short prompts says nothing about long
    ones. One outlier cannot reserve more than 8 times the estimate, or 8,192 tokens.

    Not locked: threads that learn at the same time may lose one observation.
    """

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}

    def factor(self, model: str, estimate: int = 1_000) -> float:
        """Return the factor for estimates of this size; 1.0 if unknown."""
        row = self._rows.get(model)
        if row is None:
            return 1.0
        size = _size(estimate)
        return row[size] or min(_nearest(row, size), _ceiling(estimate))

    def scaled(self, model: str, estimate: int) -> int:
        """Return the tokens to reserve for an *estimate*."""
        row = self._rows.get(model)
        if row is None:
            return estimate
        return ceil(estimate * (row[_size(estimate)] or self.factor(model, estimate)))

    def learn(self, model: str, estimate: int, true: int) -> None:
        """Record that a request estimated at *estimate* tokens had *true* tokens."""
        if estimate <= 0 or true <= 0:
            return
        row = self._rows.get(model) or self._add(model)
        size = _size(estimate)
        ratio = true / estimate
        if not _MIN_FACTOR <= ratio <= _MAX_FACTOR:
            ratio = max(_MIN_FACTOR, min(ratio, _ceiling(estimate)))
        old = row[size] or 1.0
        row[size] = ratio if ratio >= old else old + (ratio - old) * _DECAY

    def _add(self, model: str) -> list[float]:
        if len(self._rows) >= _MAX_MODELS:
            # The oldest half is dropped; a model in use is learned again from its next response.
            self._rows = dict(list(self._rows.items())[_MAX_MODELS // 2 :])
        return self._rows.setdefault(model, [0.0] * _SIZES)


def _size(estimate: int) -> int:
    return min(estimate.bit_length(), _SIZES - 1)


def _ceiling(estimate: int) -> float:
    return max(_MAX_FACTOR, _MAX_EXTRA_TOKENS / max(estimate, 1))


def _nearest(row: list[float], size: int) -> float:
    """Return the factor of the nearest size that has one; of two the smaller size's."""
    known = (other for other in range(_SIZES) if row[other])
    return row[min(known, key=lambda other: abs(other - size), default=size)] or 1.0
