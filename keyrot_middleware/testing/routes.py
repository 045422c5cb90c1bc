"""What a path of the Gemini API asks for, whatever API version stands in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["GENERATING", "STREAMS", "Route", "parse_route"]

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
