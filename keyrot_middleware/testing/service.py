"""The service behind the port: whose request it is, whether it may pass, and what it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from keyrot_middleware.testing.answers import Answers
from keyrot_middleware.testing.asked import Asked
from keyrot_middleware.testing.catalogue import Catalogue, describe, page
from keyrot_middleware.testing.clock import Clock
from keyrot_middleware.testing.judge import MODEL_VERBS, SPEAKING, Judge, credentials
from keyrot_middleware.testing.key_errors import plain
from keyrot_middleware.testing.keys import KeyRing
from keyrot_middleware.testing.log import LoggedRequest, RequestLog
from keyrot_middleware.testing.quota import Limits, QuotaBook, Window
from keyrot_middleware.testing.render import error_plan, is_stream, stream_plan, unary_plan
from keyrot_middleware.testing.replies import Reply
from keyrot_middleware.testing.routes import STREAMS, Route, parse_route
from keyrot_middleware.testing.scripted import Scripted
from keyrot_middleware.testing.scripts import Scripts
from keyrot_middleware.testing.server import HttpRequest, Plan
from keyrot_middleware.testing.stored import StoredThings
from keyrot_middleware.testing.stored_verbs import StoredVerbs
from keyrot_middleware.testing.tokens import count_tokens

__all__ = ["Service"]

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
        self.book = QuotaBook(window)
        self.scripts = Scripts()
        self.models = Catalogue()
        self.answers = Answers()
        self.count_tokens: Callable[[dict[str, Any]], int] = count_tokens
        self.latency_s = 0.0
        self._things = StoredThings()
        self._stored = StoredVerbs(self._things, url)
        self._judge = Judge(self.book, self.scripts, self.models, self._things)

    def handle(self, request: HttpRequest) -> Plan:
        """Answer one request. What goes wrong in here is an HTTP 500 that says so."""
        asked = Asked(parse_route(request.method, request.target), now=self.clock.time())
        try:
            asked = self._understand(asked.route, request)
            asked, reply = self._judge.decide(asked, request)
            return self._plan(asked, reply, request)
        except Exception as problem:
            text = f"FakeGemini could not answer: {type(problem).__name__}: {problem}"
            broken = Scripted(500, plain(500, "INTERNAL", text), name="FAKE_BROKEN")
            return error_plan(broken, asked, self._logged(asked, broken, request), 0.0)

    def _understand(self, route: Route, request: HttpRequest) -> Asked:
        body = _json(request.body)
        if not route.model and body.get("model"):
            route = replace(route, model=str(body["model"]).removeprefix("models/"))
        values = credentials(route, request)
        key = self.keys.find(values[0]) if len(values) == 1 else None
        bucket = self.models.bucket(route.model)
        return Asked(
            route,
            key,
            values[0] if values else "",
            bucket,
            self.clock.time(),
            self.book.limits(key.project, bucket) if key else Limits(),
            body=body,
            tokens=self.count_tokens(body) if route.verb in _COUNTED else 0,
        )

    def _plan(self, asked: Asked, reply: Scripted, request: HttpRequest) -> Plan:
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

    def _value(self, asked: Asked, reply: Scripted, request: HttpRequest) -> Any:
        verb = asked.route.verb
        if verb in SPEAKING:
            say = self.answers.chunks if verb in STREAMS else self.answers.generate
            return say(asked, continues=reply.continues)
        if (of_model := self._of_model(verb)) is not None:
            return of_model(asked)
        if verb in {"models.list", "models.get"}:
            return self._models(asked)
        return self._stored.answer(asked, request)

    def _of_model(self, verb: str) -> Callable[[Asked], Any] | None:
        return {
            "embedContent": self.answers.embedding,
            "batchEmbedContents": self.answers.embedding,
            "predict": self.answers.predict,
            "interactions.create": self._interact,
            "countTokens": lambda asked: {"totalTokens": asked.tokens},
            "predictLongRunning": self._stored.operation,
        }.get(verb)

    def _interact(self, asked: Asked) -> dict[str, Any]:
        value = self.answers.interaction(asked)
        if asked.key:
            self._things.put(f"interactions/{value['id']}", asked.key.project, value)
        return value

    def _models(self, asked: Asked) -> Any:
        if asked.route.verb == "models.list":
            return page("models", self.models.all(), asked.route.query)
        served = self.models.serves(asked.route.model)
        return describe(asked.route.model) if served else Reply.MODEL_NOT_FOUND

    def _logged(
        self, asked: Asked, reply: Scripted, request: HttpRequest, status: int | None = None
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
