"""`opentelemetry-instrument python app.py`: the pool without a line of ours."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import keyrot_middleware
from keyrot_middleware.instrumentor import KeyrotInstrumentor
from keyrot_middleware.testing import FakeGemini, Reply

COMMAND = str(Path(sys.executable).with_name("opentelemetry-instrument"))
PROGRAM = """
import os
from google import genai
client = genai.Client(api_key=os.environ.get("HOME_KEY"))
print(client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi").text)
"""
OTHERS = "google-genai, google_genai"
"""Other instrumentations of google-genai that are installed for other tests; one warns here."""
OFF = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": f"{OTHERS}, keyrot"}
QUIET = {
    **{f"OTEL_{kind}_EXPORTER": "none" for kind in ("TRACES", "METRICS", "LOGS")},
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": OTHERS,
}

Instrumented = Callable[..., Any]


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    with FakeGemini() as server:
        server.add_key("dead", tier="paid")
        server.add_key("good", tier="paid")
        server.always("dead", Reply.KEY_INVALID)
        yield server


@pytest.fixture
def instrumented(service: FakeGemini, tmp_path: Path) -> Instrumented:
    (tmp_path / "app.py").write_text(PROGRAM)

    def run(*args: str, **variables: str) -> Any:
        settings = {
            "GEMINI_API_KEYS": f"{service.key('dead').value},{service.key('good').value}",
            "KEYROT_STRATEGY": "fill",
            "KEYROT_ALLOWED_HOSTS": service.host,
            "GOOGLE_GEMINI_BASE_URL": service.url,
        }
        return subprocess.run(
            [COMMAND, *(args or (sys.executable, "app.py"))],
            env={"PATH": os.environ["PATH"], **settings, **QUIET, **variables},
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=240,
            check=False,
        )

    return run


def test_the_command_installs_the_pool(instrumented: Instrumented, service: FakeGemini) -> None:
    """An unchanged program is served despite a dead key, which is named at its own line."""
    ran = instrumented()
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n")
    assert "app.py:5: KeyrotWarning: " in ran.stderr
    assert ran.stderr.count("key key_1 is rejected") == ran.stderr.count("KeyrotWarning") == 1
    assert [service.sent("dead"), service.sent("good")] == [1, 1]


def test_the_variable_disables_it(instrumented: Instrumented, service: FakeGemini) -> None:
    """OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=keyrot leaves the SDK alone."""
    ran = instrumented(**OFF, HOME_KEY=service.key("good").value)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ok from good\n", "")
    assert service.sent("dead") == 0


def test_a_wrong_setting_is_logged_and_the_program_starts(instrumented, service) -> None:
    """The program starts without the pool, and stderr names the mistake."""
    ran = instrumented(KEYROT_STRATEGY="sometimes", HOME_KEY=service.key("good").value)
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n")
    assert ran.stderr.startswith("keyrot: the program starts without the pool: ")
    assert "KEYROT_STRATEGY" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert service.sent("dead") == 0


@pytest.fixture
def instrumentor(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyrotInstrumentor]:
    monkeypatch.setenv("GEMINI_API_KEYS", "one,two")
    one = KeyrotInstrumentor()
    yield one
    if one.is_instrumented_by_opentelemetry:
        one.uninstrument()
    keyrot_middleware.uninstall()


def test_uninstrument_removes_the_pool(instrumentor: KeyrotInstrumentor) -> None:
    """By hand it is instrumented and uninstrumented like any other, with settings of install()."""
    instrumentor.instrument(pool="by_hand")
    assert keyrot_middleware.status()["pool"] == "by_hand"
    instrumentor.uninstrument()
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}


def test_the_instrumentor_raises_nothing(instrumentor, monkeypatch, caplog) -> None:
    """Every failure is logged as an error, without foreign text."""

    def fail(**_: Any) -> None:
        raise OSError("FAKE secret")

    monkeypatch.setattr("keyrot_middleware.instrumentor.install", fail)
    instrumentor.instrument()
    (record,) = [r for r in caplog.records if r.name == "keyrot_middleware"]
    assert (record.levelno, record.getMessage()) == (
        logging.ERROR,
        "the program starts without the pool: OSError",
    )
    assert not keyrot_middleware.status()["installed"]
