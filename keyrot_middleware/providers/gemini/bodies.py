"""One walk over the body of a request: its estimated tokens, and the stored resources it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice, repeat
from math import ceil
from typing import Any

from ...core.affinity import CONTINUATION, HANDLE, INTERACTION, TYPED, VOICE
from ...core.model import service_tier
from ..base import text_size

# Names of stored resources, and the keys under which requests and responses have them -----------
#
# Typed names (`files/abc`) are recognized by their value, but only under keys that can hold a name:
# a prompt that contains "files/abc" names nothing, nor do the arguments and results of a user's
# tools. Untyped names are recognized by their key.
#
# Canonical forms: `files/abc` (also for its URL, its `:download` and everything below it),
# `models/m/operations/o`, `page:<token>`, `continuation:<token>`, `interactions/<id>`,
# `voices/<id>`, `handle:<token>`.


_COLLECTIONS = (
    "agents|auth_tokens|batches|cachedContents|corpora|credentials|environments|files"
    "|fileSearchStores|interactions|operations|triggers|tunedModels|voices|webhooks"
)
_NAME = re.compile(
    # A URL names a file only below an API version: web sites have `files/` directories too.
    r"(?:https?://[^/\s]+/(?:(?:up|down)load/)?v\d[^/\s]*/)?"
    # Vertex AI writes names in full.
    r"(?:projects/[^/\s]+/locations/[^/\s]+/)?(?:publishers/[^/\s]+/)?"
    rf"((?:models/[^/:?#\s]+/operations|{_COLLECTIONS})/[^/:?#\s]+)(?=[/:?#]|\Z)"
)

KINDS = {
    **dict.fromkeys(("name", "fileUri", "file_uri", "uri", "fileName", "file_name"), TYPED),
    **dict.fromkeys(("cachedContent", "cached_content", "model", "baseModel"), TYPED),
    **dict.fromkeys(("tunedModel", "source", "documentName", "responsesFile"), TYPED),
    **dict.fromkeys(("operationName", "operation_name"), TYPED),
    **dict.fromkeys(("file_id", "input_file_id"), TYPED),
    **dict.fromkeys(("fileSearchStoreNames", "file_search_store_names"), TYPED),
    **dict.fromkeys(("continuationToken", "continuation_token"), CONTINUATION),
    **dict.fromkeys(("previousInteractionId", "previous_interaction_id"), INTERACTION),
    "voice": VOICE,
    "handle": HANDLE,
}
"""The keys that can hold a name, and the prefix of untyped names."""

OPAQUE = frozenset(
    {
        *("_url", "_query", "args", "arguments", "response", "metadata", "labels"),
        *("customMetadata", "custom_metadata", "safetySettings", "inlineData", "inline_data"),
        *("functionDeclarations", "function_declarations", "parameters", "parametersJsonSchema"),
        *("parameters_json_schema", "responseSchema", "response_schema", "responseJsonSchema"),
        *("response_json_schema", "inlinedResponses", "inlinedEmbedContentResponses"),
    }
)
"""Keys whose content is the user's or the model's data, or cannot hold a name."""

_MAX_TOKEN = 64
"""Longer tokens are replaced by their digest."""


def add_name(found: dict[str, None], kind: str, value: object) -> None:
    """Add *value* to *found*, if it is a name."""
    if not isinstance(value, str) or not value:
        return
    if kind == TYPED:
        if (match := _NAME.match(value)) is not None:
            found[match[1]] = None
    elif kind in (INTERACTION, VOICE):
        found[kind + value] = None
    else:
        found[kind + _token(kind, value)] = None


def _token(kind: str, value: str) -> str:
    """Return the canonical form of a token, short enough to be stored."""
    if kind == CONTINUATION:
        # The server and the SDK use different base64 alphabets.
        value = value.rstrip("=").replace("+", "-").replace("/", "_")
    if len(value) <= _MAX_TOKEN:
        return value
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# Input tokens ------------------------------------------------------------------------------------
#
# The estimate only reserves capacity: every response corrects it, and tokens.TokenScale learns how
# far estimates are off. A token is about four characters, or four bytes in other scripts
# (ai.google.dev/gemini-api/docs/tokens). Media, from the same page: 258 tokens a tile of an image,
# 32 a second of audio, 263 a second of video, 258 a page of a document; a Gemini 3 image has 1,120
# and a page 560. The body has no lengths, so they follow from bytes by usual bit rates.

_IMAGE = 1_120.0
_PER_BYTE = {
    **dict.fromkeys(("audio/wav", "audio/x-wav", "audio/pcm", "audio/l16"), 32 / 32_000),
    "audio": 32 / 8_000,
    "video": 263 / 125_000,
    "application/pdf": 560 / 50_000,
}
_FILE = 2_580.0
"""A stored file, whose size is unknown: ten pages, ten seconds of video, 80 s of audio."""
_CACHE = 1_024.0
"""Cached content, or the history of an interaction: the minimum that Google caches."""

_FREE = frozenset(
    {
        *("role", "model", "mimeType", "mime_type", "thoughtSignature", "thought_signature"),
        *("continuationToken", "continuation_token", "taskType", "ttl"),
    }
)
_CACHES = frozenset({"cachedContent", "cached_content", "previous_interaction_id"})
_FILES = frozenset({"fileUri", "file_uri", "uri"})
_ENCODED = frozenset({"data", "bytesBase64Encoded", "imageBytes", "encodedVideo"})
_URLS = frozenset({"url", "file_data"})
_NOT_TEXT = _FREE | _CACHES | _FILES | _ENCODED | _URLS
_SKIPPED = frozenset({"_url", "_query", "safetySettings", "toolConfig", "labels"})
_CONTAINERS = (dict, list, tuple)
_MAX_CONTAINERS = 250_000
"""More than fit into a request: ends the walk over a body that contains itself."""


def requested_tier(body: Mapping[str, Any]) -> str:
    """Return the service tier that a request asks for; empty: standard.

    Args:
        body: As for `read_body`.
    """
    name = service_tier(body.get("serviceTier") or body.get("service_tier"))
    return "" if name is None or name == "standard" else name


def read_body(body: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the estimated input tokens of a *body*, and the stored resources that it names.

    Args:
        body: A JSON object with keys in camelCase or snake_case; long texts as for `text_size`.
    """
    found: dict[str, None] = {}
    total = 0.0
    nodes: list[tuple[Any, bool]] = [(body, False)]
    """Containers, and whether their content is data of the user or model, which names nothing."""
    for node, is_data in islice(nodes, _MAX_CONTAINERS):  # which grows meanwhile
        is_object = isinstance(node, dict)
        for key, value in node.items() if is_object else zip(repeat(""), node):
            if isinstance(value, str):
                total += _cost(node, key, value) if key in _NOT_TEXT else text_size(value) / 4
                if key in KINDS and not is_data:
                    add_name(found, KINDS[key], value)
            elif isinstance(value, _CONTAINERS):
                if key in _SKIPPED:
                    continue
                if key in KINDS and not is_data and not isinstance(value, dict):
                    for item in value:
                        add_name(found, KINDS[key], item)
                nodes.append((value, is_data or key in OPAQUE))
                total += is_object
            elif isinstance(value, bytes | bytearray):
                total += _media(node, len(value))
            else:
                total += 1
    return ceil(total), tuple(found)


def _mime(node: Any) -> str:
    if not isinstance(node, dict):
        return ""
    mime = node.get("mimeType") or node.get("mime_type")
    if isinstance(mime, str):
        return mime.lower()
    kind = node.get("format")  # OpenAI's input_audio
    return f"audio/{kind}" if isinstance(kind, str) else ""


def _cost(node: Any, key: str, value: str) -> float:
    """Return the tokens of a string that is no text, or not always."""
    if key in _FREE:
        return 0.0
    if key in _CACHES:
        return _CACHE
    mime = _mime(node)
    if key in _FILES and (mime or key != "uri"):
        return _IMAGE if mime.startswith("image/") else _FILE
    if key in _ENCODED and (mime or key != "data"):
        return _media(node, text_size(value) * 3 // 4)
    if key in _URLS and value.startswith("data:"):
        head = value.partition(",")[0]
        size = (text_size(value) - len(head) - 1) * 3 // 4
        return _media({"mimeType": head[5:].partition(";")[0]}, size)
    return text_size(value) / 4


def _media(node: Any, size: int) -> float:
    """Return the tokens of *size* bytes of media; types without a rate count as text."""
    mime = _mime(node) or "image/"
    family = mime.partition("/")[0]
    if family == "image":
        return _IMAGE
    return size * (_PER_BYTE.get(mime.partition(";")[0]) or _PER_BYTE.get(family, 0.25))
