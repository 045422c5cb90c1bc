"""Jaeger's JSON of a trace, as spans that a test can ask, and drawn as a tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "Span", "draw", "root_of"]


@dataclass(frozen=True)
class Event:
    """An event of a span."""

    name: str
    at: int
    """Microseconds since the epoch."""
    told: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A span as Jaeger keeps it."""

    name: str
    began: int
    ended: int
    """Both in microseconds since the epoch."""
    tags: dict[str, Any]
    """The attributes, and `span.kind` and `otel.*`, which say what OTLP has fields for."""
    events: list[Event]
    below: list[Span] = field(default_factory=list)
    """In the order in which they began."""

    @property
    def status(self) -> str:
        """The status: `` where it is unset, else such as `ERROR 429 quota_minute`."""
        parts = (self.tags.get(f"otel.status_{part}") for part in ("code", "description"))
        return " ".join(part for part in parts if part)

    def everything(self) -> Iterator[Span]:
        """Give it and all that is below."""
        yield self
        for child in self.below:
            yield from child.everything()


def root_of(trace: dict[str, Any]) -> Span:
    """Give the root with all its descendants; there must be one root, and no lost parent."""
    spans = {raw["spanID"]: _span(raw) for raw in trace["spans"]}
    roots = []
    for raw in sorted(trace["spans"], key=lambda raw: raw["startTime"]):
        parents = [ref["spanID"] for ref in raw["references"] if ref["refType"] == "CHILD_OF"]
        (spans[parents[0]].below if parents else roots).append(spans[raw["spanID"]])
    (root,) = roots
    return root


def _span(raw: dict[str, Any]) -> Span:
    began = raw["startTime"]
    events = [_event(log) for log in raw["logs"]]
    return Span(raw["operationName"], began, began + raw["duration"], _told(raw["tags"]), events)


def _event(log: dict[str, Any]) -> Event:
    told = _told(log["fields"])
    return Event(told.pop("event"), log["timestamp"], told)


def _told(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in pairs}


_SHOWN = {
    "gen_ai.request.stream": "stream",
    "keyrot.attempt.count": "count",
    "keyrot.attempt.number": "number",
    "keyrot.attempt.outcome": "outcome",
    "error.type": "error.type",
}
"""What tells the story; the rest has tests of its own."""


def draw(span: Span, depth: int = 0) -> str:
    """Draw a span, its events and what is below it, an indented line each."""
    parts = [span.name, span.tags["span.kind"], span.status]
    parts += [f"{short}={span.tags[name]}" for name, short in _SHOWN.items() if name in span.tags]
    head = "  " * depth + "  ".join(part for part in parts if part)
    events = ["  " * depth + f"  ! {_drawn(event)}" for event in span.events]
    return "\n".join([head, *events, *(draw(child, depth + 1) for child in span.below)])


def _drawn(event: Event) -> str:
    told = [event.told[name] for name in _IN_EVENTS if name in event.told]
    blocked = json.loads(event.told.get("keyrot.pool.blocked_keys", "[]"))
    told += [", ".join(text.split(" until ")[0] for text in blocked)] if blocked else []
    return " ".join([event.name, *told])


_IN_EVENTS = (
    "keyrot.key.id",
    "keyrot.failure.class",
    "keyrot.cooldown.scope",
    "keyrot.wait.reason",
)
