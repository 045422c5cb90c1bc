"""Which provider is used, and that a call of a program that has none is not watched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider, _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider
from playground import INFO

from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.otel import OtelObserver
from keyrot_middleware.telemetry.provider import METERS, TRACERS, Global, InForce

OBSERVERS: dict[Any, Any] = {TracerProvider: OtelObserver, MeterProvider: MetricsObserver}
VARIABLES: dict[Any, Any] = {
    TracerProvider: (trace, "_TRACER_PROVIDER"),
    MeterProvider: (_internal, "_METER_PROVIDER"),
}


@pytest.fixture(params=OBSERVERS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    """Name a kind of provider by the SDK's class."""
    return request.param


@pytest.fixture
def put(kind: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set the process's provider, None at first, and put back at the end what it had."""
    module, variable = VARIABLES[kind]
    monkeypatch.setattr(module, variable, None)
    yield lambda provider: setattr(module, variable, provider)


def test_a_provider_serves_from_the_moment_in_which_it_is_set(kind: Any, put: Any) -> None:
    """A call before it is not watched, one after it is, and one after it is gone is not."""
    observer, provider = OBSERVERS[kind]("test"), kind(shutdown_on_exit=False)
    assert observer.start(INFO) is None
    assert observer.start(INFO) is None
    put(provider)
    assert observer.start(INFO) is not None
    put(None)
    assert observer.start(INFO) is None
    provider.shutdown()


@pytest.mark.parametrize(
    "observer",
    [
        OtelObserver("test", NoOpTracerProvider()),
        OtelObserver("test", ProxyTracerProvider()),
        MetricsObserver("test", NoOpMeterProvider()),
    ],
)
def test_a_provider_that_records_nothing_is_declined(observer: Any) -> None:
    """A call that would be recorded nowhere is not watched at all."""
    assert observer.start(INFO) is None


def test_an_sdk_that_is_switched_off_is_declined(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SDK_DISABLED makes the SDK give tracers and meters that do nothing."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert OBSERVERS[kind]("test", kind(shutdown_on_exit=False)).start(INFO) is None


NAMED = """
from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.otel import OtelObserver

for observer in OtelObserver("test"), MetricsObserver("test"):
    for _ in range(2):
        assert observer.start(CallInfo("m", "generateContent")) is not None
"""


def test_a_provider_that_the_environment_names_is_loaded() -> None:
    """OTEL_PYTHON_*_PROVIDER makes the API load one when it is first asked, which is by us."""
    named = {f"OTEL_PYTHON_{one}_PROVIDER": f"sdk_{one.lower()}_provider" for one in KINDS}
    done = subprocess.run(
        [sys.executable, "-c", NAMED],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


KINDS = ("TRACER", "METER")


class Api:
    """An API with a provider, that counts how often it is asked."""

    def __init__(self, **variables: object) -> None:
        self.holder = SimpleNamespace(**variables)
        self.provider: object = "none"
        self.asked = 0
        self.one = Global(self.holder, "_PROVIDER", self._ask)

    def _ask(self) -> object:
        self.asked += 1
        return self.provider


def test_the_api_is_asked_only_where_something_has_changed() -> None:
    """Its function looks into the environment: it is not for every call."""
    api = Api(_PROVIDER=None)
    made = InForce(None, api.one, str)
    assert [made(), made(), made()] == ["none"] * 3
    assert api.asked == 1
    api.holder._PROVIDER = api.provider = "theirs"
    assert [made(), made()] == ["theirs"] * 2
    assert api.asked == 2


def test_an_api_without_that_variable_is_asked_each_time() -> None:
    """A version of the API that keeps its provider elsewhere serves as well, only dearer."""
    api = Api()
    made = InForce(None, api.one, str)
    assert made() == "none"
    api.provider = "theirs"
    assert made() == "theirs"


def test_a_provider_that_is_given_is_used_alone() -> None:
    """It is asked for nothing but what is made of it, once."""
    api = Api(_PROVIDER="theirs")
    made = InForce("given", api.one, lambda provider: [provider])
    assert made() is made()
    assert made() == ["given"]
    assert api.asked == 0


@pytest.mark.parametrize("one", [TRACERS, METERS], ids=KINDS)
def test_the_installed_api_has_that_variable(one: Global) -> None:
    """Else each call that nobody watches would cost microseconds: time to look at provider.py."""
    assert hasattr(one.holder, one.variable)
