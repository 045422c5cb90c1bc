"""The cases: which key the fake API refuses, and how."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import calls
from google import genai

from keyrot_middleware.testing import Reply, Scripted

BUSY = Reply.EXHAUSTED.with_headers(Retry_After="1")
"""A 429 with a retry time of one second."""


@dataclass(frozen=True)
class Case:
    """A call, and the first reply to each key.

    Attributes:
        name: Name of the trace in Jaeger.
        call: The call.
        call_async: The same call with asyncio.
        first: The first reply by key id; later ones succeed.
    """

    name: str
    call: Callable[[genai.Client], str]
    call_async: Callable[[genai.Client], Awaitable[str]]
    first: dict[str, Scripted] = field(default_factory=dict)


CASES = (
    Case("1 the first key serves", calls.ask, calls.ask_async),
    Case(
        "2 the second key serves",
        calls.ask,
        calls.ask_async,
        {"free_1": Reply.QUOTA_MINUTE},
    ),
    Case(
        "3 the third key serves",
        calls.ask,
        calls.ask_async,
        {"free_1": Reply.QUOTA_DAY, "free_2": Reply.KEY_INVALID},
    ),
    Case(
        "4 a stream",
        calls.stream,
        calls.stream_async,
        {"free_1": Reply.QUOTA_MINUTE},
    ),
    Case(
        "5 every key is busy for a second",
        calls.ask,
        calls.ask_async,
        {"free_1": BUSY, "free_2": BUSY, "paid_1": BUSY},
    ),
    Case(
        "6 a tool call",
        calls.use_tool,
        calls.use_tool_async,
        {"free_1": Reply.OVERLOADED},
    ),
    Case(
        "7 no key can serve",
        calls.ask_twice,
        calls.ask_twice_async,
        {"free_1": Reply.QUOTA_DAY, "free_2": Reply.KEY_LEAKED, "paid_1": Reply.PREPAY},
    ),
    Case(
        "8 a bad request",
        calls.ask,
        calls.ask_async,
        {"free_1": Reply.BAD_REQUEST},
    ),
)
