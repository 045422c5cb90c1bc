"""One request, parsed, and the log of requests."""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from keyrot_middleware.core.model import Limits
from keyrot_middleware.testing.keys import FakeKey, LimitName

STREAMS = frozenset({"streamGenerateContent"})
# Verbs that run a model and count against its quota; countTokens does not
# (docs/gemini-api.md#what-counts).
QUOTA_VERBS = frozenset(
    {"generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "predict"}
)
_WEBSOCKET = re.compile(
    r"google\.ai\.generativelanguage\.(\w+)\.GenerativeService\.(?:"
    r"(BidiGenerateContent)(?:Constrained)?|(BidiGenerateMusic))"
)
_MODEL_COLLECTIONS = frozenset({"models", "tunedModels"})
_STORED_COLLECTIONS = frozenset(
    {
        *("files", "cachedContents", "batches", "interactions", "operations"),
        *("auth_tokens", "fileSearchStores", "agents", "credentials", "decisions"),
        *("environments", "triggers", "voices", "webhooks"),
    }
)
_NOT_IN_V1 = frozenset({"auth_tokens", "cachedContents"})
"""Google serves these, and Live, in other versions only (docs/gemini-api.md#v1-and-v1beta)."""
_WITH_PARTS = frozenset({"environments", "interactions", "triggers"})
"""Those whose verbs are parts of the path: `interactions/ID/cancel`."""
_METHOD_VERBS = {"GET": "get", "DELETE": "delete", "PATCH": "patch", "POST": "post", "PUT": "put"}


@dataclass(frozen=True, slots=True)
class FakeRoute:
    """A parsed request line.

    Attributes:
        verb: A model's verb (`generateContent`), `models.list`, `models.get`, or of a resource
            `files.create`, `files.get`, `batches.cancel`…, `upload.start`, `upload.chunk`,
            `download`; of a websocket `bidiGenerateContent`, `bidiGenerateMusic`,
            `interactions.connect`; empty: no such path.
        version: `v1`, `v1beta` or any other first segment.
        model: The model without `models/`, or empty.
        name: The resource, e.g. `files/abc`, or empty.
        query: The query's parameters.
        openai: Whether it is in OpenAI's protocol; `chat.completions.create` and
            `embeddings.create` get the native verbs when their body is known.
    """

    verb: str
    version: str = ""
    model: str = ""
    name: str = ""
    query: dict[str, str] = field(default_factory=dict)
    openai: bool = False

    @property
    def rpc(self) -> str:
        """The method's name in Google's error bodies."""
        service = f"google.ai.generativelanguage.{self.version or 'v1beta'}"
        last = self.verb.rpartition(".")[2] or "call"
        return f"{service}.GenerativeService.{last[0].upper()}{last[1:]}"


def parse_route(method: str, target: str) -> FakeRoute:
    """Parse a method and a request target."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query)) if parts.query else {}
    segments = [unquote(part) for part in parts.path.split("/") if part]
    if segments[:1] == ["upload"]:
        verb = "upload.chunk" if "upload_id" in query else "upload.start"
        return FakeRoute(
            verb if segments[2:3] == ["files"] else "", _segment(segments, 1), query=query
        )
    if segments[:1] == ["ws"]:
        match = _WEBSOCKET.fullmatch(_segment(segments, 1))
        if match is None or match[1] == "v1":
            return FakeRoute("", match[1] if match else "", query=query)
        return FakeRoute(f"b{(match[2] or match[3])[1:]}", match[1], query=query)
    if segments[1:] == ["interactions", "live"]:
        return FakeRoute("interactions.connect", segments[0], query=query)
    if segments[:1] == ["download"]:
        return FakeRoute(
            "download", _segment(segments, 1), name="/".join(segments[2:4]), query=query
        )
    return _versioned_route(method, _segment(segments, 0), segments[1:], query)


def _segment(segments: list[str], index: int) -> str:
    return segments[index] if index < len(segments) else ""


def _versioned_route(
    method: str, version: str, rest: list[str], query: dict[str, str]
) -> FakeRoute:
    if rest[:1] == ["publishers"] and rest[2:3] == ["models"]:
        rest = rest[2:]  # as Vertex AI names models
    collection = _segment(rest, 0)
    if collection == "openai":
        return replace(_openai_route(method, version, rest[1:], query), openai=True)
    if collection in _MODEL_COLLECTIONS:
        return _model_route(method, version, rest, query)
    if collection in _STORED_COLLECTIONS and not (version == "v1" and collection in _NOT_IN_V1):
        name, _, custom = "/".join(rest).partition(":")
        if query.get("alt") == "media" and not custom:  # of a file search store
            custom = "download"
        if len(rest) > 2 and collection in _WITH_PARTS:
            name, custom = "/".join(rest[:2]), rest[2]
        return FakeRoute(
            _stored_verb(method, collection, len(rest), custom), version, "", name, query
        )
    return FakeRoute("", version, query=query)


def _openai_route(method: str, version: str, rest: list[str], query: dict[str, str]) -> FakeRoute:
    if method == "GET" and rest[:1] == ["models"]:
        model = "/".join(rest[1:]).removeprefix("models/")
        return FakeRoute("models.get" if model else "models.list", version, model, query=query)
    if method == "POST" and rest in (["chat", "completions"], ["embeddings"]):
        return FakeRoute(".".join([*rest, "create"]), version, query=query)
    return FakeRoute("", version, query=query)


def _model_route(method: str, version: str, rest: list[str], query: dict[str, str]) -> FakeRoute:
    if len(rest) == 1:
        return FakeRoute("models.list" if method == "GET" else "", version, query=query)
    name, _, verb = "/".join(rest).partition(":")
    model = name.removeprefix("models/")
    if "/operations/" in name:
        return FakeRoute("operations.get", version, model.partition("/")[0], name, query)
    if verb in {"batchGenerateContent", "asyncBatchEmbedContent"}:
        return FakeRoute("batches.create", version, model, "", query)
    if not verb and method == "GET":
        verb = "models.get"
    return FakeRoute(verb, version, model, "", query)


def _stored_verb(method: str, collection: str, depth: int, custom: str) -> str:
    if custom:
        return f"{collection}.{custom}"
    plain = _METHOD_VERBS.get(method, "")
    if depth == 1:
        plain = {"get": "list", "post": "create"}.get(plain, plain)
    return f"{collection}.{plain}"


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request, as the replies see it.

    Attributes:
        route: The parsed path.
        key: Its key; None: no known key.
        value: The key's value as it was sent, or empty.
        bucket: The quota bucket of the model.
        now: Epoch seconds by the service's clock.
        limits: The limits of the key's project for the bucket.
        exceeded: The limits that the request would exceed.
        body: The JSON body, or an empty dict.
        tokens: The input tokens of the body.
        resource: The resource that the request names, or empty.
        model: The model that answers.
    """

    route: FakeRoute
    key: FakeKey | None = None
    value: str = ""
    bucket: str = ""
    now: float = 0.0
    limits: Limits = field(default_factory=Limits)
    exceeded: tuple[LimitName, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    resource: str = ""
    model: str = ""

    @property
    def free(self) -> bool:
        """Whether the key's project is of the free tier."""
        return self.key is None or self.key.tier == "free"

    @property
    def project(self) -> str:
        """The key's project, or empty."""
        return self.key.project if self.key else ""

    @property
    def label(self) -> str:
        """The key's label, or `nobody`."""
        return self.key.label if self.key else "nobody"

    @property
    def consumer(self) -> str:
        """The key's project in Google's error bodies."""
        return f"projects/{self.key.number if self.key else '100000000000'}"


# The log -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request and its reply.

    Attributes:
        at: Epoch seconds by the service's clock, when it was complete.
        key: The key's label; None: no known key.
        method: The HTTP method.
        path: The path with its query.
        model: The model, or empty.
        verb: The method: `generateContent`, `files.get`, `upload.start`…
        body: The JSON body, or an empty dict.
        headers: Pairs as received, including repeated headers.
        status: The HTTP status of the answer; 0 if there was none. Of a Live session 101, and the
            code with which the server closed it.
        stream: Whether it requested a stream.
        reply: The name of the answer: `OK`, or a member of `Reply`.
        tokens: The input tokens that were counted.
    """

    at: float
    key: str | None
    method: str
    path: str
    model: str
    verb: str
    status: int
    stream: bool
    reply: str
    tokens: int = 0
    body: dict[str, Any] = field(default_factory=dict, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def header_values(self, name: str) -> list[str]:
        """Return every value of a header; the name is case-insensitive."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]


class RequestLog:
    """The requests, and how many are in flight; thread-safe.

    Args:
        keep: How many of the newest requests are kept; None keeps all. Counts by key are exact
            in any case.
    """

    def __init__(self, keep: int | None = None) -> None:
        self._changed = threading.Condition()
        self._requests: deque[LoggedRequest] = deque(maxlen=keep)
        self._sent: Counter[str | None] = Counter()
        self._in_flight: Counter[str | None] = Counter()
        self._peak: Counter[str | None] = Counter()

    def add(self, request: LoggedRequest) -> None:
        """Add a request, and count it as in flight."""
        key = request.key
        with self._changed:
            self._requests.append(request)
            self._sent[key] += 1
            self._in_flight[key] += 1
            self._peak[key] = max(self._peak[key], self._in_flight[key])
            self._changed.notify_all()

    def change(self, request: LoggedRequest, **fields: Any) -> LoggedRequest:
        """Replace a request in the log by one with other *fields*, and return that."""
        changed = replace(request, **fields)
        with self._changed:
            for place, other in enumerate(self._requests):
                if other is request:
                    self._requests[place] = changed
        return changed

    def done(self, key: str | None) -> None:
        """Count a request of that key as answered."""
        with self._changed:
            self._in_flight[key] -= 1
            self._changed.notify_all()

    def all(self) -> list[LoggedRequest]:
        """Return the requests kept, oldest first."""
        with self._changed:
            return list(self._requests)

    def sent(self, key: str | None) -> int:
        """Return how many requests came with that key."""
        with self._changed:
            return self._sent[key]

    def total(self) -> int:
        """Return how many requests came in all."""
        with self._changed:
            return self._sent.total()

    def peak(self, key: str | None) -> int:
        """Return the highest number of concurrent requests of that key."""
        with self._changed:
            return self._peak[key]

    def wait_for(self, count: int, timeout: float) -> bool:
        """Wait until `count` requests came in all; return False if `timeout` seconds passed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._sent.total() >= count, timeout)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no request is in flight; return False if `timeout` seconds passed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight.total() == 0, timeout)

    def reset(self) -> None:
        """Clear requests and counts; requests in flight stay counted."""
        with self._changed:
            self._requests.clear()
            self._sent.clear()
            self._peak.clear()
