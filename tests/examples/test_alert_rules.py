"""The alert rules of the Prometheus example fire when they should, on metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from keyrot_middleware.telemetry.metrics import METRICS

EXAMPLE = Path(__file__).parents[2] / "examples" / "prometheus"
RULES = EXAMPLE / "alerts.yml"
CASES = Path(__file__).parent / "alert_rules_test.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here (tools/ci_packages.sh)"
)


def names() -> list[str]:
    """Return the names of the rules."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def promtool(*args: str) -> None:
    """Run promtool; it must report nothing."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_valid() -> None:
    """Prometheus would load them."""
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_rule_fires_when_it_should() -> None:
    """Each fires in its case, with its labels and text; none fires for a healthy pool."""
    promtool("test", "rules", str(CASES))


def test_each_rule_has_a_case() -> None:
    """A rule is tested when it fires, and when it does not."""
    tests = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fired == silent == set(names())


def test_the_rules_name_metrics_that_exist() -> None:
    """They have the names that the exporter makes of them."""
    used = set(re.findall(r"\bkeyrot_\w+(?=[\[{) ])", RULES.read_text("utf-8")))
    exposed = {metric.name.replace(".", "_") for metric in METRICS}
    labels = {"keyrot_pool_name", "keyrot_key_id", "keyrot_quota", "keyrot_key_state"}
    assert {name.removesuffix("_total") for name in used - labels} <= exposed


def test_the_example_loads_the_rules() -> None:
    """With Docker and without."""
    for name in ("prometheus.yml", "prometheus.docker.yml"):
        assert "rule_files: [alerts.yml]" in (EXAMPLE / name).read_text("utf-8")
    compose = (EXAMPLE / "docker-compose.yml").read_text("utf-8")
    assert "./alerts.yml:/etc/prometheus/alerts.yml:ro" in compose
