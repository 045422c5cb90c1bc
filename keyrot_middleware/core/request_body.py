"""One walk over the body of a request: what it will cost, and which stored things it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from itertools import islice
from math import ceil
from typing import Any

from .tokens import COSTS, PER_CHAR, SKIPPED, get_mime_type, media_cost, text_cost

__all__ = [
    "CONTINUATION",
    "KINDS",
    "OPAQUE",
    "PAGE",
    "TYPED",
    "note",
    "read_body",
]

# What stored things are called, and where a request or a response may name them ----------------
#
# Typed names (`files/abc`) are known by their value, but only under keys that can hold a name: a
# prompt that says "files/abc" names nothing, nor do the arguments and results of a user's tools.
# Untyped ones are known by their key.
#
# Canonical forms: `files/abc` (also for its URL, its `:download` and what lies below it),
# `models/m/operations/o`, `page:<token>`, `continuation:<token>`, `interactions/<id>`.


_COLLECTIONS = (
    "agents|auth_tokens|batches|cachedContents|corpora|credentials|environments|files"
    "|fileSearchStores|interactions|operations|triggers|tunedModels|voices|webhooks"
)
_NAME = re.compile(
    # A URL names a file only below an API version: the web has `files/` directories too.
    r"(?:https?://[^/\s]+/(?:(?:up|down)load/)?v\d[^/\s]*/)?"
    rf"((?:models/[^/:?#\s]+/operations|{_COLLECTIONS})/[^/:?#\s]+)(?=[/:?#]|\Z)"
)

PAGE = "page:"
CONTINUATION = "continuation:"
_INTERACTION = "interactions/"
TYPED = ""

KINDS = {
    **dict.fromkeys(("name", "fileUri", "file_uri", "uri", "fileName", "file_name"), TYPED),
    **dict.fromkeys(("cachedContent", "cached_content", "model", "baseModel"), TYPED),
    **dict.fromkeys(("tunedModel", "source", "documentName", "responsesFile"), TYPED),
    **dict.fromkeys(("fileSearchStoreNames", "file_search_store_names"), TYPED),
    **dict.fromkeys(("continuationToken", "continuation_token"), CONTINUATION),
    **dict.fromkeys(("previousInteractionId", "previous_interaction_id"), _INTERACTION),
}
"""The keys that can hold a name, and what an untyped one is called."""

OPAQUE = frozenset(
    {
        *("_url", "_query", "args", "arguments", "response", "metadata", "labels"),
        *("customMetadata", "custom_metadata", "safetySettings", "inlineData", "inline_data"),
        *("functionDeclarations", "function_declarations", "parameters", "parametersJsonSchema"),
        *("parameters_json_schema", "responseSchema", "response_schema", "responseJsonSchema"),
        *("response_json_schema", "inlinedResponses", "inlinedEmbedContentResponses"),
    }
)
"""Keys whose content is the user's or the model's own data, or can hold no name."""

_MAX_TOKEN = 64
"""Characters of a token that are kept as they are; longer ones are digested."""


def note(found: dict[str, None], kind: str, value: object) -> None:
    """Add the name that *value* is, if it is one."""
    if not isinstance(value, str) or not value:
        return
    if kind == TYPED:
        if (match := _NAME.match(value)) is not None:
            found[match[1]] = None
    elif kind == _INTERACTION:
        found[kind + value] = None
    else:
        found[kind + _token(kind, value)] = None


def _token(kind: str, value: str) -> str:
    """Give a token its one form, short enough to be kept."""
    if kind == CONTINUATION:
        # Bytes, which the server writes in one base64 alphabet and the SDK in the other.
        value = value.rstrip("=").replace("+", "-").replace("/", "_")
    if len(value) <= _MAX_TOKEN:
        return value
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


_MOST = 250_000
"""Containers looked at, more than a request may have bytes for: it ends the walk over a body that
contains itself, which the SDK will refuse."""

_Cost = Callable[[Mapping[str, Any], str], float]
_CONTAINERS = (dict, list, tuple)


def _as_text(node: Mapping[str, Any], value: str) -> float:
    return text_cost(value)


_FIELDS: dict[str, tuple[_Cost, str | None]] = {
    key: (COSTS.get(key, _as_text), KINDS.get(key)) for key in {**COSTS, **KINDS}
}
"""What a string under a key costs, and what kind of name it may be; any other is a text."""

_SPECIAL = SKIPPED | OPAQUE | KINDS.keys()
"""Keys whose objects and lists are not simply looked into."""


def read_body(body: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Estimate the input tokens of a *body*, and list the stored things that it names.

    Args:
        body: A JSON object with keys in camelCase or snake_case, as it is sent.
    """
    found: dict[str, None] = {}
    data: list[Any] = []
    """Below a key whose content is somebody's own: it costs as much, and names nothing."""
    total = _walk([body], data, found)
    if data:
        total += _walk(data, data, {})
    return ceil(total), tuple(found)


def _walk(nodes: list[Any], data: list[Any], found: dict[str, None]) -> float:
    """Cost every object and list, and note the names in them; *nodes* and *data* grow meanwhile."""
    total = 0.0
    for node in islice(nodes, _MOST):
        is_object = isinstance(node, dict)
        total += _object(node, nodes, data, found) if is_object else _array(node, nodes)
    return total


def _object(
    node: dict[str, Any], nodes: list[Any], data: list[Any], found: dict[str, None]
) -> float:
    """Cost one object; what is inside goes on *nodes* or *data*. A key or a number is one token."""
    total = 0.0
    for key, value in node.items():
        if isinstance(value, str):
            field = _FIELDS.get(key)
            if field is None:
                total += len(value) * PER_CHAR if value.isascii() else text_cost(value)
                continue
            total += field[0](node, value)
            if field[1] is not None:
                note(found, field[1], value)
        elif isinstance(value, _CONTAINERS):
            if key in _SPECIAL:
                total += _special(key, value, data if key in OPAQUE else nodes, found)
                continue
            nodes.append(value)
            total += 1
        elif isinstance(value, (bytes, bytearray)):
            total += media_cost(get_mime_type(node) or "image/", len(value))
        else:
            total += 1
    return total


def _special(key: str, value: Any, nodes: list[Any], found: dict[str, None]) -> float:
    if key in SKIPPED:
        return 0.0
    for item in value if key in KINDS else ():
        note(found, KINDS[key], item)
    nodes.append(value)
    return 1.0


def _array(array: list[Any] | tuple[Any, ...], nodes: list[Any]) -> float:
    total = 0.0
    for value in array:
        if isinstance(value, _CONTAINERS):
            nodes.append(value)
        else:
            total += text_cost(value) if isinstance(value, str) else 1
    return total
