"""A real Prometheus scrapes a program with a pool, and runs the queries of the dashboard."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from support.prometheus import BINARY, Prometheus, read
from support.servers import free_port, wait_for

from keyrot_middleware.telemetry.metrics import METRICS

EXAMPLE = Path(__file__).parents[2] / "examples" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((EXAMPLE / "grafana" / "keyrot.json").read_text("utf-8"))
PATIENCE_S = 120

pytestmark = pytest.mark.skipif(BINARY is None, reason="no prometheus here (tools/ci_packages.sh)")


def _config(port: int) -> str:
    """Return the example's own configuration, for another port and with a short interval."""
    text = (EXAMPLE / "prometheus.yml").read_text("utf-8")
    assert '["localhost:9464"]' in text
    text = text.replace('["localhost:9464"]', json.dumps([f"127.0.0.1:{port}"]))
    return text.replace("scrape_interval: 5s", HURRY)


HURRY = "scrape_interval: 300ms"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the example under load until the tests end."""
    port = free_port()
    args = ("--address", "127.0.0.1", "--rate", "40", "--port", str(port))
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE / "program.py"), *args],
        cwd=tmp_path_factory.mktemp("program"),
        env={"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: _serves(port), PATIENCE_S)
        yield port
        process.kill()


def _serves(port: int) -> bool:
    try:
        return b"keyrot_call_attempts" in read(f"http://127.0.0.1:{port}/metrics")
    except URLError:
        return False


@pytest.fixture(scope="module")
def prometheus(port: int) -> Iterator[Prometheus]:
    server = Prometheus(_config(port))
    yield server
    server.stop()


def test_every_metric_of_the_table_is_exposed(prometheus: Prometheus) -> None:
    """The example shows all of them, under the names that the exporter makes."""
    wait_for(lambda: len(_exposed_names(prometheus)) == len(METRICS), PATIENCE_S)
    assert _exposed_names(prometheus) == {metric.name.replace(".", "_") for metric in METRICS}


def _exposed_names(prometheus: Prometheus) -> set[str]:
    names = {metric.name.replace(".", "_") for metric in METRICS}
    exposed: list[str] = prometheus.get("label/__name__/values")
    return {name for name in names if any(one.startswith(name) for one in exposed)}


def test_no_key_is_exposed(port: int) -> None:
    """Only labels of keys appear in the scraped text."""
    text = read(f"http://127.0.0.1:{port}/metrics")
    assert b"AIza" not in text
    assert b"FAKE" not in text


EXPRESSIONS = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(
    ("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS]
)
def test_each_panel_has_data(prometheus: Prometheus, title: str, expression: str) -> None:
    """An expression of the dashboard is valid, names exposed metrics, and finds something."""
    expanded = expression.replace("$__rate_interval", "5s").replace("$pool", ".*")
    assert "$" not in expanded
    wait_for(lambda: prometheus.query(expanded), PATIENCE_S)
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expanded))))
    for name, selector in re.findall(r"\b(\w+)\{([^}]*)\}", expanded):
        series = prometheus.get("series", **{"match[]": name})
        labels = {label for one in series for label in one}
        assert set(re.findall(r"(\w+)(?:=~|!=|=)", selector)) | grouped <= labels, title
