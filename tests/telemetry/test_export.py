"""KEYROT_TRACING=otlp: spans leave the process, by OTLP over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from keyrot_middleware.testing import FakeGemini

PROGRAM = textwrap.dedent(
    """
    import keyrot_middleware
    keyrot_middleware.install()
    from google import genai
    client = genai.Client()
    client.models.generate_content(model="gemini-2.5-flash", contents="hi")
    """
)


class Collector(HTTPServer):
    """Keep the bodies that are posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.got: list[tuple[str, bytes]] = []


class _Post(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector():
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_are_exported_and_flushed_at_the_end_of_the_program(collector, tmp_path) -> None:
    """One setting is enough for a program without OpenTelemetry to send its spans away."""
    with FakeGemini() as gemini:
        key = gemini.add_key("a")
        env = {
            "PATH": os.environ["PATH"],
            "KEYROT_TRACING": "otlp",
            "GEMINI_API_KEYS": key.value,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        }
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=tmp_path, check=True)
    assert {path for path, _ in collector.got} == {"/v1/traces"}
    spans = b"".join(body for _, body in collector.got)
    assert b"generate_content gemini-2.5-flash" in spans
    assert b"attempt key_1" in spans
    assert key.value.encode() not in spans
