"""The tables of docs/telemetry.md are what real calls emit: nothing missing, nothing extra."""

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.otel import HAS_BUCKETS, RecordedMetrics
from support.replies import GoogleError, invalid
from support.scripted_pool import INFO, OK, USAGE, Chunks, ScriptedPool, failure, minute

from keyrot_middleware.core.activity import Attempt, CallRecord
from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.model import Limits, Usage
from keyrot_middleware.monitoring.levels import Levels
from keyrot_middleware.telemetry.metrics import METRICS
from keyrot_middleware.telemetry.semconv import conventions_of
from keyrot_middleware.telemetry.tracing import TracingObserver

WRITTEN = USAGE._replace(details=(("cache_write_tokens", 3),))
PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def rows(heading: str) -> list[list[str]]:
    below = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(cell: str) -> list[str]:
    return re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", cell)


def names_of(heading: str) -> set[str]:
    return {name for row in rows(heading) for name in named(row[0])}


@pytest.fixture
def everything(traced: Any) -> Any:
    both = TracingObserver("test", traced.provider, conventions=conventions_of("both"))
    traced.observer = both
    ScriptedPool([both], script={"flash_01": [Done("answer", WRITTEN)]}).run()
    _stream_after_a_cooldown(traced)
    _without_a_state(traced)
    _exhausted(traced)
    _stands_in(traced)
    return traced


def _stream_after_a_cooldown(traced: Any) -> None:
    scripted = ScriptedPool([traced.observer], keys=("flash_01",))
    scripted.script = {"flash_01": [minute(9), Chunks(2)]}
    list(scripted.stream())


def _without_a_state(traced: Any) -> None:
    scripted = ScriptedPool([traced.observer], script={"flash_01": [failure(503), OK]})
    state: Any = scripted.pool.state
    acquire = state.acquire
    state.acquire = lambda *args, **kwargs: acquire(*args, **kwargs)._replace(degraded=True)
    scripted.run()


def _exhausted(traced: Any) -> None:
    scripted = ScriptedPool([traced.observer], keys=("a1",), script={"a1": [invalid()]})
    for _ in range(2):
        with pytest.raises(Exception, match=r"400|no key"):
            scripted.run()


def _stands_in(traced: Any) -> None:
    tried = INFO._replace(models_tried=("gemini-3.1-pro-preview",))
    ScriptedPool([traced.observer], script={"flash_01": [OK]}).run(tried)


def _attributes(spans: Iterable[Any]) -> set[str]:
    return {name for span in spans for name in span.attributes}


@pytest.mark.parametrize(
    ("table", "span"), [("The call", "generate_content"), ("An attempt", "attempt")]
)
def test_attributes_of_a_span(table: str, span: str, everything: Any) -> None:
    """A span has the attributes of its table, all of them and no other."""
    assert names_of(table) == _attributes(everything.named(span))


def test_events(everything: Any) -> None:
    """Each event is in the table, with its attributes and the span that has it."""
    seen: dict[str, tuple[str, set[str]]] = {}
    for span in everything.spans:
        for event in span.events:
            where = "the attempt" if span.name.startswith("attempt") else "the call"
            seen.setdefault(event.name, (where, set()))[1].update(event.attributes)
    documented = {named(row[0])[0]: (row[1][: len("the call")], row[2]) for row in rows("Events")}
    assert {name: (where, set(named(cell))) for name, (where, cell) in documented.items()} == {
        name: (where[: len("the call")], attributes) for name, (where, attributes) in seen.items()
    }


def test_outcomes() -> None:
    """The values of an attempt's outcome are those of the code."""
    (cell,) = [row[1] for row in rows("An attempt") if "keyrot.attempt.outcome" in row[0]]
    values = {"success", "failure", "abandoned"}
    assert set(re.findall(r"`(\w+)`", cell)) == values


def test_metrics() -> None:
    """Each metric is emitted as its row says: kind, unit and attributes; and no other is."""
    metered = RecordedMetrics("both")
    _everything(metered)
    seen = metered.collect()
    table = {named(row[0])[0]: row[1:3] for row in rows("Metrics") if len(row) == 4}
    assert set(table) == set(seen) == {metric.name for metric in METRICS}
    for metric in METRICS:
        said, attributes = table[metric.name]
        data = seen[metric.name]
        points = metered.points(metric.name)
        assert said == f"{metric.kind}, {data.unit}"
        assert _kind(data.data) in metric.kind.lower()
        assert {name for point in points for name in point.attributes} == set(named(attributes))
        if HAS_BUCKETS or not metric.buckets:
            assert {point.bounds for point in points} == {metric.buckets}
        assert bool(metric.buckets) is (metric.kind == "Histogram")


def _kind(data: Any) -> str:
    name = type(data).__name__.lower()
    if name != "sum":
        return name
    return "counter" if data.is_monotonic else "updowncounter"


def _everything(metered: RecordedMetrics) -> None:
    script = {"flash_01": [minute(9)], "pro_01": [Chunks(2), failure(400)]}
    scripted = ScriptedPool([metered.observer], script=script)
    list(scripted.stream())
    with pytest.raises(GoogleError):
        scripted.run()
    scripted.script = {"pro_01": [failure(503)] * 9 + [invalid()]}
    for _ in range(3):
        with suppress(Exception):
            scripted.run(INFO._replace(workload="night"))
    for _ in range(4):
        scripted.run()
    wrote = Done("answer", WRITTEN)
    scripted.script = {key_id: [wrote] for key_id in scripted.pool.selector.keys}
    scripted.run()
    selector = scripted.pool.selector
    keys = [replace(one, limits=Limits(rpm=9), expires=9e9) for one in selector.keys.values()]
    selector.update(keys)
    for _ in range(9):
        with suppress(Exception):
            scripted.run()
    metered.observer.register_gauges(Levels(scripted.pool).read)
    metered.observer.observe(INFO._replace(models_tried=("gemini-3.1-pro-preview",)))
    watch = metered.observer.observe(INFO)
    assert watch is not None
    sent = Attempt("a", None, None, 0.1)
    usage, full = Usage(1, 1, model="m"), ("b",)
    record = CallRecord(0.0, "m", 0.1, "abandoned", (sent,), usage, full=full)
    watch.finish(asyncio.CancelledError(), record)
