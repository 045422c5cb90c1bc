"""From a scripted reply and an ordinary answer to the bytes that go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from keyrot_middleware.testing.asked import Asked
from keyrot_middleware.testing.routes import STREAMS
from keyrot_middleware.testing.scripted import JSON, Scripted
from keyrot_middleware.testing.server import Head, Plan

__all__ = ["error_plan", "is_stream", "stream_plan", "unary_plan"]

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


def is_stream(asked: Asked) -> bool:
    """Whether a request asks for a stream of server-sent events."""
    return asked.route.verb in STREAMS and asked.route.query.get("alt") == "sse"


def unary_plan(reply: Scripted, value: Any, asked: Asked, done: Done, latency_s: float) -> Plan:
    """Plan an ordinary answer in one write; a reply that closes sends half of the body."""
    body = json.dumps(value).encode()
    head = Head(200, JSON, asked.now, len(body), reply.headers)
    sent = body if reply.ending == "end" else body[: len(body) // 2]
    delay = latency_s + reply.delay_s
    return Plan(head, (sent,), done, delay_s=delay, ending=reply.ending)


def stream_plan(
    reply: Scripted, chunks: Sequence[Any], asked: Asked, done: Done, latency_s: float
) -> Plan:
    """Plan a stream of events, cut or broken where the reply says so."""
    events = [b"data: %b\r\n\r\n" % json.dumps(value).encode() for value in chunks]
    events = events[: reply.after]
    if reply.body is not None:
        # No `data:` before the error: it is appended to the events as it is (GEMINI.md A11).
        events.append(_json_error(reply, asked, is_interaction=False) + b"\n")
    return Plan(
        Head(200, _SSE, asked.now, None, reply.headers),
        tuple(events),
        done,
        delay_s=latency_s + reply.delay_s,
        gap_s=reply.gap_s,
        ending=reply.ending,
    )


def error_plan(reply: Scripted, asked: Asked, done: Done, latency_s: float) -> Plan:
    """Plan an HTTP error, or a reply of the test's own, or none at all."""
    delay = latency_s + reply.delay_s
    if not reply.status:
        return Plan(None, (), done, delay_s=delay, ending=reply.ending)
    is_interaction = asked.route.verb.startswith("interactions")
    body = _json_error(reply, asked, is_interaction=is_interaction)
    # A stream that fails before it begins says event-stream, and holds plain JSON (GEMINI.md A0).
    sse = is_stream(asked) and reply.content_type == JSON
    kind = _SSE if sse else reply.content_type
    head = Head(reply.status, kind, asked.now, len(body), reply.headers)
    return Plan(head, (body,), done, delay_s=delay, ending=reply.ending)


def _json_error(reply: Scripted, asked: Asked, *, is_interaction: bool) -> bytes:
    value = reply.body(asked) if reply.body is not None else b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if (reply.interactions or is_interaction) and isinstance(value, dict) and "error" in value:
        word = _WORDS.get(reply.status, "internal")
        value = {"error": {"message": value["error"]["message"], "code": word}}
    return json.dumps([value] if reply.listwrap else value, indent=2).encode()
