"""KEYROT_TRACING=otlp: spans are exported by OTLP, and a program's own tracing is unchanged."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.collector import Collector
from support.forks import fork_program

from keyrot_middleware.testing import FakeGemini

INSTALL = "import keyrot_middleware; keyrot_middleware.install()"
CALL = """
from google import genai
client = genai.Client()
client.models.generate_content(model="gemini-2.5-flash", contents="hi")
"""
OWN = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans, own = InMemorySpanExporter(), TracerProvider()
own.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(own)
"""
PRINT_PROVIDER = """
print(trace.get_tracer_provider() is own, len(spans.get_finished_spans()))
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server


Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def program(collector: Collector, tmp_path: Path) -> Iterator[Program]:
    with FakeGemini() as gemini:
        key = gemini.add_key("a").value
        settings = {
            "PATH": os.environ["PATH"],
            "KEYROT_TRACING": "otlp",
            "GEMINI_API_KEYS": key,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # sent at the end, however long the program takes
        }

        def run(
            *parts: str, by: tuple[str, ...] = (), **more: str
        ) -> subprocess.CompletedProcess[str]:
            text, environ = "\n".join(map(textwrap.dedent, parts)), {**settings, **more}
            if not by and "PYTHONPATH" not in more:
                done = fork_program(text, environ=environ)
            else:
                path = tmp_path / "program.py"
                path.write_text(text, "utf-8")
                done = subprocess.run(
                    [sys.executable, *by, str(path)],
                    env=environ,
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=240,
                    check=False,
                )
            assert key.encode() not in collector.held
            assert key not in done.stdout + done.stderr
            return done

        yield run


RUN = ("-m", "keyrot_middleware", "run")


@pytest.mark.parametrize(
    ("parts", "by"), [((INSTALL, CALL), ()), ((CALL,), RUN)], ids=["install", "keyrot run"]
)
def test_spans_are_exported_and_flushed_at_the_end_of_the_program(
    program, collector, parts, by
) -> None:
    """One setting is enough for a program without OpenTelemetry to export its spans."""
    assert program(*parts, by=by).stderr == ""
    assert {request.path for request in collector.requests} == {"/v1/traces"}
    assert b"generate_content gemini-2.5-flash" in collector.held
    assert b"attempt key_1" in collector.held


@pytest.mark.parametrize("end", ["raise RuntimeError('it went wrong')", "import sys; sys.exit(1)"])
def test_a_program_that_ends_with_an_error_flushes_too(program, collector, end) -> None:
    """The spans of the failure matter most."""
    assert program(INSTALL, CALL, end).returncode == 1
    assert b"attempt key_1" in collector.held


@pytest.mark.parametrize(
    ("parts", "by"),
    [((OWN, INSTALL, CALL, PRINT_PROVIDER), ()), ((OWN, CALL, PRINT_PROVIDER), RUN)],
    ids=["install", "keyrot run"],
)
def test_a_program_with_a_provider_keeps_it(program, collector, parts, by) -> None:
    """Its provider gets our spans, and no second one is made; `keyrot run` begins before it."""
    done = program(*parts, by=by)
    assert (done.stdout, done.stderr) == ("True 2\n", "")
    assert collector.requests == []


def test_calls_succeed_without_a_collector(program: Program) -> None:
    """The call succeeds; only the end of the program waits for the exporter's own time limit."""
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = program(INSTALL, CALL, "print('done')", OTEL_EXPORTER_OTLP_TIMEOUT="1", **nowhere)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize(("parts", "by"), [((INSTALL,), ()), ((), RUN)], ids=["install", "run"])
def test_a_missing_extra_is_an_error_at_the_start(program, parts, by, tmp_path) -> None:
    """Without the exporter the setting is an error that names the pip line."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None"
    )
    done = program(*parts, "print('started')", by=by, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert done.stdout == ""
    assert "pip install 'keyrot-middleware[otlp]'" in done.stderr
