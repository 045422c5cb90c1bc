"""Which stored things a request names, so that it goes with the key of the project that owns them.

A file, a cache, a batch, an operation, a page token belongs to one project (GEMINI.md C); a key
of another project gets a 403 that is nobody's fault. How such things are called is in naming.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from .model import GENERIC_VERBS
from .request_body import CONTINUATION, PAGE, TYPED, note, read_body

__all__ = [
    "STATELESS",
    "Route",
    "conversation",
    "names_from",
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

UNMETERED = GENERIC_VERBS | {
    "asyncBatchEmbedContent",
    "batchGenerateContent",
    "computeTokens",
    "countTokens",
}
"""Methods of a model that its quota does not count: batches have limits of their own, and to count
tokens is no generation (GEMINI.md B3, B5). One that is not known counts."""

_PREFIX = re.compile(r"(?:upload|download|\{api_version\}|v\d+(?:(?:alpha|beta)\d*)?)\Z")

_LISTS = ("files", "cachedContents", "batches", "operations", "fileSearchStores", "tunedModels")
_MAX_DEPTH = 100
"""Levels looked at; protobuf's JSON parser refuses deeper ones."""
_MAX_PIECES = 256
_MAX_PIECE = 4_096


class Route(NamedTuple):
    """What a request's method and path alone say."""

    model: str
    """Without `models/`, but `tunedModels/x` whole; empty where the path names none."""
    verb: str
    """The method after the colon; else `get`, `list`, `delete`, `patch`, and for a create the
    name of the collection, such as `cachedContents`."""
    collection: str
    """`models`, `files`, … : the path's first part."""
    names: tuple[str, ...]
    """Stored things that the path names."""
    bound_to_owner: bool
    """It touches stored things, so that only their owner's key may send it. So does a request
    whose body names some."""
    idempotent: bool
    """Sending it twice does no harm."""
    counts_in_quota: bool
    """It counts in the model's RPM, TPM and RPD."""


@lru_cache(maxsize=1024)
def parse_path(method: str, path: str) -> Route:
    """Read a path as the SDK gives it to its api client, with or without version and query.

    Only stateless inference, and reading the models that all may use, goes with any key.
    """
    parts, verb = _split(path)
    collection = parts[0] if parts else ""
    model = ""
    if len(parts) > 1 and collection in ("models", "tunedModels"):
        model = parts[1] if collection == "models" else f"tunedModels/{parts[1]}"
    verb = verb or _plain_verb(method.lower(), parts)
    reading, stateless = method.lower() == "get", verb in STATELESS
    names = _names_of(parts, path)
    bound_to_owner = bool(names) or not (stateless or (reading and collection == "models"))
    counts_in_quota = bool(model) and verb not in UNMETERED
    return Route(
        model, verb, collection, names, bound_to_owner, stateless or reading, counts_in_quota
    )


def _names_of(parts: list[str], path: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    note(found, TYPED, "/".join(parts))
    for key, value in parse_qsl(path.partition("?")[2]):
        if key in ("pageToken", "page_token"):
            note(found, PAGE, value)
    return tuple(found)


def names_from(body: Mapping[str, Any]) -> tuple[str, ...]:
    """List the stored things that a response names, now known to be its key's project's."""
    found: dict[str, None] = {}
    candidates = body.get("candidates")
    if isinstance(candidates, list):
        for candidate in candidates:
            if isinstance(candidate, dict) and "continuationToken" in candidate:
                note(found, CONTINUATION, candidate["continuationToken"])
        return tuple(found)
    note(found, TYPED, body.get("name"))
    note(found, PAGE, body.get("nextPageToken"))
    if isinstance(file := body.get("file"), dict):
        note(found, TYPED, file.get("name"))
        note(found, TYPED, file.get("uri"))
    for part in ("response", "metadata"):
        # Of an operation or a batch: the document, the tuned model, the file of results.
        if isinstance(value := body.get(part), dict):
            found.update(dict.fromkeys(read_body(value)[1]))
    for items in _LISTS:
        for item in _dicts(body.get(items)):
            note(found, TYPED, item.get("name"))
    return tuple(found)


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


def _dicts(items: object) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else ()
