"""The metrics of the GenAI conventions have their old names, their new ones, or both."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from support.otel import HAS_BUCKETS, RecordedMetrics
from support.scripted_pool import (
    INFO,
    OK,
    STREAMED,
    USAGE,
    Chunks,
    GoogleError,
    ScriptedPool,
    failure,
)

from keyrot_middleware.telemetry.instruments import NEW_METRICS

OLD = {
    "gen_ai.client.operation.duration",
    "gen_ai.client.token.usage",
    "gen_ai.client.operation.time_to_first_chunk",
}
USED = "gen_ai.client.inference.usage"
NEW = {
    "gen_ai.client.inference.duration",
    "gen_ai.client.inference.time_to_first_chunk",
    f"{USED}.input_tokens",
    f"{USED}.output_tokens",
    f"{USED}.cache_read.input_tokens",
    f"{USED}.reasoning.output_tokens",
    "gen_ai.client.inference.operation.input_tokens",
    "gen_ai.client.inference.operation.output_tokens",
}


def measured(monkeypatch: pytest.MonkeyPatch, opt_in: str, info: Any = INFO) -> RecordedMetrics:
    """Make a call and a stream under a setting."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
    metered = RecordedMetrics()
    scripted = ScriptedPool([metered.observer], keys=("a",), script={"a": []})
    scripted.run(info)
    if info is INFO:
        scripted.script["a"] = [Chunks(2)]
        list(scripted.stream(STREAMED))
    return metered


def names(metered: RecordedMetrics) -> set[str]:
    """List the metrics of the conventions that have points."""
    return {name for name in metered.collect() if name.startswith("gen_ai.")}


@pytest.mark.parametrize(
    ("opt_in", "expected"),
    [
        ("", OLD),
        ("http", OLD),
        ("gen_ai_latest_experimental", NEW),
        ("http, gen_ai_latest_experimental", NEW),
        ("gen_ai_latest_experimental/dup", OLD | NEW),
        ("http/dup,gen_ai_latest_experimental/dup,gen_ai_latest_experimental", OLD | NEW),
    ],
)
def test_which_names_are_emitted(
    opt_in: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones by default; other values in the variable change nothing."""
    assert names(measured(monkeypatch, opt_in)) == expected


def test_new_names_have_the_same_calls_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call and a stream: two durations, and each token counted once."""
    metered = measured(monkeypatch, "gen_ai_latest_experimental")
    (duration,) = metered.points("gen_ai.client.inference.duration")
    assert duration.count == 2
    assert metered.points(f"{USED}.input_tokens")[0].value == 2 * (USAGE.input_tokens or 0)
    assert metered.points(f"{USED}.output_tokens")[0].value == 2 * (USAGE.output_tokens or 0)
    (cached,) = metered.points(f"{USED}.cache_read.input_tokens")
    assert cached.value == 2 * (USAGE.cached_tokens or 0)
    (thoughts,) = metered.points(f"{USED}.reasoning.output_tokens")
    assert thoughts.value == 2 * (USAGE.thought_tokens or 0)
    assert thoughts.attributes["gen_ai.token.modality"] == "unknown"
    (each,) = metered.points("gen_ai.client.inference.operation.input_tokens")
    assert (each.count, each.value) == (2, 2 * (USAGE.input_tokens or 0))


def test_the_table_is_what_the_sdk_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each metric has the unit, buckets and attributes that the documentation says."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")
    metered = RecordedMetrics()
    script = {"a": [Chunks(2), OK, OK, failure(400)]}
    scripted = ScriptedPool([metered.observer], keys=("a",), script=script)
    list(scripted.stream())
    scripted.run(INFO._replace(verb="embedContent"))
    scripted.run()
    for verb in ("embedContent", "generateContent"):
        with suppress(GoogleError):
            scripted.script["a"] = [failure(400)]
            scripted.run(INFO._replace(verb=verb))
    seen = metered.collect()
    for metric in NEW_METRICS:
        metric_data, points = seen[metric.name], metered.points(metric.name)
        assert (metric_data.unit, metric_data.description) == (metric.unit, metric.description)
        attributes = {name for point in points for name in point.attributes}
        failing = {"error.type"} if "operation." in metric.name else set()
        assert attributes == set(metric.attributes) - failing
        if HAS_BUCKETS or not metric.buckets:
            assert {point.bounds for point in points} == {metric.buckets}


def test_a_failed_call_counts_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted with 0, as the conventions require, so that a rate can be computed."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")
    metered = RecordedMetrics()
    scripted = ScriptedPool([metered.observer], keys=("a",), script={"a": [failure(400)]})
    with pytest.raises(Exception, match="400"):
        scripted.run()
    (point,) = metered.points(f"{USED}.input_tokens")
    assert point.value == 0
    (duration,) = metered.points("gen_ai.client.inference.duration")
    assert duration.attributes["error.type"] == "400"


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("embedContent", "gen_ai.client.embeddings.duration"),
        ("countTokens", "gen_ai.client.operation.duration"),
    ],
)
def test_other_operations_have_a_duration(
    verb: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings have a new one; operations without a new metric keep the old one."""
    info = INFO._replace(verb=verb)
    assert names(measured(monkeypatch, "gen_ai_latest_experimental", info)) == {name}
