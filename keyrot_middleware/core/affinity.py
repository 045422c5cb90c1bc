"""Which stored things a request names, so that it goes with the key of the project that owns them.

A file, a cache, a batch, an operation, a page token belongs to one project (GEMINI.md C); a key
of another project gets a 403 that is nobody's fault. Typed names (`files/abc`) are known by their
value, but only under keys that can hold a name: a prompt that says "files/abc" names nothing, nor
do the arguments and results of a user's tools. Untyped ones are known by their key.

Canonical forms: `files/abc` (also for its URL, its `:download` and what lies below it),
`models/m/operations/o`, `page:<token>`, `continuation:<token>`, `interactions/<id>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

__all__ = [
    "STATELESS",
    "Route",
    "conversation",
    "is_pinned",
    "is_repeatable",
    "names_from",
    "names_in",
    "parse_path",
]

STATELESS = frozenset(
    {
        "batchEmbedContents",
        "computeTokens",
        "countTokens",
        "embedContent",
        "generateAnswer",
        "generateContent",
        "predict",
        "streamGenerateContent",
    }
)
"""Methods that store nothing. Not here: those that start a batch, an operation or an upload."""

_COLLECTIONS = (
    "agents|auth_tokens|batches|cachedContents|corpora|credentials|environments|files"
    "|fileSearchStores|interactions|operations|triggers|tunedModels|voices|webhooks"
)
_NAME = re.compile(
    # A URL names a file only below an API version: the web has `files/` directories too.
    r"(?:https?://[^/\s]+/(?:(?:up|down)load/)?v\d[^/\s]*/)?"
    rf"((?:models/[^/:?#\s]+/operations|{_COLLECTIONS})/[^/:?#\s]+)(?=[/:?#]|\Z)"
)
_PREFIX = re.compile(r"(?:upload|download|\{api_version\}|v\d+(?:(?:alpha|beta)\d*)?)\Z")

_PAGE = "page:"
_CONTINUATION = "continuation:"
_INTERACTION = "interactions/"
_TYPED = ""

_KEYS = {
    **dict.fromkeys(("name", "fileUri", "file_uri", "uri", "fileName", "file_name"), _TYPED),
    **dict.fromkeys(("cachedContent", "cached_content", "model", "baseModel"), _TYPED),
    **dict.fromkeys(("tunedModel", "source", "documentName", "responsesFile"), _TYPED),
    **dict.fromkeys(("fileSearchStoreNames", "file_search_store_names"), _TYPED),
    **dict.fromkeys(("continuationToken", "continuation_token"), _CONTINUATION),
    **dict.fromkeys(("previousInteractionId", "previous_interaction_id"), _INTERACTION),
}
"""The keys that can hold a name, and what an untyped one is called."""

_OPAQUE = frozenset(
    {
        *("_url", "_query", "args", "arguments", "response", "metadata", "labels"),
        *("customMetadata", "custom_metadata", "safetySettings", "inlineData", "inline_data"),
        *("functionDeclarations", "function_declarations", "parameters", "parametersJsonSchema"),
        *("parameters_json_schema", "responseSchema", "response_schema", "responseJsonSchema"),
        *("response_json_schema", "inlinedResponses", "inlinedEmbedContentResponses"),
    }
)
"""Keys whose content is the user's or the model's own data, or can hold no name."""

_LISTS = ("files", "cachedContents", "batches", "operations", "fileSearchStores", "tunedModels")
_MAX_DEPTH = 100
"""Levels looked at; protobuf's JSON parser refuses deeper ones."""
_MAX_WIDTH = 250_000
"""Containers in one level, more than a request may have bytes for; with the depth it ends the
walk over a body that contains itself, which the SDK will refuse."""
_MAX_TOKEN = 64
"""Characters of a token that are kept as they are; longer ones are digested."""
_MAX_PIECES = 256
_MAX_PIECE = 4_096


class Route(NamedTuple):
    """What a path asks for."""

    model: str
    """Without `models/`, but `tunedModels/x` whole; empty where the path names none."""
    verb: str
    """The method after the colon; else `get`, `list`, `delete`, `patch`, and for a create the
    name of the collection, such as `cachedContents`."""
    collection: str = ""
    """`models`, `files`, … : the path's first part."""


@lru_cache(maxsize=1024)
def parse_path(method: str, path: str) -> Route:
    """Read a path as the SDK gives it to its api client, with or without version and query."""
    parts, verb = _split(path)
    collection = parts[0] if parts else ""
    model = ""
    if len(parts) > 1 and collection in ("models", "tunedModels"):
        model = parts[1] if collection == "models" else f"tunedModels/{parts[1]}"
    return Route(model, verb or _plain_verb(method.lower(), parts), collection)


def names_in(
    path: str, body: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """List the stored things that a request names; *extra_body* is what the SDK merges later."""
    found: dict[str, None] = {}
    _walk(body, found)
    if extra_body:
        _walk(extra_body, found)
    in_path = _names_of_path(path)
    return tuple(dict.fromkeys((*in_path, *found))) if found else in_path


def names_from(body: Mapping[str, Any]) -> tuple[str, ...]:
    """List the stored things that a response names, now known to be its key's project's."""
    found: dict[str, None] = {}
    candidates = body.get("candidates")
    if isinstance(candidates, list):
        for candidate in _dicts(candidates):
            _note(found, _CONTINUATION, candidate.get("continuationToken"))
        return tuple(found)
    _note(found, _TYPED, body.get("name"))
    _note(found, _PAGE, body.get("nextPageToken"))
    if isinstance(file := body.get("file"), dict):
        _note(found, _TYPED, file.get("name"))
        _note(found, _TYPED, file.get("uri"))
    for part in ("response", "metadata"):
        # Of an operation or a batch: the document, the tuned model, the file of results.
        if isinstance(value := body.get(part), dict):
            _walk(value, found)
    for items in _LISTS:
        for item in _dicts(body.get(items)):
            _note(found, _TYPED, item.get("name"))
    return tuple(found)


def is_pinned(method: str, route: Route, names: tuple[str, ...]) -> bool:
    """Tell whether a call touches stored things, so that only their owner's key may send it.

    Only stateless inference, and reading the models that all may use, goes with any key.
    """
    if names:
        return True
    return route.verb not in STATELESS and not (
        method.lower() == "get" and route.collection == "models"
    )


def is_repeatable(method: str, route: Route) -> bool:
    """Tell whether sending it twice does no harm."""
    return route.verb in STATELESS or method.lower() == "get"


def conversation(body: Mapping[str, Any]) -> str:
    """Digest what all turns of one conversation share: system instruction and first content.

    Returns:
        Sixteen hexadecimal digits; empty where the body has neither.
    """
    system = body.get("systemInstruction") or body.get("system_instruction")
    contents = body.get("contents")
    first = contents[0] if isinstance(contents, list) and contents else contents
    if not system and not first:
        return ""
    digest = blake2b(digest_size=8)
    for node in (system, first):
        digest.update(b"\x1e")
        for piece in islice(_pieces(node, 0), _MAX_PIECES):
            # Heads and lengths tell conversations apart well enough, at any size of media.
            digest.update(f"{len(piece)}:{piece[:_MAX_PIECE]}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _pieces(node: Any, depth: int) -> Iterable[str]:
    if isinstance(node, dict) and depth < _MAX_DEPTH:
        for key, value in node.items():
            yield str(key)
            yield from _pieces(value, depth + 1)
    elif isinstance(node, (list, tuple)) and depth < _MAX_DEPTH:
        for value in node:
            yield from _pieces(value, depth + 1)
    elif isinstance(node, str):
        yield node


def _split(path: str) -> tuple[list[str], str]:
    """Split a path into its parts, without host, version and query, and the method's name."""
    bare = path.partition("?")[0]
    if "://" in bare:
        bare = bare.partition("://")[2].partition("/")[2]
    bare, _, verb = bare.partition(":")
    parts = [part for part in bare.split("/") if part]
    while parts and _PREFIX.match(parts[0]):
        del parts[0]
    return parts, verb


def _plain_verb(method: str, parts: list[str]) -> str:
    is_collection = len(parts) % 2 == 1
    if method == "get" and is_collection:
        return "list"
    return parts[-1] if method == "post" and is_collection else method


@lru_cache(maxsize=1024)
def _names_of_path(path: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    _note(found, _TYPED, "/".join(_split(path)[0]))
    for key, value in parse_qsl(path.partition("?")[2]):
        if key in ("pageToken", "page_token"):
            _note(found, _PAGE, value)
    return tuple(found)


def _note(found: dict[str, None], kind: str, value: object) -> None:
    """Add the name that *value* is, if it is one."""
    if not isinstance(value, str) or not value:
        return
    if kind == _TYPED:
        if (match := _NAME.match(value)) is not None:
            found[match[1]] = None
    elif kind == _INTERACTION:
        found[kind + value] = None
    else:
        found[kind + _token(kind, value)] = None


def _token(kind: str, value: str) -> str:
    """Give a token its one form, short enough to be kept."""
    if kind == _CONTINUATION:
        # Bytes, which the server writes in one base64 alphabet and the SDK in the other.
        value = value.rstrip("=").replace("+", "-").replace("/", "_")
    if len(value) <= _MAX_TOKEN:
        return value
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _walk(root: Mapping[str, Any], found: dict[str, None]) -> None:
    below: list[Any] = []
    _look(root, below, found)
    for _ in range(_MAX_DEPTH):
        if not below or len(below) > _MAX_WIDTH:
            return
        level, below = below, []
        for node in level:
            if isinstance(node, dict):
                _look(node, below, found)
            else:
                below += [item for item in node if isinstance(item, (dict, list, tuple))]


def _look(node: Mapping[str, Any], below: list[Any], found: dict[str, None]) -> None:
    """Note the names in one object, and put what is inside it on *below*."""
    for key, value in node.items():
        if isinstance(value, str):
            kind = _KEYS.get(key)
            if kind is not None:
                _note(found, kind, value)
        elif isinstance(value, (dict, list, tuple)) and key not in _OPAQUE:
            below.append(value)
            if key in _KEYS:
                for item in value:
                    _note(found, _KEYS[key], item)


def _dicts(items: object) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else ()
