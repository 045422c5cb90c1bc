"""The names of July 2026 beside the old ones: which are emitted, and that none is counted twice."""

from typing import Any

import pytest
from opentelemetry import context
from support.otel import RecordedMetrics
from support.scripted_pool import INFO, STREAMED, USAGE, Chunks, ScriptedPool, failure

from keyrot_middleware.core.commands import Done
from keyrot_middleware.telemetry import semconv
from keyrot_middleware.telemetry.semconv import Conventions, conventions_of

OLD = "gen_ai.client.operation.duration"
NEW = "gen_ai.client.inference.duration"
USED = "gen_ai.client.inference.usage"
SIZES = "gen_ai.client.inference.operation"
MODALITY = "gen_ai.token.modality"


def recorded(conventions: str, *replies: Any, info: Any = INFO) -> RecordedMetrics:
    metered = RecordedMetrics(conventions)
    scripted = ScriptedPool([metered.observer], script={"flash_01": list(replies)})
    for _ in replies or [None]:
        scripted.run(info)
    return metered


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ("1.3b0", Conventions(old=True, new=False)),
        ("1.0", Conventions(old=True, new=False)),
        ("0.9.1", Conventions(old=True, new=False)),
        ("1.4b0", Conventions(old=True, new=True)),
        ("2.0", Conventions(old=True, new=True)),
        ("odd", Conventions(old=True, new=True)),
        (None, Conventions(old=True, new=True)),
    ],
)
def test_the_default_is_what_the_official_library_writes(
    installed: str | None, found: Conventions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both where none is installed, or one of which that is not known."""

    def version(_name: str) -> str:
        if installed is None:
            raise semconv.PackageNotFoundError
        return installed

    monkeypatch.setattr(semconv, "version", version)
    assert conventions_of("auto") == found


@pytest.mark.parametrize(
    ("setting", "names"), [("old", {OLD}), ("new", {NEW}), ("both", {OLD, NEW})]
)
def test_a_setting_chooses_the_names(setting: str, names: set[str]) -> None:
    """Each with one measurement of a call, and the same attributes."""
    metered = recorded(setting)
    found = {name: metered.points(name) for name in (OLD, NEW)}
    assert {name for name, points in found.items() if points} == names
    assert {point.count for points in found.values() for point in points} == {1}
    attributes = [point.attributes for points in found.values() for point in points]
    assert all(one == attributes[0] for one in attributes)
    has_old = bool(metered.points("gen_ai.client.token.usage"))
    assert has_old is (OLD in names)
    assert bool(metered.points(f"{USED}.input_tokens")) is (NEW in names)


def test_the_parts_of_the_usage_have_counters() -> None:
    """By modality where the reply says it; the size of a call is one measurement."""
    details = (("input_audio_tokens", 5), ("output_image_tokens", 90), ("cache_write_tokens", 3))
    metered = recorded("new", Done("answer", USAGE._replace(details=details)))
    found = {
        name: metered.by(f"{USED}.{name}_tokens", MODALITY)
        for name in ("input", "output", "cache_read.input", "cache_write.input", "reasoning.output")
    }
    assert found == {
        "input": {"audio": 5, "unknown": 7},
        "output": {"image": 30},  # of 30 in all
        "cache_read.input": {"unknown": 4},
        "cache_write.input": {"unknown": 3},
        "reasoning.output": {"unknown": 8},
    }
    sizes = [metered.points(f"{SIZES}.{kind}_tokens") for kind in ("input", "output")]
    assert [(one.value, one.count) for (one,) in sizes] == [(12, 1), (30, 1)]


def test_a_stream_has_the_time_of_its_first_chunk_by_both_names() -> None:
    """Once each."""
    metered = RecordedMetrics("both")
    list(ScriptedPool([metered.observer], script={"flash_01": [Chunks(2)]}).stream(STREAMED))
    for name in ("operation", "inference"):
        (point,) = metered.points(f"gen_ai.client.{name}.time_to_first_chunk")
        assert point.count == 1


def test_a_call_that_fails_has_a_duration_and_no_size() -> None:
    """Of what was not answered there is no size."""
    metered = RecordedMetrics("new")
    scripted = ScriptedPool([metered.observer], script={"flash_01": [failure(400)]})
    with pytest.raises(Exception, match="400"):
        scripted.run()
    assert metered.by(NEW, "error.type") == {"400": 1}
    assert metered.points(f"{SIZES}.input_tokens") == []


@pytest.mark.parametrize("verb", ["embedContent", "countTokens", "get"])
def test_what_is_no_inference_keeps_its_names(verb: str) -> None:
    """No new ones of it are settled."""
    metered = recorded("new", info=INFO._replace(verb=verb))
    assert metered.by(OLD, "gen_ai.operation.name")
    assert metered.points(NEW) == metered.points(f"{USED}.input_tokens") == []


@pytest.mark.parametrize(
    "key", [one for keys in semconv._DATA_KEYS.values() for one in keys if "inference" in one]
)
def test_the_span_of_the_official_instrumentation_is_found_by_both_keys(key: str) -> None:
    """That of before July 2026 too: what it measures itself we do not."""
    metered = RecordedMetrics("both")
    token = context.attach(context.set_value(key, object()))
    try:
        ScriptedPool([metered.observer]).run()
    finally:
        context.detach(token)
    assert not [name for name in metered.collect() if name.startswith("gen_ai.")]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("old", {"gen_ai.usage.cache_creation.input_tokens"}),
        ("new", {"gen_ai.usage.cache_write.input_tokens"}),
        (
            "both",
            {"gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"},
        ),
    ],
)
def test_tokens_written_to_a_cache_are_on_the_span(
    setting: str, names: set[str], spans_of: Any
) -> None:
    """By the name of the conventions."""
    traced = spans_of(setting)
    usage = USAGE._replace(details=(("cache_write_tokens", 3),))
    ScriptedPool([traced.observer], script={"flash_01": [Done("answer", usage)]}).run()
    (span,) = traced.named("generate_content")
    assert {n: v for n, v in span.attributes.items() if "cache_" in n and "read" not in n} == (
        dict.fromkeys(names, 3)
    )
