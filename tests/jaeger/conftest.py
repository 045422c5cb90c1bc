"""A Jaeger, and the traces of the example as it shows them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.jaeger import ROOT, SERVICE, Jaeger, Span, find_jaeger, root_of

APP = ROOT / "examples" / "jaeger" / "app.py"
TRACES = 16


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger for all tests of the session; `make test-jaeger` builds it."""
    binary = find_jaeger()
    if binary is None:
        why = "no Jaeger here (make test-jaeger)"
        if os.environ.get("JAEGER_REQUIRED"):
            pytest.fail(why)
        pytest.skip(why)
    server = Jaeger(binary, tmp_path_factory.mktemp("jaeger") / "jaeger.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def traces(jaeger: Jaeger) -> list[dict[str, Any]]:
    """Run the example once, as its README describes; return the answer of Jaeger's query API."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    settings = {
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp,
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, str(APP)],
        env={**kept, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    warned = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert done.returncode == 0, done.stderr
    assert [line for line in warned if " is rejected: key_" not in line] == []
    return jaeger.traces(SERVICE, TRACES)


@pytest.fixture(scope="session")
def roots(traces: list[dict[str, Any]]) -> dict[str, Span]:
    return {root.name: root for root in map(root_of, traces)}
