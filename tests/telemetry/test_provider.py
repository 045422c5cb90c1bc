"""Which provider is used; without one a call is not observed."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from support.scripted_pool import INFO

from keyrot_middleware.telemetry import otel
from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.tracing import TracingObserver

OBSERVERS: dict[Any, Any] = {TracerProvider: TracingObserver, MeterProvider: MetricsObserver}
VARIABLES: dict[Any, Any] = {
    TracerProvider: (trace, "_TRACER_PROVIDER"),
    MeterProvider: (_internal, "_METER_PROVIDER"),
}


@pytest.fixture(params=OBSERVERS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def put(kind: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module, variable = VARIABLES[kind]
    monkeypatch.setattr(module, variable, None)
    yield lambda provider: setattr(module, variable, provider)


def test_a_provider_is_used_soon_after_it_is_set(kind, put, monkeypatch) -> None:
    """A call before it is not observed, one after it is, and one after its end is not."""
    monkeypatch.setattr(otel, "LOOK_S", 0.0)
    observer, provider = OBSERVERS[kind]("test"), kind(shutdown_on_exit=False)
    assert observer.observe(INFO) is None
    assert observer.observe(INFO) is None
    put(provider)
    assert observer.observe(INFO) is not None
    put(None)
    assert observer.observe(INFO) is None
    provider.shutdown()


def test_an_sdk_that_is_switched_off_is_declined(kind, monkeypatch) -> None:
    """With OTEL_SDK_DISABLED the SDK's tracers and meters do nothing."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert OBSERVERS[kind]("test", kind(shutdown_on_exit=False)).observe(INFO) is None
