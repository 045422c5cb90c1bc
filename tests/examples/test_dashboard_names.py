"""The panel of the added latency, by Prometheus itself: with old names, new ones, and both."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "examples" / "prometheus" / "grafana" / "keyrot.json"
PROMTOOL = shutil.which("promtool")
OLD, NEW, SENT = (
    "gen_ai_client_operation_duration_seconds",
    "gen_ai_client_inference_duration_seconds",
    "keyrot_attempt_duration_seconds",
)


def added() -> str:
    """Return the expression of the panel, for all pools and five minutes."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    (panel,) = (one for one in panels if one["title"] == "Added latency")
    text: str = panel["targets"][0]["expr"]
    return text.replace("$pool", ".*").replace("$__rate_interval", "5m")


def series(name: str, instance: str, calls: int, seconds: float) -> list[dict[str, str]]:
    """Return so many calls a minute, of so many seconds each."""
    labels = f'{{keyrot_pool_name="web",instance="{instance}",gen_ai_operation_name="chat"}}'
    return [
        {"series": f"{name}_count{labels}", "values": f"0+{calls}x10"},
        {"series": f"{name}_sum{labels}", "values": f"0+{calls * seconds}x10"},
    ]


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (tools/ci_packages.sh)")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([OLD], [OLD]),
        ([NEW], [NEW]),
        ([OLD, NEW], [OLD, NEW]),
        ([OLD], [NEW]),
        ([NEW], [OLD, NEW]),
    ],
)
def test_the_added_latency_is_right_by_either_names(
    a: list[str], b: list[str], tmp_path: Path
) -> None:
    """Two processes, of which each emits old names, new ones or both; none is counted twice."""
    rule = {"record": "added", "expr": added()}
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]})
    )
    given = [one for name in a for one in series(name, "a", 60, 1.25)]
    given += [one for name in b for one in series(name, "b", 60, 2.25)]
    given += series(SENT, "a", 60, 1.0) + series(SENT, "b", 60, 2.0)
    case = {
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [
            {
                "expr": "added",
                "eval_time": "8m",
                "exp_samples": [{"labels": "added", "value": 0.25}],
            }
        ],
    }
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    assert PROMTOOL is not None
    command = [PROMTOOL, "test", "rules", "test.yml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
