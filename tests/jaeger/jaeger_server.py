"""A real Jaeger on free ports of loopback, and what its query API tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from servers import free_port, wait_for

__all__ = ["ROOT", "SERVICE", "Jaeger", "find_jaeger"]

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tools" / "jaeger" / "jaeger.yaml"
BUILT = ROOT / "tools" / "jaeger" / "bin" / "jaeger"
SERVICE = "the-example"


def find_jaeger() -> str | None:
    """Find the binary that `make test-jaeger` builds, or one on PATH."""
    return str(BUILT) if BUILT.exists() else shutil.which("jaeger")


class Jaeger:
    """One process with its spans in memory."""

    def __init__(self, binary: str, log: Path) -> None:
        """Start it, and wait until it answers."""
        self._log = log
        self._query = f"http://127.0.0.1:{(query := free_port())}"
        self.otlp = f"http://127.0.0.1:{(otlp := free_port())}"
        ports = {
            "JAEGER_QUERY_PORT": str(query),
            "JAEGER_QUERY_GRPC_PORT": str(free_port()),
            "JAEGER_OTLP_PORT": str(otlp),
        }
        with log.open("wb") as told:
            self._process = subprocess.Popen(
                [binary, "--config", str(CONFIG)],
                env={**os.environ, **ports},
                stdout=told,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers, 30)

    def stop(self) -> None:
        """End it; asked politely it would keep connections open for seconds."""
        self._process.kill()
        self._process.wait(10)

    def ask(self, path: str, **query: str | int) -> Any:
        """Send a question to the query API and give the JSON of its answer."""
        url = f"{self._query}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def traces(self, service: str, count: int) -> list[dict[str, Any]]:
        """Give a service's traces in the order in which they began, once there are so many."""
        wait_for(lambda: len(self._traces(service)) >= count)
        return sorted(self._traces(service), key=_began)

    def _traces(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/api/traces", service=service, limit=1000)["data"]
        return found

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text("utf-8")
        try:
            self.ask("/api/services")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True


def _began(trace: dict[str, Any]) -> int:
    return min(span["startTime"] for span in trace["spans"])
