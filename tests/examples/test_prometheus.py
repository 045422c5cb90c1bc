"""A real Prometheus scrapes a program with a pool, and runs the queries of the dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
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

PROGRAM = textwrap.dedent(
    """
    import json, os, sys
    from google import genai
    from opentelemetry import metrics
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import start_http_server
    import keyrot_middleware
    from keyrot_middleware.testing import FakeGemini, Reply

    keys = [
        {"key_id": "dead"}, {"key_id": "free", "rpm": 100, "tpm": 1000, "rpd": 1000},
        {"key_id": "paid", "priority": 1},
    ]
    with FakeGemini() as gemini:
        for key in keys:
            os.environ[f"GEMINI_KEY_{key['key_id']}"] = gemini.add_key(key["key_id"]).value
        gemini.tokens(lambda body: 250)
        gemini.always("dead", Reply.KEY_INVALID)
        open("keys.json", "w").write(json.dumps(keys))
        metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
        keyrot_middleware.install(allowed_hosts=[gemini.host], strategy="fill", pool="exact")
        client = genai.Client(http_options=gemini.http_options)
        client.models.generate_content(model="gemini-2.5-flash", contents="hi")
        list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi"))
        gemini.script("free", Reply.QUOTA_DAY)
        client.models.generate_content(model="gemini-2.5-flash", contents="hi")
        gemini.always_any(Reply.BAD_REQUEST)
        try:
            client.models.generate_content(model="gemini-2.5-flash", contents="hi")
        except genai.errors.ClientError:
            pass
        start_http_server(int(sys.argv[1]), "127.0.0.1")
        sys.stdin.read()
    """
)


def _start(where: Path, *args: str) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=where,
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def _config(*targets: int) -> str:
    text = (EXAMPLE / "prometheus.yml").read_text("utf-8")
    assert '["localhost:9464"]' in text
    where = json.dumps([f"127.0.0.1:{port}" for port in targets])
    return text.replace('["localhost:9464"]', where).replace("scrape_interval: 5s", HURRY)


HURRY = "scrape_interval: 300ms"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    ports = {"few": free_port(), "example": free_port()}
    where = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:
        load = ("--rate", "40", "--port", str(ports["example"]))
        for args in (
            ("-c", PROGRAM, str(ports["few"])),
            (str(EXAMPLE / "program.py"), "--address", "127.0.0.1", *load),
        ):
            process = stack.enter_context(_start(where, *args))
            stack.callback(process.kill)
        for port in ports.values():
            wait_for(lambda port=port: _serves(port), PATIENCE_S)
        yield ports


def _serves(port: int) -> bool:
    try:
        return b"keyrot_call_attempts" in read(f"http://127.0.0.1:{port}/metrics")
    except URLError:
        return False


@pytest.fixture(scope="module")
def prometheus(ports: dict[str, int]) -> Iterator[Prometheus]:
    server = Prometheus(_config(*ports.values()))
    yield server
    server.stop()


def test_prometheus_has_the_counts(prometheus: Prometheus) -> None:
    """Four calls over three keys are returned by the query API as they were made."""
    pool = '{keyrot_pool_name="exact"}'
    wait_for(lambda: prometheus.query(f"keyrot_call_attempts_count{pool}"), PATIENCE_S)
    by = prometheus.by
    assert by(f"keyrot_call_attempts_count{pool}", "error_type") == {"": 3, "400": 1}
    assert by(f"keyrot_call_attempts_sum{pool}", "error_type") == {"": 5, "400": 1}
    sends = by(f"keyrot_attempt_duration_seconds_count{pool}", *SEND)
    assert sends == {
        ("dead", "key_invalid", "400"): 1,
        ("free", "", ""): 2,
        ("free", "quota_day", "429"): 1,
        ("paid", "", ""): 1,
        ("paid", "bad_request", "400"): 1,
    }
    cooldowns = by(f"keyrot_key_cooldowns_total{pool}", "keyrot_key_id", "keyrot_failure_class")
    assert cooldowns == {("dead", "key_invalid"): 1, ("free", "quota_day"): 1}
    state = by(f"keyrot_key_count{pool}", "keyrot_key_state")
    assert {name: count for name, count in state.items() if count} == {
        "available": 1,
        "cooling_down": 1,
        "rejected": 1,
    }
    tokens = by(f'keyrot_key_tokens_total{{gen_ai_token_type="input",{pool[1:]}', "keyrot_key_id")
    assert tokens == {"free": 500, "paid": 250}
    assert by(f"keyrot_key_wait_time_seconds_count{pool}", "keyrot_pool_name") == {"exact": 6}
    assert by(f"keyrot_state_degraded{pool}", "keyrot_pool_name") == {"exact": 0}
    day = by(f'keyrot_key_quota_used_ratio{{keyrot_quota="rpd",{pool[1:]}', "keyrot_key_id")
    assert day["free"] > 0
    called = by(f"gen_ai_client_operation_duration_seconds_count{pool}", "error_type")
    assert called == {"": 3, "400": 1}
    chunks = f"gen_ai_client_operation_time_to_first_chunk_seconds_count{pool}"
    assert by(chunks, "keyrot_pool_name") == {"exact": 1}


SEND = ("keyrot_key_id", "keyrot_failure_class", "error_type")


def test_every_metric_of_the_table_is_exposed(prometheus: Prometheus) -> None:
    """The example shows all of them, under the names that the exporter makes."""
    wait_for(lambda: len(_exposed_names(prometheus)) == len(METRICS), PATIENCE_S)
    assert _exposed_names(prometheus) == {metric.name.replace(".", "_") for metric in METRICS}


def _exposed_names(prometheus: Prometheus) -> set[str]:
    names = {metric.name.replace(".", "_") for metric in METRICS}
    exposed: list[str] = prometheus.get("label/__name__/values")
    return {name for name in names if any(one.startswith(name) for one in exposed)}


def test_no_key_is_exposed(ports: dict[str, int]) -> None:
    """Only labels of keys appear in the scraped text."""
    for port in ports.values():
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
