"""The traces in a real Jaeger after examples/jaeger has run.

What each span holds is held by tests/telemetry; here, that all of them arrive, and can be found.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import free_port, wait_for

from keyrot_middleware.testing import FakeGemini

ROOT = Path(__file__).parents[2]
JAEGER = ROOT / "tools" / "jaeger"
SERVICE, ASYNC = "the-example", ", async"
KEY = re.compile(r"AIza|AQ\.|FAKE")
ATTEMPTS = {
    "1 the first key serves": 1,
    "2 the second key serves": 2,
    "3 the third key serves": 3,
    "4 a stream": 2,
    "5 every key is busy for a second": 4,
    "6 a tool call": 3,
    "7 no key can serve": 3,
    "8 a bad request": 1,
}
"""The cases of the example, each of them sync and async."""


class Jaeger:
    """A Jaeger on free ports, which `make test-jaeger` builds."""

    def __init__(self, binary: str, log: Path) -> None:
        self._log, self._query = log, f"http://127.0.0.1:{(query := free_port())}"
        self.otlp = f"http://127.0.0.1:{(otlp := free_port())}"
        ports = {"QUERY": query, "QUERY_GRPC": free_port(), "OTLP": otlp}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [binary, "--config", str(JAEGER / "jaeger.yaml")],
                env=os.environ | {f"JAEGER_{name}_PORT": str(n) for name, n in ports.items()},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers)

    def query(self, path: str, **query: str | int) -> Any:
        """Send a request to the query API and return the data of its answer."""
        url = f"{self._query}/api/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def traces(self, **tags: str) -> list[dict[str, Any]]:
        """Return the traces of the example that have a span with these tags."""
        more = {"tags": json.dumps(tags)} if tags else {}
        found: list[dict[str, Any]] = self.query("traces", service=SERVICE, limit=1000, **more)
        return found

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text("utf-8")
        try:
            self.query("services")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger, and the example once, as its README describes."""
    built = JAEGER / "bin" / "jaeger"
    binary = str(built) if built.exists() else shutil.which("jaeger")
    if binary is None:
        why = "no Jaeger here (make test-jaeger)"
        (pytest.fail if os.environ.get("JAEGER_REQUIRED") else pytest.skip)(why)
    server = Jaeger(binary, tmp_path_factory.mktemp("jaeger") / "jaeger.log")
    settings = {
        "PATH": os.environ["PATH"],
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.otlp,
        "NO_PROXY": "127.0.0.1",
    }
    app = [sys.executable, str(ROOT / "examples" / "jaeger" / "app.py")]
    try:
        subprocess.run(app, env=settings, capture_output=True, timeout=240, check=True)
        wait_for(lambda: len(server.traces()) >= 2 * len(ATTEMPTS))
        yield server
    finally:
        server.process.kill()  # a polite shutdown would keep connections open for seconds
        server.process.wait(60)


def traces_of(jaeger: Jaeger, **tags: str) -> dict[str, list[str]]:
    """Return the names of the spans of each trace, by that of its root."""
    found = {}
    for trace in jaeger.traces(**tags):
        (root,) = [span for span in trace["spans"] if not span["references"]]
        found[root["operationName"]] = [span["operationName"] for span in trace["spans"]]
    return found


def test_each_case_is_one_trace_with_all_its_attempts(jaeger) -> None:
    """Sync and async; no attempt is lost, or stands in another trace."""
    found = traces_of(jaeger)
    attempts = {
        name: sum(span.startswith("attempt ") for span in spans) for name, spans in found.items()
    }
    assert attempts == ATTEMPTS | {name + ASYNC: count for name, count in ATTEMPTS.items()}


@pytest.mark.parametrize(
    ("tag", "value", "case"),
    [
        ("keyrot.failure.class", "key_leaked", "7 no key can serve"),
        ("keyrot.attempt.count", "4", "5 every key is busy for a second"),
        ("error.type", "503", "6 a tool call"),
    ],
)
def test_a_failed_call_can_be_found_by_its_tags(jaeger, tag, value, case) -> None:
    """The searches in the example's README find their traces."""
    assert traces_of(jaeger, **{tag: value}).keys() == {case, case + ASYNC}


def test_jaeger_has_no_key_and_no_text(jaeger) -> None:
    """No key of the pool, prompt or answer was exported; of a refusal the provider's sentence."""
    with FakeGemini() as gemini:
        for style in ("standard", "auth"):
            assert KEY.search(gemini.add_key(style, style=style).value)
    held = json.dumps(jaeger.traces())
    assert "attempt free_1" in held
    assert KEY.search(held) is None
    assert "You exceeded your current quota" in held
    for text in ("Say hello", "Rome", "ok from"):
        assert text not in held
