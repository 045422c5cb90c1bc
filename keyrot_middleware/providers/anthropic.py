"""Anthropic's API: messages, batches and files.

Sources of the rows: Anthropic's documentation of errors and rate limits, and recorded replies
(tests/providers/recorded.jsonl).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..core.failures import (
    ParsedError,
    Rule,
    denied_model,
    for_a_day,
    for_an_hour,
    limited,
    no_model,
    of_billing,
    of_project,
)
from ..core.model import NO_USAGE, Scope, Usage
from ..core.windows import next_month
from .base import Events, Route
from .openai import LIMIT_RULES, SUSPENDED, OpenAILike, any_of, stored_route
from .openai_protocol import parse_object

_PATH = re.compile(r"/v1/(messages|complete|files|models)(?:/(\w[^?]*))?/?\Z")


@lru_cache(maxsize=1024)
def _route(method: str, path: str) -> Route | None:
    found = _PATH.search(path)
    if found is None:
        return None
    head, rest = found[1], (found[2] or "").split("/")
    if head in ("messages", "complete") and rest in ([""], ["count_tokens"]):
        return Route(rest[0] or "chat", counts_in_quota=not rest[0])
    if head == "models":
        return Route("get" if rest[0] else "list", counts_in_quota=False)
    names = tuple(rest[1 if rest[0] == "batches" else 0 :][:1]) if rest[0] else ()
    return stored_route(method, names, rest[0] or head)


def _usage(body: Mapping[str, Any], before: Usage = NO_USAGE) -> Usage:
    """Return the usage of a message; tokens written to or read from the cache are input too."""
    counts = body.get("usage")
    counts = counts if isinstance(counts, Mapping) else {}
    number = {name: value for name, value in counts.items() if type(value) is int}
    written, read = (number.get(f"cache_{word}_input_tokens", 0) for word in ("creation", "read"))
    sent = number["input_tokens"] + written + read if "input_tokens" in number else None
    stop = body.get("stop_reason")
    model, name = body.get("model"), body.get("id")
    return before._replace(
        input_tokens=before.input_tokens if sent is None else sent,
        output_tokens=number.get("output_tokens", before.output_tokens),
        cached_tokens=before.cached_tokens if sent is None else read,
        details=(("cache_write_tokens", written),) if written else before.details,
        model=model if isinstance(model, str) else before.model,
        response_id=name if isinstance(name, str) else before.response_id,
        finish_reasons=(stop,) if isinstance(stop, str) else before.finish_reasons,
    )


class _MessageEvents(Events):
    def __init__(self) -> None:
        self.usage: Usage = NO_USAGE

    marks = (b"message_start", b"message_delta", b"message_stop", b'"error"')

    def feed(self, event: Mapping[str, Any]) -> bool:
        message = event.get("message")
        if isinstance(message, Mapping):
            self.usage = _usage(message, self.usage)
        elif event.get("type") == "message_delta":
            delta = event.get("delta")
            stop = delta.get("stop_reason") if isinstance(delta, Mapping) else None
            self.usage = _usage({"usage": event.get("usage"), "stop_reason": stop}, self.usage)
        return event.get("type") == "message_stop"

    def is_preliminary(self, event: Mapping[str, Any]) -> bool:
        return event.get("type") in ("message_start", "ping")

    def is_error(self, event: Mapping[str, Any]) -> bool:
        return event.get("type") == "error"


def _until_resumed(parsed: ParsedError, now: float) -> float:
    """Return the time that the message names, else in an hour."""
    found = re.search(r"\b(\d{4}-\d\d-\d\d)(?: at (\d\d:\d\d))? UTC", parsed.message)
    at = _instant(f"{found[1]}T{found[2] or '00:00'}+00:00") if found else None
    return for_an_hour(parsed, now) if at is None else max(at, now)


def _until_month_end(_parsed: ParsedError, now: float) -> float:
    return next_month(now, "UTC")


class Anthropic(OpenAILike):
    """api.anthropic.com."""

    name = platform = otel = "anthropic"
    title = "Anthropic"
    hosts = ("api.anthropic.com",)
    variables = ("ANTHROPIC_API_KEY",)
    base_url_variable = "ANTHROPIC_BASE_URL"
    check_headers = {"anthropic-version": "2023-06-01"}
    key_header, key_scheme = "x-api-key", ""
    key_headers = ("x-api-key", "authorization")
    account_headers = ("anthropic-workspace-id",)
    limit_header = "anthropic-ratelimit-{kind}-{word}"
    limit_kinds = {"requests": "rpm", "input-tokens": "tpm", "tokens": "tpm"}
    own_rules = (
        SUSPENDED,
        denied_model(
            "model_denied",
            (403,),
            reasons=any_of("PERMISSION_ERROR"),
            scope=Scope.KEY_MODEL,
            until=for_a_day,
        ),
        of_billing(
            "billing_cap",
            (400,),
            text=r"^You have reached your specified API usage limits",
            until=_until_resumed,
        ),
        of_project(
            "project_cap",
            (400,),
            text=r"^You have reached your specified workspace API usage limits",
            until=_until_resumed,
        ),
        of_billing(
            "billing_cap",
            (429,),
            reasons=any_of("ENFORCED_SPEND_LIMIT_REACHED"),
            until=_until_month_end,
        ),
        Rule("too_large", (429,), text=r"^Extra usage is required for long", rotate=True),
        *LIMIT_RULES,
        limited("rate_limit", reasons=any_of("RATE_LIMIT_ERROR")),
        no_model("model_not_found", (404,), text=r"^model: "),
    )

    def route(self, method: str, url: str) -> Route | None:
        """Return what a request is."""
        return _route(method, url.partition("?")[0])

    def without_account(self, headers: MutableMapping[str, str], url: str) -> str:
        """Take out what names a workspace; on AWS no request is served without it."""
        return url if ".api.aws/" in url else super().without_account(headers, url)

    def read_reply(
        self, route: Route, text: str, *, in_full: bool
    ) -> tuple[Usage, tuple[str, ...]]:
        """Return usage and stored things of a whole response."""
        body = parse_object(text)
        if not route.protocol:
            return _usage(body), ()
        return NO_USAGE, super().read_reply(route, text, in_full=in_full)[1]

    def events(self, route: Route) -> Events:
        """Return what reads the stream of a message."""
        return _MessageEvents()

    def open(self, body: object) -> Mapping[Any, Any]:
        """Return the object of a failed response that has `message` and `type`."""
        error = super().open(body)
        details = error.get("details")
        code = details.get("error_code") if isinstance(details, Mapping) else None
        return {**error, "code": code} if code else error

    def error_body(
        self, code: int, text: str, *, reason: str = "", retry_in_s: float | None = None
    ) -> dict[str, Any]:
        """Return *text* as the body of an error, for a reply of our own."""
        body = super().error_body(code, text, reason=reason, retry_in_s=retry_in_s)
        return {"type": "error", **body}


def _instant(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
