"""The service behind the port: whose request it is, whether it may pass, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from keyrot_middleware.testing.answers import ModelAnswers
from keyrot_middleware.testing.clock import Clock
from keyrot_middleware.testing.error_bodies import plain
from keyrot_middleware.testing.keys import KeyRing
from keyrot_middleware.testing.log import LoggedRequest, RequestLog
from keyrot_middleware.testing.quota import Limits, QuotaCounter, Window
from keyrot_middleware.testing.replies import JSON, Reply, Scripted, Scripts
from keyrot_middleware.testing.request import FakeRequest
from keyrot_middleware.testing.routes import (
    GENERATING,
    STREAMS,
    Catalogue,
    Route,
    describe,
    page,
    parse_route,
)
from keyrot_middleware.testing.server import Head, HttpRequest, ResponsePlan
from keyrot_middleware.testing.stored import StoredThings, named_things
from keyrot_middleware.testing.stored_verbs import StoredVerbs
from keyrot_middleware.testing.tokens import count_tokens

__all__ = [
    "MODEL_VERBS",
    "SPEAKING",
    "RequestPolicy",
    "Service",
    "credentials",
    "error_plan",
    "is_stream",
    "stream_plan",
    "unary_plan",
]

# Whether a request may pass: by its credentials, by a script, or by the rules of the service ---


SPEAKING = frozenset({"generateContent", "streamGenerateContent"})
_CHARGED = GENERATING | {"interactions.create"}
MODEL_VERBS = _CHARGED | {"countTokens", "predictLongRunning", "batches.create"}
_NO_CONTENTS = Scripted(
    400,
    plain(
        400,
        "INVALID_ARGUMENT",
        "* GenerateContentRequest.contents: contents is not specified\n",
    ),
    name="NO_CONTENTS",
)
# The SDK sends no key with the bytes of an upload: the session's address is the credential.
_KEYLESS = frozenset({"upload.chunk"})


class RequestPolicy:
    """Decides on a reply, and books what it costs.

    Args:
        book: The quotas.
        scripts: What the test wants.
        models: Which models there are.
        things: Whose files and caches there are.
    """

    def __init__(
        self, book: QuotaCounter, scripts: Scripts, models: Catalogue, things: StoredThings
    ) -> None:
        self._book = book
        self._scripts = scripts
        self._models = models
        self._things = things

    def decide(self, asked: FakeRequest, request: HttpRequest) -> tuple[FakeRequest, Scripted]:
        """Decide what the request gets: what its credentials, a script, or the rules say."""
        verb, keys = asked.route.verb, credentials(asked.route, request)
        if verb in _KEYLESS:
            return asked, Reply.OK
        if len(keys) != 1:
            return asked, _without_one_key(keys, request)
        read = verb.endswith((".list", ".get"))
        scripted = self._scripts.take(asked.key.label if asked.key else None, read=read)
        if scripted is not None:
            if scripted.counts:
                self._count(asked)
            return asked, scripted
        return self._by_rule(asked, request) if asked.key else (asked, Reply.KEY_INVALID)

    def _by_rule(self, asked: FakeRequest, request: HttpRequest) -> tuple[FakeRequest, Scripted]:
        verb = asked.route.verb
        if not verb:
            return asked, Reply.NOT_FOUND_HTML
        if foreign := self._foreign(asked, request):
            denied = Reply.FILE_DENIED if foreign.startswith("files/") else Reply.CACHE_DENIED
            return replace(asked, resource=foreign), denied
        if verb not in MODEL_VERBS:
            return asked, Reply.OK
        if not self._models.serves(asked.route.model):
            return asked, Reply.MODEL_NOT_FOUND
        return self._charge(asked) if verb in _CHARGED else (asked, Reply.OK)

    def _charge(self, asked: FakeRequest) -> tuple[FakeRequest, Scripted]:
        account, requests = self._account(asked), _requests(asked)
        broken = self._book.charge(*account, requests=requests, tokens=asked.tokens)
        if broken:
            wait_s = self._book.wait_s(*account, requests=requests, tokens=asked.tokens)
            return replace(asked, broken=tuple(broken), wait_s=wait_s), Reply.QUOTA
        if asked.route.verb in SPEAKING and not asked.body.get("contents"):
            return asked, _NO_CONTENTS
        return asked, Reply.OK

    def _count(self, asked: FakeRequest) -> None:
        if asked.key and asked.route.verb in _CHARGED:
            self._book.count(*self._account(asked), requests=_requests(asked), tokens=asked.tokens)

    def _account(self, asked: FakeRequest) -> tuple[str, str, float]:
        return (asked.key.project if asked.key else "", asked.bucket, asked.now)

    def _foreign(self, asked: FakeRequest, request: HttpRequest) -> str:
        """Return the first stored thing that the body names and the key's project has not."""
        if b"files/" not in request.body and b"cachedContents/" not in request.body:
            return ""
        if asked.route.verb == "upload.start" or asked.key is None:
            return ""
        project = asked.key.project
        names = named_things(asked.body)
        return next((name for name in names if self._things.get(name, project) is None), "")


def credentials(route: Route, request: HttpRequest) -> list[str]:
    """Return every key of a request: those in headers, and the one in the query."""
    values = request.values("x-goog-api-key")
    return [*values, route.query["key"]] if "key" in route.query else values


def _without_one_key(keys: list[str], request: HttpRequest) -> Scripted:
    if keys:
        return Reply.MULTIPLE_KEYS
    # A key that is sent as a bearer token is taken for one of OAuth (GEMINI.md A5).
    return Reply.TOKEN_UNSUPPORTED if request.values("authorization") else Reply.UNREGISTERED


def _requests(asked: FakeRequest) -> int:
    # One request an item of the batch (GEMINI.md B5).
    batch = asked.route.verb == "batchEmbedContents"
    return len(asked.body.get("requests") or ()) if batch else 1


# From a scripted reply and an ordinary answer to the bytes that go out -------------------------


_SSE = "text/event-stream"
# The word that the Interactions API uses for an HTTP status (GEMINI.md A0, A2, A4, A10).
_WORDS = {
    400: "invalid_request",
    401: "authentication",
    402: "payment_required",
    403: "permission_denied",
    404: "not_found",
    429: "too_many_requests",
    499: "cancelled",
    503: "service_unavailable",
    504: "deadline_exceeded",
}
Done = Callable[[], None]


def is_stream(asked: FakeRequest) -> bool:
    """Whether a request asks for a stream of server-sent events."""
    return asked.route.verb in STREAMS and asked.route.query.get("alt") == "sse"


def unary_plan(
    reply: Scripted, value: Any, asked: FakeRequest, done: Done, latency_s: float
) -> ResponsePlan:
    """Plan an ordinary answer in one write; a reply that closes sends half of the body."""
    body = json.dumps(value).encode()
    head = Head(200, JSON, asked.now, len(body), reply.headers)
    sent = body if reply.ending == "end" else body[: len(body) // 2]
    delay = latency_s + reply.delay_s
    return ResponsePlan(head, (sent,), done, delay_s=delay, ending=reply.ending)


def stream_plan(
    reply: Scripted, chunks: Sequence[Any], asked: FakeRequest, done: Done, latency_s: float
) -> ResponsePlan:
    """Plan a stream of events, cut or broken where the reply says so."""
    events = [b"data: %b\r\n\r\n" % json.dumps(value).encode() for value in chunks]
    events = events[: reply.after]
    if reply.body is not None:
        # No `data:` before the error: it is appended to the events as it is (GEMINI.md A11).
        events.append(_json_error(reply, asked, is_interaction=False) + b"\n")
    return ResponsePlan(
        Head(200, _SSE, asked.now, None, reply.headers),
        tuple(events),
        done,
        delay_s=latency_s + reply.delay_s,
        gap_s=reply.gap_s,
        ending=reply.ending,
    )


def error_plan(reply: Scripted, asked: FakeRequest, done: Done, latency_s: float) -> ResponsePlan:
    """Plan an HTTP error, or a reply of the test's own, or none at all."""
    delay = latency_s + reply.delay_s
    if not reply.status:
        return ResponsePlan(None, (), done, delay_s=delay, ending=reply.ending)
    is_interaction = asked.route.verb.startswith("interactions")
    body = _json_error(reply, asked, is_interaction=is_interaction)
    # A stream that fails before it begins says event-stream, and holds plain JSON (GEMINI.md A0).
    sse = is_stream(asked) and reply.content_type == JSON
    kind = _SSE if sse else reply.content_type
    head = Head(reply.status, kind, asked.now, len(body), reply.headers)
    return ResponsePlan(head, (body,), done, delay_s=delay, ending=reply.ending)


def _json_error(reply: Scripted, asked: FakeRequest, *, is_interaction: bool) -> bytes:
    value = reply.body(asked) if reply.body is not None else b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if (reply.interactions or is_interaction) and isinstance(value, dict) and "error" in value:
        word = _WORDS.get(reply.status, "internal")
        value = {"error": {"message": value["error"]["message"], "code": word}}
    return json.dumps([value] if reply.listwrap else value, indent=2).encode()


_COUNTED = MODEL_VERBS | {"cachedContents.create"}


class Service:
    """Everything that one fake service knows; `handle` runs in the server's thread only.

    Args:
        clock: Tells the time of windows and stamps.
        log: Where requests are written.
        url: Says the service's own address.
        window: How minutes are counted.
    """

    def __init__(
        self, clock: Clock, log: RequestLog, url: Callable[[], str], window: Window = "minute"
    ) -> None:
        self.clock = clock
        self.log = log
        self.keys = KeyRing()
        self.book = QuotaCounter(window)
        self.scripts = Scripts()
        self.models = Catalogue()
        self.answers = ModelAnswers()
        self.count_tokens: Callable[[dict[str, Any]], int] = count_tokens
        self.latency_s = 0.0
        self._things = StoredThings()
        self._stored = StoredVerbs(self._things, url)
        self._judge = RequestPolicy(self.book, self.scripts, self.models, self._things)

    def handle(self, request: HttpRequest) -> ResponsePlan:
        """Answer one request. What goes wrong in here is an HTTP 500 that says so."""
        asked = FakeRequest(parse_route(request.method, request.target), now=self.clock.time())
        try:
            asked = self._understand(asked.route, request)
            asked, reply = self._judge.decide(asked, request)
            return self._plan(asked, reply, request)
        except Exception as problem:
            text = f"FakeGemini could not answer: {type(problem).__name__}: {problem}"
            broken = Scripted(500, plain(500, "INTERNAL", text), name="FAKE_BROKEN")
            return error_plan(broken, asked, self._logged(asked, broken, request), 0.0)

    def _understand(self, route: Route, request: HttpRequest) -> FakeRequest:
        body = _json(request.body)
        if not route.model and body.get("model"):
            route = replace(route, model=str(body["model"]).removeprefix("models/"))
        values = credentials(route, request)
        key = self.keys.find(values[0]) if len(values) == 1 else None
        bucket = self.models.bucket(route.model)
        return FakeRequest(
            route,
            key,
            values[0] if values else "",
            bucket,
            self.clock.time(),
            self.book.limits(key.project, bucket) if key else Limits(),
            body=body,
            tokens=self.count_tokens(body) if route.verb in _COUNTED else 0,
        )

    def _plan(self, asked: FakeRequest, reply: Scripted, request: HttpRequest) -> ResponsePlan:
        value: Any = None
        if reply.answers:
            value = self._value(asked, reply, request)
            if isinstance(value, Scripted):
                named = value.name if value.status >= 400 else "OK"
                reply = replace(value, delay_s=reply.delay_s, name=named)
        elif reply.after is not None and is_stream(asked):
            value = self.answers.chunks(asked)
        done = self._logged(asked, reply, request, status=200 if value is not None else None)
        if value is None or isinstance(value, Scripted):
            return error_plan(reply, asked, done, self.latency_s)
        if is_stream(asked):
            return stream_plan(reply, value, asked, done, self.latency_s)
        return unary_plan(reply, value, asked, done, self.latency_s)

    def _value(self, asked: FakeRequest, reply: Scripted, request: HttpRequest) -> Any:
        verb = asked.route.verb
        if verb in SPEAKING:
            say = self.answers.chunks if verb in STREAMS else self.answers.generate
            return say(asked, continues=reply.continues)
        if (of_model := self._of_model(verb)) is not None:
            return of_model(asked)
        if verb in {"models.list", "models.get"}:
            return self._models(asked)
        return self._stored.answer(asked, request)

    def _of_model(self, verb: str) -> Callable[[FakeRequest], Any] | None:
        return {
            "embedContent": self.answers.embedding,
            "batchEmbedContents": self.answers.embedding,
            "predict": self.answers.predict,
            "interactions.create": self._interact,
            "countTokens": lambda asked: {"totalTokens": asked.tokens},
            "predictLongRunning": self._stored.operation,
        }.get(verb)

    def _interact(self, asked: FakeRequest) -> dict[str, Any]:
        value = self.answers.interaction(asked)
        if asked.key:
            self._things.put(f"interactions/{value['id']}", asked.key.project, value)
        return value

    def _models(self, asked: FakeRequest) -> Any:
        if asked.route.verb == "models.list":
            return page("models", self.models.all(), asked.route.query)
        served = self.models.serves(asked.route.model)
        return describe(asked.route.model) if served else Reply.MODEL_NOT_FOUND

    def _logged(
        self, asked: FakeRequest, reply: Scripted, request: HttpRequest, status: int | None = None
    ) -> Callable[[], None]:
        label = asked.key.label if asked.key else None
        entry = LoggedRequest(
            at=asked.now,
            key=label,
            method=request.method,
            path=request.target,
            model=asked.route.model,
            verb=asked.route.verb,
            status=reply.status if status is None else status,
            stream=is_stream(asked),
            reply=reply.name,
            tokens=asked.tokens,
            body=asked.body,
            headers=request.headers,
        )
        self.log.add(entry)
        return partial(self.log.done, label)


def _json(body: bytes) -> dict[str, Any]:
    if not body[:1].strip():
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
