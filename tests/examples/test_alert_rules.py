"""The alert rules of the Prometheus example fire when they should, on metrics that exist."""

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
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def promtool(*args: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_valid() -> None:
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_rule_fires_when_it_should() -> None:
    """Each fires in its case, with its labels and text; none fires for a healthy pool."""
    promtool("test", "rules", str(CASES))


def test_the_rules_name_metrics_that_exist() -> None:
    used = set(re.findall(r"\bkeyrot_\w+(?=[\[{) ])", RULES.read_text("utf-8")))
    exposed = {metric.name.replace(".", "_") for metric in METRICS}
    labels = {"keyrot_pool_name", "keyrot_key_id", "keyrot_quota", "keyrot_key_state"}
    assert {name.removesuffix("_total") for name in used - labels} <= exposed
