"""One walk over the body of a request: its estimated tokens, and the stored resources it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from itertools import islice
from math import ceil
from typing import Any

from .spending import service_tier
from .tokens import COSTS, PER_CHAR, SKIPPED, get_mime_type, media_cost, text_cost

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

PAGE = "page:"
CONTINUATION = "continuation:"
INTERACTION = "interactions/"
_VOICE = "voices/"
HANDLE = "handle:"
"""Of a Live session that can be resumed."""
UPLOAD = "upload:"
"""Of an upload in several requests."""
TYPED = ""

KINDS = {
    **dict.fromkeys(("name", "fileUri", "file_uri", "uri", "fileName", "file_name"), TYPED),
    **dict.fromkeys(("cachedContent", "cached_content", "model", "baseModel"), TYPED),
    **dict.fromkeys(("tunedModel", "source", "documentName", "responsesFile"), TYPED),
    **dict.fromkeys(("operationName", "operation_name"), TYPED),
    **dict.fromkeys(("file_id", "input_file_id"), TYPED),
    **dict.fromkeys(("fileSearchStoreNames", "file_search_store_names"), TYPED),
    **dict.fromkeys(("continuationToken", "continuation_token"), CONTINUATION),
    **dict.fromkeys(("previousInteractionId", "previous_interaction_id"), INTERACTION),
    "voice": _VOICE,
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


_UNCERTAIN = ("agents/", "credentials/", "environments/", _VOICE)


def is_certain(name: str) -> bool:
    """Return whether a request that has this *name* in its body names a stored resource.

    Agents, environments and voices may also be Google's own, with ids of the same form; the owner
    of such a name matters only if it is known.
    """
    return not name.startswith(_UNCERTAIN)


def add_name(found: dict[str, None], kind: str, value: object) -> None:
    """Add *value* to *found*, if it is a name."""
    if not isinstance(value, str) or not value:
        return
    if kind == TYPED:
        if (match := _NAME.match(value)) is not None:
            found[match[1]] = None
    elif kind in (INTERACTION, _VOICE):
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


_MAX_CONTAINERS = 250_000
"""Containers visited at most, more than fit into a request: ends the walk over a body that contains
itself, which the SDK rejects."""

_Cost = Callable[[Mapping[str, Any], str], float]
_CONTAINERS = (dict, list, tuple)


def _as_text(node: Mapping[str, Any], value: str) -> float:
    return text_cost(value)


_FIELDS: dict[str, tuple[_Cost, str | None]] = {
    key: (COSTS.get(key, _as_text), KINDS.get(key)) for key in {**COSTS, **KINDS}
}
"""The tokens of a string under a key, and the kind of name it may be; others are text."""

_SPECIAL = SKIPPED | OPAQUE | KINDS.keys()
"""Keys whose objects and lists are not simply visited."""


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
        body: A JSON object with keys in camelCase or snake_case, as it is sent.
    """
    found: dict[str, None] = {}
    data: list[Any] = []
    """Content that is data of the user or model: it has tokens, and names nothing."""
    total = _walk([body], data, found)
    if data:
        total += _walk(data, data, {})
    return ceil(total), tuple(found)


def _walk(nodes: list[Any], data: list[Any], found: dict[str, None]) -> float:
    """Add up tokens and collect names of all containers; *nodes* and *data* grow meanwhile."""
    total = 0.0
    for node in islice(nodes, _MAX_CONTAINERS):
        is_object = isinstance(node, dict)
        total += _object(node, nodes, data, found) if is_object else _array(node, nodes)
    return total


def _object(
    node: dict[str, Any], nodes: list[Any], data: list[Any], found: dict[str, None]
) -> float:
    """Return the tokens of one object; containers in it are added to *nodes* or *data*."""
    total = 0.0
    for key, value in node.items():
        if isinstance(value, str):
            field = _FIELDS.get(key)
            if field is None:
                total += len(value) * PER_CHAR if value.isascii() else text_cost(value)
                continue
            total += field[0](node, value)
            if field[1] is not None:
                add_name(found, field[1], value)
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
    for item in value if key in KINDS and not isinstance(value, dict) else ():
        add_name(found, KINDS[key], item)
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
