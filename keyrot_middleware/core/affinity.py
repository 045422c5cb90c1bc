"""Which stored resources a request names, so that a key of the owning project is used.

A file, a cache, a batch, an operation, a page token belongs to one project; a key of another
project gets a 403 (docs/gemini-api.md#stored-things). request_body.py has the forms of the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from .model import GENERIC_VERBS
from .request_body import CONTINUATION, HANDLE, PAGE, TYPED, UPLOAD, add_name, read_body

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

NEW_BATCH = frozenset({"asyncBatchEmbedContent", "batchGenerateContent"})
"""Methods that start a batch. Any project may own a new one."""

UNMETERED = GENERIC_VERBS | NEW_BATCH | {"computeTokens", "countTokens"}
"""Methods that do not count in a model's quota: batches have limits of their own, and counting
tokens is no generation (docs/gemini-api.md#what-counts). Unknown methods count."""


class Lifetime(NamedTuple):
    """How long the owner of a stored resource is remembered."""

    seconds: int
    renewed: bool
    """From each use on again: the resource itself does not end by a clock."""


_HOUR_S = 3_600
_DAY_S = 24 * _HOUR_S

_LIFETIMES = {
    "files/": Lifetime(49 * _HOUR_S, renewed=False),  # Google deletes files after 48 hours
    PAGE: Lifetime(_DAY_S, renewed=False),
    CONTINUATION: Lifetime(_DAY_S, renewed=False),
    HANDLE: Lifetime(_DAY_S, renewed=False),
    UPLOAD: Lifetime(_DAY_S, renewed=False),
}
_LONG = Lifetime(60 * _DAY_S, renewed=True)
"""Of all else: an interaction is kept for 55 days, a batch, a cache or an operation for less
(docs/gemini-api.md#stored-things), and a file search store or a tuned model until it is deleted."""


def owner_lifetime(name: str) -> Lifetime:
    """Return how long to remember the owner of the stored resource *name*."""
    return next((kept for begin, kept in _LIFETIMES.items() if name.startswith(begin)), _LONG)


_PREFIX = re.compile(r"(?:upload|download|\{api_version\}|v\d+(?:(?:alpha|beta)\d*)?)\Z")

_API = re.compile(
    r"/v\d+(?:(?:alpha|beta)\d*)?/(?=(?:openai|models|publishers|tunedModels|files|cachedContents"
    r"|batches|fileSearchStores|operations|corpora|interactions|agents|environments|credentials"
    r"|voices|triggers|webhooks|decisions|auth_tokens)(?:[/:?]|\Z))"
)
"""Where the path of the API begins; a gateway may have parts of its own in front of it."""

_OPENAI = {
    ("chat", "completions"): "generateContent",
    ("embeddings",): "embedContent",
    ("images", "generations"): "predict",
}
"""What Google serves below `openai/`, and its own methods for the same; models, files and batches
have the same paths there (https://ai.google.dev/gemini-api/docs/openai)."""

_OWNED_MODELS = ("endpoints", "projects")
"""Collections of Vertex AI in which a model is somebody's own."""

_LISTS = (
    *("files", "cachedContents", "batches", "operations", "fileSearchStores", "tunedModels"),
    "data",  # OpenAI's
)
_START = 65_536
"""How much of a conversation's start is digested."""


class Route(NamedTuple):
    """What follows from a request's method and path alone."""

    model: str
    """Without `models/`, but `tunedModels/x` whole; empty where the path names none."""
    verb: str
    """The method after the colon; else `get`, `list`, `delete`, `patch`, and for a create the
    name of the collection, such as `cachedContents`."""
    collection: str
    """`models`, `files`, … : the path's first part."""
    names: tuple[str, ...]
    """Stored resources that the path names."""
    bound_to_owner: bool
    """It uses stored resources, so only their owner's key may send it. A request whose body names
    some is bound too."""
    idempotent: bool
    """Sending it twice is harmless."""
    counts_in_quota: bool
    """It counts in the model's RPM, TPM and RPD."""
    is_openai: bool = False
    """It is one of OpenAI's, whose body names the model."""


@lru_cache(maxsize=1024)
def is_api_path(path: str) -> bool:
    """Return whether a path, or a URL, is one of the Gemini API, behind a gateway or not."""
    return _API.search(path) is not None


@lru_cache(maxsize=1024)
def parse_path(method: str, path: str) -> Route:
    """Parse a path as the SDK passes it to its api client, with or without version and query.

    The path of an HTTP request will do too, also behind a gateway, and those of OpenAI's protocol.

    Only stateless inference, new batches, and reading models may use any key.
    """
    parts, verb = _split(path)
    is_openai = parts[:1] == ["openai"]
    if is_openai:
        del parts[0]
        if parts[1:2] == parts[:1]:
            del parts[0]  # an id has the name of its collection in it: `batches/batches/abc`
        verb = _OPENAI.get(tuple(parts), verb) if method.lower() == "post" else verb
    collection = parts[0] if parts else ""
    model = ""
    if len(parts) > 1 and collection in ("models", "tunedModels"):
        model = parts[1] if collection == "models" else f"tunedModels/{parts[1]}"
    verb = verb or _plain_verb(method.lower(), parts)
    reading = method.lower() == "get"
    stateless = verb in STATELESS and collection not in _OWNED_MODELS
    names = _names_of(parts, path)
    any_project = stateless or verb in NEW_BATCH or (reading and collection == "models")
    bound_to_owner = bool(names) or not any_project
    counts_in_quota = (bool(model) or (is_openai and stateless)) and verb not in UNMETERED
    return Route(
        model,
        verb,
        collection,
        names,
        bound_to_owner,
        stateless or reading,
        counts_in_quota,
        is_openai,
    )


def _names_of(parts: list[str], path: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    add_name(found, TYPED, "/".join(parts))
    for key, value in parse_qsl(path.partition("?")[2]):
        if key in ("pageToken", "page_token"):
            add_name(found, PAGE, value)
        elif key == "upload_id":
            add_name(found, UPLOAD, value)
    return tuple(found)


def find_resource_names(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stored resources that a response names; its key's project owns them."""
    found: dict[str, None] = {}
    candidates = body.get("candidates")
    if isinstance(candidates, list):
        for candidate in candidates:
            if isinstance(candidate, dict) and "continuationToken" in candidate:
                add_name(found, CONTINUATION, candidate["continuationToken"])
        return tuple(found)
    for key in ("name", "id", "output_file_id"):  # the last two are OpenAI's
        add_name(found, TYPED, body.get(key))
    add_name(found, PAGE, body.get("nextPageToken"))
    if isinstance(file := body.get("file"), dict):
        add_name(found, TYPED, file.get("name"))
        add_name(found, TYPED, file.get("uri"))
    for part in ("response", "metadata"):
        # An operation or a batch: the document, the tuned model, the file of results.
        if isinstance(value := body.get(part), dict):
            found.update(dict.fromkeys(read_body(value)[1]))
    for items in _LISTS:
        for item in _dicts(body.get(items)):
            add_name(found, TYPED, item.get("name") or item.get("id"))
    return tuple(found)


def conversation(body: Mapping[str, Any]) -> str:
    """Return a digest of what all turns of a conversation share: instruction and first message.

    Returns:
        Sixteen hexadecimal digits; empty if the body has neither.
    """
    system = body.get("systemInstruction") or body.get("system_instruction")
    contents = body.get("contents") or body.get("messages")
    if isinstance(contents, list):  # OpenAI's first message may be the instruction
        contents = contents[: 1 if "contents" in body else 2]
    if not system and not contents:
        return ""
    start = repr((system, contents))[:_START].encode("utf-8", "surrogatepass")
    return blake2b(start, digest_size=8).hexdigest()


def _split(path: str) -> tuple[list[str], str]:
    """Split a path into its parts, without host, version and query, and the method name."""
    bare = path.partition("?")[0]
    if (begin := _API.search(bare)) is not None:
        bare = bare[begin.end() :]
    elif "://" in bare:
        bare = bare.partition("://")[2].partition("/")[2]
    bare, _, verb = bare.partition(":")
    parts = [part for part in bare.split("/") if part]
    while parts and _PREFIX.match(parts[0]):
        del parts[0]
    if len(parts) > 2 and parts[0] == "publishers" and parts[2] == "models":
        del parts[:2]  # Vertex AI names the publisher of a model too
    return parts, verb


def _plain_verb(method: str, parts: list[str]) -> str:
    is_collection = len(parts) % 2 == 1
    if method == "get" and is_collection:
        return "list"
    return parts[-1] if method == "post" and is_collection else method


def _dicts(items: object) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else ()
