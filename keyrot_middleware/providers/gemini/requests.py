"""What a request is: its method and model, and the stored things that it names.

A file, a cache, a batch, an operation, a page token belongs to one project; a key of another
project gets a 403 (docs/gemini-api.md#stored-things). bodies.py has the forms of the names.

Interactions, agents, environments, credentials, voices, triggers and webhooks have ids without a
collection, such as `v1_abc`. The key under which an id stands says what it names. A program's
agent and Google's own (`deep-research-…`) look the same, and so do environments and voices. So such
an id counts only if its owner is known: `is_certain`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl

from ...core.affinity import PAGE, TYPED, UPLOAD, is_certain
from ...core.model import GENERIC_VERBS, CallInfo
from ..base import Route, is_numbers
from .bodies import add_name, read_body, requested_tier

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

_SAME = frozenset({"get", "list", "patch", "cancel"})
_OWNED_MODELS = ("endpoints", "projects")
"""Collections of Vertex AI in which a model is somebody's own."""

_START = 65_536
"""How much of a conversation's start is digested."""


_INTERACTIONS = frozenset(
    {
        *("interactions", "agents", "environments", "credentials", "voices", "triggers"),
        *("webhooks", "decisions"),
    }
)
"""The collections of the Interactions API."""
VERTEX = re.compile(r"aiplatform\.googleapis\.com|/v1beta1/|/publishers/")
"""In the addresses of Vertex AI: no other API has such a version."""


@lru_cache(maxsize=1024)
def route_of(method: str, url: str) -> Route | None:
    """Return the route of a request to the Developer API; None for another address."""
    if _API.search(url.partition("?")[0]) is None or VERTEX.search(url) is not None:
        return None
    return parse_path(method, url)


@lru_cache(maxsize=1024)
def express_route_of(method: str, url: str) -> Route | None:
    """Return the route of a request to Vertex AI in express mode; None for another address."""
    if _API.search(url.partition("?")[0]) is None or VERTEX.search(url) is None:
        return None
    return parse_path(method, url)


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
    protocol = "interactions" if collection in _INTERACTIONS else ""
    own = verb in _SAME or verb == collection
    return Route(
        verb,
        model,
        names,
        bound_to_owner,
        idempotent=stateless or reading,
        counts_in_quota=counts_in_quota,
        stream=":stream" in path.partition("?")[0],
        protocol="openai" if is_openai else protocol,
        collection=collection if protocol and own and collection != "decisions" else "",
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


def read_request(route: Route, body: Mapping[str, Any]) -> CallInfo:
    """Read a request; none of its content is kept."""
    tokens, found = read_body(body)
    names = dict.fromkeys((*route.names, *found))
    model, counts, bound_to_owner = route.model, route.counts_in_quota, route.bound_to_owner
    named = body.get("model")
    if route.protocol == "interactions":
        is_create = route.verb in _NEW and not route.names
        _find_ids(body, names)
        names = dict.fromkeys(sorted(names, key=is_certain, reverse=True))
        model = named.removeprefix("models/") if is_create and isinstance(named, str) else ""
        counts, bound_to_owner = bool(model), not is_create
    elif route.protocol == "openai" and isinstance(named, str):
        model = named.removeprefix("models/")
    tokens = tokens if counts else 0
    return CallInfo(
        model=model,
        verb=route.verb,
        tokens=tokens,
        estimate=tokens,
        requests=count_requests(route.verb, body) if counts else 0,
        stream=route.stream or body.get("stream") is True,
        bound_to_owner=bound_to_owner or any(map(is_certain, names)),
        idempotent=route.idempotent,
        resources=tuple(names),
        counts_in_quota=counts,
        service_tier=requested_tier(body),
    )


def count_requests(verb: str, body: Mapping[str, Any]) -> int:
    """Return how many requests it counts as in RPM: each item of a batchEmbedContents is one."""
    if verb == "batchEmbedContents":
        items = body.get("requests")
    elif verb == "embedContent":
        items = body.get("input")  # OpenAI's: one text or several
    else:
        return 1
    return max(1, len(items)) if isinstance(items, list) and not is_numbers(items) else 1


# Interactions -----------------------------------------------------------------------------------


_NEW = frozenset({"interactions", "decisions"})
"""Creates that any key may send: they run a model or an agent, as a generate does."""
_AGENT, _ENVIRONMENT, _CREDENTIAL, _VOICE = "agents/", "environments/", "credentials/", "voices/"
_IDS = {
    "agent": _AGENT,
    "base_agent": _AGENT,
    "environment": _ENVIRONMENT,
    "environment_id": _ENVIRONMENT,
    "base_environment": _ENVIRONMENT,
    "from_environment": _ENVIRONMENT,
    "credential": _CREDENTIAL,
    "voice": _VOICE,
    "base_voice": _VOICE,
}
"""The keys of a request that hold an id, and the collection that it belongs to."""
_PARTS = frozenset(
    {
        *("allowlist", "base_environment", "env", "environment", "generation_config"),
        *("interaction", "network", "prompted", "speech_config", "voice"),
    }
)
"""The keys below which such a key can stand. All else is the user's or the model's data."""


def _find_ids(part: object, found: dict[str, None]) -> None:
    for key, value in part.items() if isinstance(part, Mapping) else ():
        if isinstance(value, str):
            if key in _IDS and value:
                found[_IDS[key] + value] = None
        elif key == "env" and isinstance(value, Mapping):
            for variable in value.values():
                _find_ids(variable, found)
        elif key in _PARTS:
            for item in value if isinstance(value, list) else (value,):
                _find_ids(item, found)
