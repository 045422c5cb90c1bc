"""What a path of the Gemini API asks for, whatever API version stands in it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["GENERATING", "STREAMS", "Catalogue", "Route", "page", "parse_route"]

STREAMS = frozenset({"streamGenerateContent"})
# Verbs that run a model, and so are charged to its quota. Free of charge: countTokens (GEMINI B5).
GENERATING = frozenset(
    {"generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "predict"}
)
_MODELS = frozenset({"models", "tunedModels"})
_STORED = frozenset({"files", "cachedContents", "batches", "interactions", "operations"})
_BY_METHOD = {"GET": "get", "DELETE": "delete", "PATCH": "patch", "POST": "post", "PUT": "put"}


@dataclass(frozen=True, slots=True)
class Route:
    """One request line, understood.

    Attributes:
        verb: A model's verb (`generateContent`), `models.list`, `models.get`, or of a stored thing
            `files.create`, `files.get`, `batches.cancel`…, `upload.start`, `upload.chunk`,
            `download`; empty if the path leads nowhere.
        version: `v1`, `v1beta` or any other first segment.
        model: The model without `models/`, or empty.
        name: The stored thing, e.g. `files/abc`, or empty.
        query: The query's parameters.
    """

    verb: str
    version: str = ""
    model: str = ""
    name: str = ""
    query: dict[str, str] = field(default_factory=dict)

    @property
    def rpc(self) -> str:
        """The method as Google's error bodies name it."""
        service = f"google.ai.generativelanguage.{self.version or 'v1beta'}"
        last = self.verb.rpartition(".")[2] or "call"
        return f"{service}.GenerativeService.{last[0].upper()}{last[1:]}"


def parse_route(method: str, target: str) -> Route:
    """Understand a method and a request target."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query)) if parts.query else {}
    segments = [unquote(part) for part in parts.path.split("/") if part]
    if segments[:1] == ["upload"]:
        verb = "upload.chunk" if "upload_id" in query else "upload.start"
        return Route(verb if segments[2:3] == ["files"] else "", _at(segments, 1), query=query)
    if segments[:1] == ["download"]:
        return Route("download", _at(segments, 1), name="/".join(segments[2:4]), query=query)
    return _inside_version(method, _at(segments, 0), segments[1:], query)


def _at(segments: list[str], index: int) -> str:
    return segments[index] if index < len(segments) else ""


def _inside_version(method: str, version: str, rest: list[str], query: dict[str, str]) -> Route:
    collection = _at(rest, 0)
    if collection in _MODELS:
        return _model_route(method, version, rest, query)
    if collection in _STORED:
        name, _, custom = "/".join(rest).partition(":")
        return Route(_stored_verb(method, collection, len(rest), custom), version, "", name, query)
    return Route("", version, query=query)


def _model_route(method: str, version: str, rest: list[str], query: dict[str, str]) -> Route:
    if len(rest) == 1:
        return Route("models.list" if method == "GET" else "", version, query=query)
    name, _, verb = "/".join(rest).partition(":")
    model = name.removeprefix("models/")
    if "/operations/" in name:
        return Route("operations.get", version, model.partition("/")[0], name, query)
    if verb in {"batchGenerateContent", "asyncBatchEmbedContent"}:
        return Route("batches.create", version, model, "", query)
    if not verb and method == "GET":
        verb = "models.get"
    return Route(verb, version, model, "", query)


def _stored_verb(method: str, collection: str, depth: int, custom: str) -> str:
    if custom:
        return f"{collection}.{custom}"
    plain = _BY_METHOD.get(method, "")
    if depth == 1:
        plain = {"get": "list", "post": "create"}.get(plain, plain)
    return f"{collection}.{plain}"


# Which models there are, under which bucket their quota is counted, and how they are listed ----


_LISTED = (
    "gemini-2.5-flash",
    "gemini-2.5-flash-lite",
    "gemini-2.5-pro",
    "gemini-3.1-flash-lite",
    "gemini-3.5-flash-lite",
    "gemini-3.6-flash",
    "gemini-3.8-flash",
    "gemini-3.1-pro-preview",
    "gemini-embedding-001",
    "gemma-4-31b-it",
    "imagen-4.0-generate-001",
)
# A model of any of these families is served, so that a test may use what name it likes.
_FAMILIES = ("gemini", "gemma", "text-embedding", "embedding", "imagen", "veo", "learnlm", "tuned")


class Catalogue:
    """Models and the aliases of their quota buckets; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aliases: dict[str, str] = {}
        self._gone: set[str] = set()

    def alias(self, model: str, bucket: str) -> None:
        """Count requests for `model` under `bucket`."""
        with self._lock:
            self._aliases[model] = bucket

    def bucket(self, model: str) -> str:
        """Return the quota bucket of a model."""
        with self._lock:
            return self._aliases.get(model, model)

    def remove(self, model: str) -> None:
        """Answer 404 for a model from now on."""
        with self._lock:
            self._gone.add(model)

    def serves(self, model: str) -> bool:
        """Whether the model is there: of a known family, and not removed."""
        with self._lock:
            return model.startswith(_FAMILIES) and model not in self._gone

    def all(self) -> list[dict[str, Any]]:
        """Return the models that a list shows."""
        with self._lock:
            return [describe(model) for model in _LISTED if model not in self._gone]


def describe(model: str) -> dict[str, Any]:
    """Return a model as `models.get` shows it."""
    verbs = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
    if "embedding" in model:
        verbs = ["embedContent", "countTextTokens"]
    elif model.startswith("imagen"):
        verbs = ["predict"]
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": verbs,
    }


def page(name: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return one page of a list; the token is the index of the next item.

    Args:
        name: The field that holds the items, e.g. `models`.
        items: All of them.
        query: The request's, with `pageSize` (50 if not given) and `pageToken`.
    """
    token, size = query.get("pageToken", ""), query.get("pageSize", "")
    start = int(token) if token.isdigit() else 0
    end = start + (int(size) if size.isdigit() and int(size) else 50)
    shown: dict[str, Any] = {name: items[start:end]} if items[start:end] else {}
    return shown | ({"nextPageToken": str(end)} if end < len(items) else {})
