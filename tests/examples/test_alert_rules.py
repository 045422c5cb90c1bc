"""The alert rules of the Prometheus example fire when they should, and are named as the alerts."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from keyrot_middleware.errors import EVENTS
from keyrot_middleware.monitoring.alerts import _ENDS
from keyrot_middleware.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "prometheus"
RULES = EXAMPLE / "alerts.yml"
CASES = Path(__file__).parent / "alert_rules_test.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here (tools/ci_packages.sh)"
)


BEGINNINGS = set(EVENTS) - {end for end, _ in _ENDS.values()}
"""The events that begin a fact."""


def rules() -> dict[str, str]:
    """Return the expression of each rule, by its name."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def rule_of(event: str) -> str:
    """Return the name of the rule: `KeyrotKeyRejected` of `key_rejected`."""
    return "Keyrot" + event.title().replace("_", "")


def table(page: str, heading: str) -> dict[str, str]:
    """Return the last cell of each row of a table in docs/, by each name in its first cell."""
    below = (ROOT / "docs" / page).read_text("utf-8").partition(f"## {heading}\n")[2]
    lines = re.findall(
        r"^\| (`.*?) \|(?:.*\|)? (.*) \|$", below.partition("\n## ")[0], re.MULTILINE
    )
    return {name: last for first, last in lines for name in re.findall(r"`(\w+)`", first)}


def series(expression: str) -> set[str]:
    """Return what an expression selects, without the choice of a pool."""
    found = re.findall(r"keyrot_\w+\{[^}]*\}", expression)
    return {one.replace('keyrot_pool_name=~"$pool",', "") for one in found}


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
    """Each fires in its case, with its labels and text; none fires for a pool without trouble."""
    promtool("test", "rules", str(CASES))


def test_the_rules_name_metrics_that_exist() -> None:
    used = {one.partition("{")[0] for text in rules().values() for one in series(text)}
    assert used <= {metric.name.replace(".", "_") for metric in METRICS}


def test_each_event_has_its_rule_its_rows_and_its_place_on_the_dashboard() -> None:
    """What begins a fact, by one name everywhere: no rule, row or line is of anything else."""
    panels = json.loads((EXAMPLE / "grafana" / "keyrot.json").read_text("utf-8"))["panels"]
    (shown,) = (one["targets"] for one in panels if one["title"] == "What is the matter")
    lines = {one["legendFormat"]: series(one["expr"]) for one in shown}
    assert lines == {
        name: {f'keyrot_pool_problems{{keyrot_event="{name}"}}'} for name in BEGINNINGS
    }
    found = {name: series(expression) for name, expression in rules().items()}
    more = {"KeyrotModelFailing": {'keyrot_call_answers{keyrot_call_answer="failing"}'}}
    of_rules = {rule_of(name): line for name, line in lines.items()}
    assert found == {name: line | more.get(name, set()) for name, line in of_rules.items()}
    events, book = table("alerts.md", "Events"), table("runbook.md", "Alerts")
    assert set(events) == set(book) == BEGINNINGS
    for name, ended_by in events.items():
        assert re.findall(r"`(\w+)`", ended_by) == ([_ENDS[name][0]] if name in _ENDS else [])


def test_no_rule_says_what_to_type_in_the_words_of_a_label() -> None:
    """A program may let its users choose the model, and an operator pastes a command."""
    assert not re.findall(r"keyrot explain [^\"]*\{\{", RULES.read_text("utf-8"))


def test_the_runbook_names_failure_classes_that_exist() -> None:
    """Each class of its table is a row of docs/failures.md."""
    named = table("runbook.md", "By failure class")
    assert set(named) <= set(table("failures.md", "The table"))


def test_each_rule_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    tried = [one for case in cases for one in case["alert_rule_test"]]
    assert {one["alertname"] for one in tried if one["exp_alerts"]} == set(rules())
