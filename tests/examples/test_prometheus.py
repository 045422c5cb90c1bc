"""The Prometheus example serves what its dashboard names, and no key."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import free_port, wait_for

from keyrot_middleware.telemetry.metrics import METRICS

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "examples" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((EXAMPLE / "grafana" / "keyrot.json").read_text("utf-8"))
NAMES = {metric.name.replace(".", "_") for metric in METRICS}
# Its model has no thoughts, and no cache that is written to or read from.
NAMES -= {name for name in NAMES if "cache_" in name or "reasoning" in name}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the example under load until each metric is there; return what it serves."""
    port, found = free_port(), [""]

    def is_complete() -> bool:
        try:
            found[0] = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx.TransportError:
            return False
        return all(name in found[0] for name in NAMES)

    args = ("--address", "127.0.0.1", "--rate", "40", "--port", str(port))
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE / "program.py"), *args],
        cwd=tmp_path_factory.mktemp("program"),
        env={"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(is_complete)
            yield found[0]
        finally:
            process.kill()


def test_no_key_is_exposed(served: str) -> None:
    """Every metric of the table is there; only labels of keys are in the scraped text."""
    assert "AIza" not in served
    assert "FAKE" not in served


def test_the_dashboard_names_metrics_and_labels_that_are_served(served: str) -> None:
    """Each series of each panel is one of the example, with the labels that the panel uses."""
    used = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for expression in used:
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression))))
        for name, selector in re.findall(r"\b(\w+)\{([^}]*)\}", expression):
            series = re.findall(rf"^{name}\{{(.*)\}} ", served, re.MULTILINE)
            labels = set(re.findall(r"(\w+)=", ",".join(series)))
            wanted = set(re.findall(r"(\w+)(?:=~|!=|=)", selector)) | grouped
            assert wanted <= labels, expression
