"""The metrics of a call, as an SDK with a reader sees them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import context
from support.otel import HAS_BUCKETS, RecordedMetrics
from support.scripted_pool import (
    INFO,
    STREAMED,
    Chunks,
    GoogleError,
    ScriptedPool,
    failure,
    invalid,
    minute,
)

from keyrot_middleware.core.commands import Send, Settle
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Lease, LeaseOutcome, Outcome, Usage
from keyrot_middleware.telemetry.metrics import METRICS

INFERENCE = "opentelemetry.genai.client.inference.context"
DURATION = "gen_ai.client.operation.duration"
ATTEMPT = "keyrot.attempt.duration"


@pytest.fixture
def metered() -> RecordedMetrics:
    """Return a provider of this test's own."""
    return RecordedMetrics()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_call_that_changes_its_key(metered: RecordedMetrics, way: str) -> None:
    """Each send is counted with its key and failure; the call as a success."""
    scripted = ScriptedPool([metered.observer], script={"flash_01": [minute(9)]})
    scripted.all_modes()[way]()
    by = metered.by
    assert by(ATTEMPT, "keyrot.key.id", "error.type", "keyrot.failure.class") == {
        ("flash_01", "429", "quota_minute"): 1,
        # All keys of one project cool down: the next one is of another.
        ("pro_01", None, None): 1,
    }
    assert by(ATTEMPT, "keyrot.pool.name", "gen_ai.request.model") == {
        ("test", "gemini-2.5-flash"): 2
    }
    assert [(p.attributes, p.value) for p in metered.points("keyrot.call.attempts")] == [
        ({"keyrot.pool.name": "test"}, 2)
    ]
    assert by("keyrot.key.cooldowns", "keyrot.key.id", "keyrot.failure.class") == {
        ("flash_01", "quota_minute"): 1
    }
    tokens = by("keyrot.key.tokens", "keyrot.key.id", "gen_ai.token.type")
    assert tokens == {("pro_01", "input"): 12, ("pro_01", "output"): 30}
    assert by("keyrot.key.wait_time", "keyrot.pool.name") == {"test": 2}
    assert by("keyrot.key.timeouts", "keyrot.pool.name") == {"test": 0}
    assert by("keyrot.key.pending_requests", "keyrot.pool.name") == {"test": 0}


def test_the_metrics_of_the_conventions(metered: RecordedMetrics) -> None:
    """Duration and tokens of the whole call have the attributes that the conventions name."""
    ScriptedPool([metered.observer], script={"flash_01": [minute(9)]}).run()
    called = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-2.5-flash",
        "gen_ai.response.model": "gemini-2.5-flash-001",
        "server.address": "gemini.test",
        "server.port": 8443,
        "keyrot.pool.name": "test",
    }
    assert [(p.attributes, p.count) for p in metered.points(DURATION)] == [(called, 1)]
    usage = {p.attributes.pop("gen_ai.token.type"): p for p in metered.points(TOKENS)}
    assert {kind: point.value for kind, point in usage.items()} == {"input": 12, "output": 30}
    assert usage["input"].attributes == called
    assert metered.points("gen_ai.client.operation.time_to_first_chunk") == []


TOKENS = "gen_ai.client.token.usage"


def test_a_call_that_fails(metered: RecordedMetrics) -> None:
    """One key will come back: a 429. Usage without a value in the response is not counted."""
    script = {"a1": [minute(9_000)], "b1": [invalid()]}
    scripted = ScriptedPool([metered.observer], keys=("a1", "b1"), script=script)
    with pytest.raises(Exhausted):
        scripted.run()
    assert metered.by(DURATION, "error.type") == {"429": 1}
    assert metered.by("keyrot.call.attempts", "error.type") == {"429": 1}
    assert metered.by(ATTEMPT, "error.type") == {"429": 1, "400": 1}
    assert metered.by("keyrot.key.cooldowns", "keyrot.key.id") == {"a1": 1, "b1": 1}
    assert metered.points(TOKENS) == metered.points("keyrot.key.tokens") == []


def test_no_key_is_available(metered: RecordedMetrics) -> None:
    """Each such call is a timeout; one that sends nothing has 0 attempts and no key wait."""
    scripted = ScriptedPool([metered.observer], keys=("a1",), script={"a1": [minute(9_000)]})
    for _ in range(2):
        with pytest.raises(Exhausted):
            scripted.run()
    assert metered.by("keyrot.key.timeouts", "keyrot.pool.name") == {"test": 2}
    attempts = metered.points("keyrot.call.attempts")
    assert [(p.attributes["error.type"], p.count, p.value) for p in attempts] == [("429", 2, 1)]
    assert metered.by("keyrot.key.wait_time", "keyrot.pool.name") == {"test": 1}


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_stream(metered: RecordedMetrics, way: str) -> None:
    """It has a time to its first chunk beside its duration, and the usage of its end."""
    scripted = ScriptedPool([metered.observer], script={"flash_01": [Chunks(3)]})
    scripted.all_modes(stream=True)[way]()
    first = metered.points("gen_ai.client.operation.time_to_first_chunk")
    assert [point.count for point in first] == [1]
    assert metered.by(DURATION, "error.type") == {None: 1}
    assert metered.by("keyrot.key.tokens", "gen_ai.token.type") == {"input": 12, "output": 30}


def test_under_the_official_instrumentation(metered: RecordedMetrics) -> None:
    """What it measures itself we do not."""
    token = context.attach(context.set_value(INFERENCE, object()))
    try:
        ScriptedPool([metered.observer]).run()
        list(ScriptedPool([metered.observer], script={"flash_01": [Chunks(2)]}).stream(STREAMED))
    finally:
        context.detach(token)
    assert {name for name in metered.collect() if name.startswith("gen_ai.")} == set()
    assert metered.by(ATTEMPT, "error.type") == {None: 2}


@pytest.mark.parametrize("key", ["suppress_instrumentation", None])
def test_suppressed(metered: RecordedMetrics, key: str | None) -> None:
    """Where instrumentation is suppressed nothing is counted."""
    key = key or context._SUPPRESS_INSTRUMENTATION_KEY
    token = context.attach(context.set_value(key, True))
    try:
        assert ScriptedPool([metered.observer]).run() == "answer"
    finally:
        context.detach(token)
    # The two that exist from the start are at zero.
    assert set(metered.collect()) <= {"keyrot.key.timeouts", "keyrot.key.pending_requests"}


def test_the_table_is_what_the_sdk_sees(metered: RecordedMetrics) -> None:
    """Each metric of the table is emitted with its unit, kind, buckets and attributes, no other."""
    _everything(metered)
    seen = metered.collect()
    assert set(seen) == {metric.name for metric in METRICS}
    for metric in METRICS:
        metric_data = seen[metric.name]
        assert (metric_data.unit, metric_data.description) == (metric.unit, metric.description)
        assert _kind(metric_data.data) in metric.kind.lower()
        points = metered.points(metric.name)
        assert {name for point in points for name in point.attributes} == set(metric.attributes)
        if HAS_BUCKETS or not metric.buckets:
            assert {point.bounds for point in points} == {metric.buckets}
        assert bool(metric.buckets) is (metric.kind == "Histogram")


def _kind(data: Any) -> str:
    name = type(data).__name__.lower()
    if name != "sum":
        return name
    return "counter" if data.is_monotonic else "updowncounter"


def _everything(metered: RecordedMetrics) -> None:
    """Make calls of every kind, with a registered pool."""
    from keyrot_middleware.monitoring.view import levels

    script = {"flash_01": [minute(9)], "pro_01": [Chunks(2), failure(400)]}
    scripted = ScriptedPool([metered.observer], script=script)
    list(scripted.stream())
    with pytest.raises(GoogleError):
        scripted.run()
    metered.observer.register_gauges(lambda: levels(scripted.pool), lambda: False)
    metered.observer.observe(INFO._replace(models_tried=("gemini-2.5-pro",)))
    usage = Usage(1, 1, model="m")
    watch = metered.observer.observe(INFO)
    assert watch is not None
    lease = Lease("a", "a", "a", "m", INFO.verb, 0, 1, at=0.0)
    watch.before(Send(lease, 1))
    watch.after(Settle(lease, Outcome(LeaseOutcome.ABANDONED, None, usage)), None)
    watch.finish(asyncio.CancelledError())
