"""A real Jaeger on free loopback ports, and the traces of its query API as spans."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.servers import free_port, wait_for

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tools" / "jaeger" / "jaeger.yaml"
BUILT = ROOT / "tools" / "jaeger" / "bin" / "jaeger"
SERVICE = "the-example"


def find_jaeger() -> str | None:
    """Find the binary that `make test-jaeger` builds, or one on PATH."""
    return str(BUILT) if BUILT.exists() else shutil.which("jaeger")


class Jaeger:
    def __init__(self, binary: str, log: Path) -> None:
        self._log = log
        self._query = f"http://127.0.0.1:{(query := free_port())}"
        self.otlp = f"http://127.0.0.1:{(otlp := free_port())}"
        ports = {
            "JAEGER_QUERY_PORT": str(query),
            "JAEGER_QUERY_GRPC_PORT": str(free_port()),
            "JAEGER_OTLP_PORT": str(otlp),
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [binary, "--config", str(CONFIG)],
                env={**os.environ, **ports},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers)

    def stop(self) -> None:
        """Kill it; a polite shutdown would keep connections open for seconds."""
        self._process.kill()
        self._process.wait(60)

    def query(self, path: str, **query: str | int) -> Any:
        """Send a request to the query API and return the JSON of its answer."""
        url = f"{self._query}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def traces(self, service: str, count: int) -> list[dict[str, Any]]:
        """Return a service's traces in the order in which they began, once there are so many."""
        wait_for(lambda: len(self._traces(service)) >= count)
        return sorted(self._traces(service), key=_began)

    def _traces(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.query("/api/traces", service=service, limit=1000)["data"]
        return found

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text("utf-8")
        try:
            self.query("/api/services")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True


def _began(trace: dict[str, Any]) -> int:
    return min(span["startTime"] for span in trace["spans"])


@dataclass(frozen=True)
class Event:
    name: str
    at: int
    """Microseconds since the epoch."""
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    name: str
    began: int
    ended: int
    """Both in microseconds since the epoch."""
    tags: dict[str, Any]
    """The attributes, and `span.kind` and `otel.*`, for which OTLP has fields."""
    events: list[Event]
    below: list[Span] = field(default_factory=list)
    """In the order in which they began."""

    @property
    def status(self) -> str:
        """The status: `` where it is unset, otherwise for example `ERROR 429 quota_minute`."""
        parts = (self.tags.get(f"otel.status_{part}") for part in ("code", "description"))
        return " ".join(part for part in parts if part)

    def everything(self) -> Iterator[Span]:
        yield self
        for child in self.below:
            yield from child.everything()


def root_of(trace: dict[str, Any]) -> Span:
    """Return the root with all its descendants; there must be one root, and no lost parent."""
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
    return Span(
        raw["operationName"], began, began + raw["duration"], _attributes(raw["tags"]), events
    )


def _event(log: dict[str, Any]) -> Event:
    attributes = _attributes(log["fields"])
    return Event(attributes.pop("event"), log["timestamp"], attributes)


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in pairs}


_SHOWN = {
    "gen_ai.request.stream": "stream",
    "keyrot.attempt.count": "count",
    "keyrot.attempt.number": "number",
    "keyrot.attempt.outcome": "outcome",
    "error.type": "error.type",
}
"""The attributes that are drawn; the others have tests of their own."""


def draw(span: Span, depth: int = 0) -> str:
    """Draw a span, its events and what is below it, an indented line each."""
    parts = [span.name, span.tags["span.kind"], span.status]
    parts += [f"{short}={span.tags[name]}" for name, short in _SHOWN.items() if name in span.tags]
    head = "  " * depth + "  ".join(part for part in parts if part)
    events = ["  " * depth + f"  ! {_drawn(event)}" for event in span.events]
    return "\n".join([head, *events, *(draw(child, depth + 1) for child in span.below)])


def _drawn(event: Event) -> str:
    texts = [event.attributes[name] for name in _IN_EVENTS if name in event.attributes]
    blocked = json.loads(event.attributes.get("keyrot.pool.blocked_keys", "[]"))
    texts += [", ".join(text.split(" until ")[0] for text in blocked)] if blocked else []
    return " ".join([event.name, *texts])


_IN_EVENTS = (
    "keyrot.key.id",
    "keyrot.failure.class",
    "keyrot.cooldown.scope",
    "keyrot.wait.reason",
)
