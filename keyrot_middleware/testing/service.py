"""The service behind the port: whether a request is allowed, and what it is answered."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from keyrot_middleware.core.model import Limits
from keyrot_middleware.testing.answers import (
    DONE,
    ModelAnswers,
    bearer_tokens,
    count_tokens,
    from_native,
    get_field,
    to_native,
)
from keyrot_middleware.testing.keys import (
    Clock,
    FakeKey,
    KeyRegistry,
    ModelCatalogue,
    QuotaCounter,
    describe_model,
    list_page,
)
from keyrot_middleware.testing.live import LiveSession
from keyrot_middleware.testing.replies import (
    JSON,
    Reply,
    Scripted,
    Scripts,
    error,
    plain,
    quota_infos,
)
from keyrot_middleware.testing.request import (
    QUOTA_VERBS,
    STREAMS,
    FakeRequest,
    FakeRoute,
    LoggedRequest,
    RequestLog,
    parse_route,
)
from keyrot_middleware.testing.server import Head, HttpRequest, ResponsePlan
from keyrot_middleware.testing.stored import (
    DENIED,
    ENTITY_GONE,
    StoredThings,
    resource_names,
    unknown_interaction,
)

GENERATE_VERBS = frozenset({"generateContent", "streamGenerateContent"})
LIVE_VERBS = frozenset({"bidiGenerateContent", "bidiGenerateMusic"})
_QUOTA_VERBS = QUOTA_VERBS | LIVE_VERBS | {"interactions.create", "decisions.create"}
MODEL_VERBS = _QUOTA_VERBS | {"countTokens", "predictLongRunning", "batches.create"}
_COUNTED = MODEL_VERBS | {"cachedContents.create"}
_QUOTA_INFOS = re.compile(
    r"/v1/projects/([^/]+)/locations/global/services/generativelanguage\.googleapis\.com/quotaInfos"
)
_NO_CONTENTS = Scripted(
    400,
    plain(
        400,
        "INVALID_ARGUMENT",
        "* GenerateContentRequest.contents: contents is not specified\n",
    ),
    name="NO_CONTENTS",
)


def credentials(route: FakeRoute, http: HttpRequest) -> list[str]:
    """Return every key of a request: those in headers and the one in the query."""
    values = http.values("x-goog-api-key")
    if route.openai:
        values += bearer_tokens(http.values("authorization"))
    return [*values, route.query["key"]] if "key" in route.query else values


def _credential_error(route: FakeRoute, keys: list[str], http: HttpRequest) -> Scripted | None:
    if len(keys) > 1:
        return Reply.MULTIPLE_KEYS
    if route.openai:
        # NVIDIA/NemoClaw#2093: neither x-goog-api-key nor ?key= is read there.
        return None if bearer_tokens(http.values("authorization")) else Reply.NO_BEARER
    if keys:
        return None
    # Google takes a bearer token for an OAuth token (docs/gemini-api.md#where-a-key-is-sent).
    return Reply.TOKEN_UNSUPPORTED if http.values("authorization") else Reply.UNREGISTERED


def _requests(request: FakeRequest) -> int:
    # Each item of a batch counts as a request (docs/gemini-api.md#what-counts).
    batch = request.route.verb == "batchEmbedContents"
    return len(request.body.get("requests") or ()) if batch else 1


# From a reply and a response value to the bytes on the wire ------------------------------------


_SSE = "text/event-stream"
# The error codes of the Interactions API by HTTP status (docs/gemini-api.md#shapes).
_INTERACTION_CODES = {
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
OnDone = Callable[[], None]


def is_stream(request: FakeRequest) -> bool:
    """Return whether a request asks for a stream of server-sent events."""
    if request.route.verb in ("interactions.create", "interactions.get"):
        return True in (request.body.get("stream"), request.route.query.get("stream") == "true")
    route = request.route
    return route.verb in STREAMS and (route.openai or route.query.get("alt") == "sse")


_BESIDE_INTERACTIONS = frozenset(
    {
        *("agents", "credentials", "decisions", "environments", "interactions"),
        *("triggers", "voices", "webhooks"),
    }
)


def is_of_interactions(request: FakeRequest) -> bool:
    """Return whether errors have the shape of the Interactions API."""
    return request.route.verb.partition(".")[0] in _BESIDE_INTERACTIONS


def unary_plan(
    reply: Scripted, value: Any, request: FakeRequest, on_done: OnDone, latency_s: float
) -> ResponsePlan:
    """Plan a unary response; a reply that closes the connection sends half of the body."""
    body = json.dumps(value).encode()
    head = Head(200, JSON, request.now, len(body), reply.headers)
    sent = body if reply.then == "end" else body[: len(body) // 2]
    delay = latency_s + reply.delay_s
    return ResponsePlan(head, (sent,), on_done, delay_s=delay, then=reply.then)


def stream_plan(
    reply: Scripted, chunks: Sequence[Any], request: FakeRequest, on_done: OnDone, latency_s: float
) -> ResponsePlan:
    """Plan a stream of events, cut or failed as the reply says."""
    is_interaction = is_of_interactions(request)
    events = [_event(value) if is_interaction else _chunk(value) for value in chunks]
    events = events[: reply.after_chunks]
    if is_interaction and reply.body is not None:
        error = json.loads(_json_error(reply, request, is_interaction=True))
        events.append(_event({**error, "event_type": "error"}))
    elif is_interaction and reply.after_chunks is None:
        events.append(b"event: done\ndata: [DONE]\n\n")
    elif request.route.openai and reply.after_chunks is None:
        events.append(DONE)
    elif reply.body is not None:
        # No `data:` before the error: it is appended to the events as it is
        # (docs/gemini-api.md#errors-inside-a-stream).
        events.append(_json_error(reply, request, is_interaction=False) + b"\n")
    return ResponsePlan(
        Head(200, _SSE, request.now, None, reply.headers),
        tuple(events),
        on_done,
        delay_s=latency_s + reply.delay_s,
        gap_s=reply.gap_s,
        then=reply.then,
        keep_alive_s=reply.keep_alive_s,
    )


def _chunk(value: Any) -> bytes:
    return b"data: %b\r\n\r\n" % json.dumps(value).encode()


def _event(value: dict[str, Any]) -> bytes:
    kind = str(value["event_type"]).encode()
    return b"event: %b\ndata: %b\n\n" % (kind, json.dumps(value).encode())


def error_plan(
    reply: Scripted, request: FakeRequest, on_done: OnDone, latency_s: float
) -> ResponsePlan:
    """Plan an HTTP error, a custom reply, or no response at all."""
    delay = latency_s + reply.delay_s
    if not reply.status:
        return ResponsePlan(None, (), on_done, delay_s=delay, then=reply.then)
    body = _json_error(reply, request, is_interaction=is_of_interactions(request))
    # A stream that fails at once has the type event-stream and a JSON body
    # (docs/gemini-api.md#shapes).
    native = request.route.verb in STREAMS and not request.route.openai
    sse = native and is_stream(request) and reply.content_type == JSON
    kind = _SSE if sse else reply.content_type
    head = Head(reply.status, kind, request.now, len(body), reply.headers)
    return ResponsePlan(head, (body,), on_done, delay_s=delay, then=reply.then)


def _json_error(reply: Scripted, request: FakeRequest, *, is_interaction: bool) -> bytes:
    value = reply.body(request) if reply.body is not None else b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if (reply.interactions or is_interaction) and isinstance(value, dict) and "error" in value:
        code = _INTERACTION_CODES.get(reply.status, "internal")
        value = {"error": {"message": value["error"]["message"], "code": code}}
    # Without `alt=sse` a stream is an array, its errors too: simonw/llm-gemini reads it so.
    is_array = request.route.verb in STREAMS and not is_stream(request)
    in_list = reply.wrap_in_list or ((request.route.openai or is_array) and reply.status >= 400)
    return json.dumps([value] if in_list else value, indent=2).encode()


class Service:
    """The state of one fake service; `handle` runs in the server's thread only.

    Args:
        clock: The time of quota windows and timestamps.
        log: Records the requests.
        keys: Those that it accepts.
        scripts: Replies other than the usual ones.
        url: Returns the service's own address.
    """

    def __init__(
        self,
        clock: Clock,
        log: RequestLog,
        keys: KeyRegistry,
        scripts: Scripts,
        url: Callable[[], str],
    ) -> None:
        self.clock, self.log, self.keys, self.scripts = clock, log, keys, scripts
        self.quotas = QuotaCounter()
        self.models = ModelCatalogue()
        self.answers = ModelAnswers()
        self.count_tokens: Callable[[dict[str, Any]], int] = count_tokens
        self.latency_s = 0.0
        self.quota_reads: list[str] = []
        """The projects whose quotas were listed."""
        self.sessions: Counter[str] = Counter()
        """Open Live sessions by the label of their key."""
        self._tokens: dict[str, FakeKey] = {}
        """Ephemeral tokens and the keys that made them."""
        self.stored = StoredThings(url)

    def handle(self, http: HttpRequest) -> ResponsePlan:
        """Answer one request; an error of the fake itself becomes an HTTP 500."""
        if http.target.startswith("/fake/keys"):
            return self._manage_keys(http)
        if (listed := _QUOTA_INFOS.match(http.target)) is not None:
            return self._list_quotas(listed[1], http)
        request = FakeRequest(parse_route(http.method, http.target), now=self.clock.time())
        try:
            request = self._parse(request.route, http)
            request, reply = self._decide(request, http)
            return self._plan(request, reply, http)
        except Exception as error:
            text = f"FakeGemini could not answer: {type(error).__name__}: {error}"
            reply = Scripted(500, plain(500, "INTERNAL", text), name="FAKE_BROKEN")
            return error_plan(reply, request, self._log_request(request, reply, http), 0.0)

    def _manage_keys(self, http: HttpRequest) -> ResponsePlan:
        """Make one more value of a key, `POST /fake/keys/LABEL`, or delete that in a `DELETE`."""
        text, status = "", 200
        try:
            if http.method == "POST":
                label = http.target.rpartition("/")[2]
                values, number = self.keys.by_value.values(), self.keys.made + 1
                key = [k for k in values if label in (k.label, k.label.rpartition(".")[0])][-1]
                fields = f"{label}.{number}", f"FAKE-{label}-{number}"
                text = self.keys.add(*fields, key.project, key.billing_account, key.tier).value
            else:
                self.keys.remove(self.keys.by_value[http.body.decode().strip()].label)
        except LookupError:
            status = 404
        head = Head(status, "text/plain", self.clock.time(), len(text))
        return ResponsePlan(head, (text.encode(),), lambda: None)

    def _list_quotas(self, project: str, http: HttpRequest) -> ResponsePlan:
        """List the quotas of a project as Cloud Quotas does; one on each page, and for no login."""
        self.quota_reads.append(project)
        tiers = [key.tier for key in self.keys.by_value.values() if key.project == project]
        status, value = 403, error(403, "PERMISSION_DENIED", "The caller does not have permission")
        if tiers:
            models = self.models.buckets() | self.quotas.buckets(project)
            limits = {model: self.quotas.limits(project, model) for model in sorted(models)}
            query = {"pageSize": "1", **parse_route(http.method, http.target).query}
            infos = quota_infos(limits, free=tiers[0] == "free")
            status, value = 200, list_page("quotaInfos", infos, query)
        body = json.dumps(value).encode()
        head = Head(status, JSON, self.clock.time(), len(body))
        return ResponsePlan(head, (body,), lambda: None, delay_s=self.latency_s)

    def _parse(self, route: FakeRoute, http: HttpRequest) -> FakeRequest:
        body = _json(http.body)
        if not route.model and body.get("model"):
            route = replace(route, model=str(body["model"]).removeprefix("models/"))
        if route.openai:
            route, body = to_native(route, body)
        values = credentials(route, http)
        key = None
        if len(set(values)) == 1:
            key = self.keys.by_value.get(values[0]) or self._tokens.get(values[0])
        bucket = self.models.bucket(route.model)
        return FakeRequest(
            route,
            key,
            values[0] if values else "",
            bucket,
            self.clock.time(),
            self.quotas.limits(key.project, bucket) if key else Limits(),
            body=body,
            tokens=self.count_tokens(body) if route.verb in _COUNTED else 0,
            model=self.models.answering.get(route.model, route.model),
        )

    # Whether a request is allowed: by its credentials, a script, or the rules.

    def _decide(self, request: FakeRequest, http: HttpRequest) -> tuple[FakeRequest, Scripted]:
        verb = request.route.verb
        if verb == "upload.chunk":  # sent without a key: the session's address is the credential
            return request, Reply.OK
        if refused := _credential_error(request.route, credentials(request.route, http), http):
            return request, refused
        read = verb.endswith((".list", ".get"))
        scripted = self.scripts.take(request.key.label if request.key else None, read=read)
        if scripted is None:
            if request.key is None:
                return request, Reply.KEY_INVALID
            return self._apply_rules(request, http)
        if scripted.counts and request.key and verb in _QUOTA_VERBS:
            requests, tokens = _requests(request), request.tokens
            account = request.project, request.bucket, request.now
            self.quotas.count(*account, requests=requests, tokens=tokens)
        return request, scripted

    def _apply_rules(self, request: FakeRequest, http: HttpRequest) -> tuple[FakeRequest, Scripted]:
        verb = request.route.verb
        if not verb:
            return request, Reply.NOT_FOUND_HTML
        if (b"files/" in http.body or b"cachedContents/" in http.body) and verb != "upload.start":
            names = resource_names(request.body)
            if foreign := self._foreign(names, request.project):
                return replace(request, resource=foreign), DENIED[foreign.partition("/")[0]]
        if unknown := self._unknown_interaction(request):
            return request, unknown
        if verb not in MODEL_VERBS:
            return request, Reply.OK
        runs_agent = verb == "interactions.create" and "agent" in request.body
        if not runs_agent and not self._has_model(request):
            return request, Reply.MODEL_NOT_FOUND
        return self._charge(request) if verb in _QUOTA_VERBS else (request, Reply.OK)

    def _foreign(self, names: Any, project: str) -> str:
        return next((name for name in names if self.stored.get(name, project) is None), "")

    def _unknown_interaction(self, request: FakeRequest) -> Scripted | None:
        """Return the reply about what an interaction names and the key's project does not have."""
        body, project = request.body, request.project
        before = body.get("previous_interaction_id")
        if before and self.stored.get(f"interactions/{before}", project) is None:
            return unknown_interaction(before)
        for key in ("agent", "environment"):
            name = body.get(key)
            # Google's own agents and environments are of no project.
            if isinstance(name, str) and self.stored.is_foreign(f"{key}s/{name}", project):
                text = f"{key.capitalize()} {name} not found."
                return Scripted(404, plain(404, "NOT_FOUND", text))
        return None

    def _charge(self, request: FakeRequest) -> tuple[FakeRequest, Scripted]:
        account, tokens = (request.project, request.bucket, request.now), request.tokens
        exceeded = self.quotas.charge(*account, requests=_requests(request), tokens=tokens)
        if exceeded:
            return replace(request, exceeded=tuple(exceeded)), Reply.QUOTA
        if request.route.verb in GENERATE_VERBS and not request.body.get("contents"):
            return request, _NO_CONTENTS
        return request, Reply.OK

    # Live sessions.

    def upgrade(self, http: HttpRequest) -> LiveSession | ResponsePlan:
        """Answer the handshake of a websocket: by what answers its messages, or by a refusal."""
        request = self._parse(parse_route(http.method, http.target), http)
        reply = self._admit(request, http)
        if not (reply.answers or reply.close):
            return self._plan(request, reply, http)
        entry = self._add_to_log(request, reply, http, status=101)
        label = request.label
        self.sessions[label] += 1

        def change(**fields: Any) -> LoggedRequest:
            nonlocal entry
            entry = self.log.change(entry, **fields)
            return entry

        def end() -> None:
            self.sessions[label] -= 1
            self.log.done(entry.key)

        return LiveSession(
            request,
            reply,
            admit=self._set_up,
            answer=self._live_turn,
            new_handle=partial(self._new_handle, request),
            log=change,
            on_end=end,
        )

    def _admit(self, request: FakeRequest, http: HttpRequest) -> Scripted:
        keys = list(dict.fromkeys(credentials(request.route, http)))
        if refused := _credential_error(request.route, keys, http):
            return refused
        scripted = self.scripts.take(request.key.label if request.key else None, read=False)
        if scripted is not None or not request.route.verb:
            return scripted or Reply.NOT_FOUND_HTML
        return Reply.OK if request.key else Reply.KEY_INVALID

    def _set_up(self, request: FakeRequest) -> tuple[FakeRequest, Scripted]:
        """Return the reply to the setup of a Live session, counted against the quota."""
        bucket, project = self.models.bucket(request.route.model), request.project
        limits = self.quotas.limits(project, bucket)
        request = replace(request, bucket=bucket, limits=limits, now=self.clock.time(), tokens=0)
        names = list(resource_names(request.body))
        if handle := get_field(get_field(request.body, "sessionResumption"), "handle"):
            names.append(f"handles/{handle}")
        if request.route.verb == "interactions.connect":
            names.append(f"interactions/{request.body.get('id')}")
        if foreign := self._foreign(names, project):
            denied = Reply.FILE_DENIED if foreign.startswith("files/") else ENTITY_GONE
            return replace(request, resource=foreign), denied.as_close(1008)
        if request.route.verb not in LIVE_VERBS:
            return request, Reply.OK
        if not self._has_model(request):
            return request, Reply.MODEL_NOT_FOUND.as_close(1008)
        request, reply = self._charge(request)
        return request, reply if reply.answers else reply.as_close(1011)

    def _live_turn(self, request: FakeRequest) -> dict[str, Any]:
        request = replace(request, tokens=self.count_tokens(request.body), now=self.clock.time())
        account = (request.project, request.bucket, request.now)
        self.quotas.count(*account, requests=0, tokens=request.tokens)
        return self.answers.generate(request)

    def _new_handle(self, request: FakeRequest) -> str:
        handle = secrets.token_urlsafe(60)
        self.stored.put(f"handles/{handle}", request.project, {})
        return handle

    # The answer.

    def _create_token(self, request: FakeRequest) -> dict[str, Any]:
        name = f"auth_tokens/{secrets.token_hex(16)}"
        if request.key:
            self._tokens[name] = request.key
        return {"name": name}

    def _plan(self, request: FakeRequest, reply: Scripted, http: HttpRequest) -> ResponsePlan:
        value: Any = None
        if reply.answers:
            value = self._response_value(request, reply, http)
            if isinstance(value, Scripted):
                named = value.name if value.status >= 400 else "OK"
                reply = replace(value, delay_s=reply.delay_s, name=named)
        elif reply.after_chunks is not None and is_stream(request):
            if is_of_interactions(request):
                value = self.answers.events(self.answers.interaction(request))
            else:
                value = self.answers.chunks(request)
        failed = value is None or isinstance(value, Scripted)
        if request.route.openai and not failed:
            value = from_native(value, request)
        on_done = self._log_request(request, reply, http, status=None if failed else 200)
        if failed:
            return error_plan(reply, request, on_done, self.latency_s)
        if is_stream(request):
            return stream_plan(reply, value, request, on_done, self.latency_s)
        return unary_plan(reply, value, request, on_done, self.latency_s)

    def _response_value(self, request: FakeRequest, reply: Scripted, http: HttpRequest) -> Any:
        verb = request.route.verb
        if verb in GENERATE_VERBS:
            if self.answers.has_foreign_signature(request):
                return Reply.THOUGHT_SIGNATURE
            answer = self.answers.chunks if verb in STREAMS else self.answers.generate
            return answer(request, continues=reply.continues)
        if verb in ("interactions.create", "interactions.get"):
            return self._interaction(request, reply, http)
        if (handler := self._model_handler(verb)) is not None:
            return handler(request)
        if verb in {"models.list", "models.get"}:
            return self._models(request)
        return self.stored.answer(request, http)

    def _model_handler(self, verb: str) -> Callable[[FakeRequest], Any] | None:
        return {
            "embedContent": self.answers.embedding,
            "batchEmbedContents": self.answers.embedding,
            "predict": self.answers.predict,
            "decisions.create": self.answers.decision,
            "auth_tokens.create": self._create_token,
            "countTokens": lambda request: {"totalTokens": request.tokens},
            "predictLongRunning": self.stored.operation,
        }.get(verb)

    def _interaction(self, request: FakeRequest, reply: Scripted, http: HttpRequest) -> Any:
        if request.route.verb == "interactions.get":
            value = self.stored.answer(request, http)
        else:
            value = self.answers.interaction(request, continues=reply.continues)
            value = self.stored.keep_interaction(value, request)
        failed = isinstance(value, Scripted)
        return self.answers.events(value) if is_stream(request) and not failed else value

    def _models(self, request: FakeRequest) -> Any:
        if request.route.verb == "models.list":
            models = self.models.all(request.route.version)
            return list_page("models", models, request.route.query)
        served = self._has_model(request)
        return describe_model(request.route.model) if served else Reply.MODEL_NOT_FOUND

    def _has_model(self, request: FakeRequest) -> bool:
        return self.models.serves(request.route.model, request.route.version)

    def _log_request(
        self,
        request: FakeRequest,
        reply: Scripted,
        http: HttpRequest,
        status: int | None = None,
    ) -> Callable[[], None]:
        entry = self._add_to_log(request, reply, http, status)
        return partial(self.log.done, entry.key)

    def _add_to_log(
        self,
        request: FakeRequest,
        reply: Scripted,
        http: HttpRequest,
        status: int | None = None,
    ) -> LoggedRequest:
        entry = LoggedRequest(
            at=request.now,
            key=request.key.label if request.key else None,
            method=http.method,
            path=http.target,
            model=request.route.model,
            verb=request.route.verb,
            status=reply.status if status is None else status,
            stream=is_stream(request),
            reply=reply.name,
            tokens=request.tokens,
            body=_json(http.body) if request.route.openai else request.body,
            headers=http.headers,
        )
        self.log.add(entry)
        return entry


def _json(body: bytes) -> dict[str, Any]:
    if not body[:1].strip():
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
