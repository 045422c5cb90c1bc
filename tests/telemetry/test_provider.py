"""Which provider is used, and that a call of a program that has none is not watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once
from playground import INFO

from keyrot_middleware.drive.guard import fault
from keyrot_middleware.telemetry.base import watch
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.otel import OtelObserver

KINDS = {
    "tracer": (trace, "_TRACER_PROVIDER", TracerProvider, OtelObserver),
    "meter": (_internal, "_METER_PROVIDER", MeterProvider, MetricsObserver),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a kind of provider, of which the process has none, and put back what it had."""
    module, variable, provider_type, observer = KINDS[request.param]
    monkeypatch.setattr(module, variable, None)
    provider = provider_type(shutdown_on_exit=False)
    yield module, variable, provider, observer("test")
    provider.shutdown()


def test_a_provider_counts_from_the_moment_in_which_it_is_set(kind: Any) -> None:
    """Calls before it are not watched, calls after it are, and those after another go to that."""
    module, variable, provider, observer = kind
    assert observer.start(INFO) is observer.start(INFO) is None
    setattr(module, variable, provider)
    assert observer.start(INFO) is not None
    setattr(module, variable, None)
    assert observer.start(INFO) is None


def test_without_the_apis_own_variable_its_function_is_asked(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a version of the API that keeps the provider elsewhere it is found all the same."""
    module, variable, provider, observer = kind
    monkeypatch.delattr(module, variable)
    name = "get_tracer_provider" if module is trace else "get_meter_provider"
    monkeypatch.setattr(trace if module is trace else metrics, name, lambda: provider)
    assert observer.start(INFO) is not None


def test_a_provider_that_is_named_in_the_environment_is_loaded(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_PYTHON_*_PROVIDER makes the API load one when it is first asked."""
    module, variable, _, observer = kind
    word = "TRACER" if module is trace else "METER"
    monkeypatch.setattr(module, f"_{word}_PROVIDER_SET_ONCE", Once())
    monkeypatch.setenv(f"OTEL_PYTHON_{word}_PROVIDER", f"sdk_{word.lower()}_provider")
    assert observer.start(INFO) is not None
    assert observer.start(INFO) is not None
    getattr(module, variable).shutdown()


def test_a_call_that_nobody_watches_looks_into_no_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the first call the three observers of a pool decline by identity alone."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
    observers = (OtelObserver("test"), LogObserver("test"), MetricsObserver("test"))
    assert watch(observers, INFO, fault) is None
    for module, name in ((trace, "get_tracer_provider"), (metrics, "get_meter_provider")):
        monkeypatch.setattr(module, name, lambda: pytest.fail("the API was asked again"))
    assert watch(observers, INFO, fault) is None
