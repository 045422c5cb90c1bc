"""The gauges of the keys at each collection, and what collections must not delay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.otel import RecordedMetrics
from support.scripted_pool import ScriptedPool, invalid, minute
from support.servers import server

from keyrot_middleware.core.availability import KEY_STATES
from keyrot_middleware.core.model import Candidate, Limits
from keyrot_middleware.monitoring.view import levels
from keyrot_middleware.telemetry.metrics import KeySnapshot
from keyrot_middleware.testing import FakeGemini

COUNT = "keyrot.key.count"
USED = "keyrot.key.quota.used_ratio"


class RecordedGauges(RecordedMetrics):
    """Metrics of a registered pool."""

    def __init__(self, **script: Any) -> None:
        super().__init__()
        keys = ("a_limited", "b_bad", "c_busy", "d_idle")
        self.scripted = ScriptedPool([self.observer], keys=keys, script=script)
        self.degraded = False
        self.reads = 0
        self.observer.register_gauges(self._levels, lambda: self.degraded)

    def _levels(self) -> Iterable[KeySnapshot]:
        self.reads += 1
        return levels(self.scripted.pool)

    @property
    def states(self) -> Any:
        """Count the keys by their state, read again."""
        source: Any = self.observer._source
        source._last = (float("-inf"), ())
        return self.by(COUNT, "keyrot.key.state")

    def limit(self, key_id: str, limits: Limits) -> None:
        """Set limits of a key."""
        keys = self.scripted.pool.selector.keys
        keys[key_id] = Candidate(key_id, keys[key_id].project, "billing", limits)


def test_keys_by_state() -> None:
    """A key is counted under its state in status(); the sum is the pool."""
    gauges = RecordedGauges(a_limited=[minute(9)], b_bad=[invalid()])
    nothing = dict.fromkeys(KEY_STATES, 0)
    assert gauges.states == nothing | {"available": 4}
    gauges.limit("c_busy", Limits(rpm=1))
    gauges.scripted.run()
    counts = {"available": 1, "limited": 1, "cooling_down": 1, "rejected": 1}
    assert gauges.states == nothing | counts
    gauges.scripted.clock.advance(100)
    assert gauges.states["cooling_down"] == gauges.states["limited"] == 0


def test_utilization_of_each_limit() -> None:
    """Requests and tokens are divided by the known limits; others are omitted."""
    gauges = RecordedGauges()
    gauges.limit("a_limited", Limits(rpm=10, tpm=48, rpd=100))
    gauges.scripted.run()
    names = ("keyrot.key.id", "gen_ai.request.model", "keyrot.quota")
    share = {
        ("a_limited", "gemini-2.5-flash", "rpm"): 0.1,
        ("a_limited", "gemini-2.5-flash", "tpm"): 0.25,
        ("a_limited", "gemini-2.5-flash", "rpd"): 0.01,
    }
    assert gauges.by(USED, *names) == share


def test_a_state_that_fails_breaks_nothing() -> None:
    """The collection has no gauges of the keys; it is read once for all metrics."""
    gauges = RecordedGauges()
    gauges.collect()
    assert gauges.reads == 1
    gauges.observer._source._look = lambda: 1 / 0  # type: ignore[union-attr,assignment,return-value]
    assert gauges.states == {}


def test_degraded() -> None:
    """1 while this process counts alone, 0 else."""
    gauges = RecordedGauges()
    assert gauges.by("keyrot.state.degraded", "keyrot.pool.name") == {"test": 0}
    gauges.degraded = True
    assert gauges.by("keyrot.state.degraded", "keyrot.pool.name") == {"test": 1}


PROGRAM = textwrap.dedent(
    """
    import json, sys
    from google import genai
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    import keyrot_middleware

    reader = InMemoryMetricReader()

    def points():
        data = reader.get_metrics_data()
        scopes = [s for r in data.resource_metrics for s in r.scope_metrics] if data else []
        return {
            m.name: sorted(
                [list(p.attributes.values()), getattr(p, "count", 0) or getattr(p, "value", 0)]
                for p in m.data.data_points
            )
            for s in scopes if s.scope.name == "keyrot_middleware" for m in s.metrics
        }

    def call():
        client.models.generate_content(model="gemini-2.5-flash", contents="hi")

    keyrot_middleware.install()
    client = genai.Client()
    call()
    metrics.set_meter_provider(MeterProvider([reader]))
    before = points()
    call()
    during = points()
    keyrot_middleware.uninstall()
    after = points()
    keyrot_middleware.install(pool="second")
    again = points()
    print(json.dumps([before, during, after, again]))
    """
)


@pytest.mark.parametrize("kind", ["memory", "valkey"])
def test_a_provider_that_is_set_after_install(kind: str, tmp_path: Path) -> None:
    """Calls and keys are counted from then on, until uninstall; a second install replaces it."""
    url = "memory://" if kind == "memory" else server(kind).url
    with FakeGemini() as gemini:
        key = gemini.add_key("a", tier="paid").value
        env = {
            "PATH": os.environ["PATH"],
            "GEMINI_API_KEYS": key,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "KEYROT_STATE_URL": url,
            "KEYROT_POOL": f"levels-{kind}",
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
        }
        args = [sys.executable, "-W", "error::RuntimeWarning", "-c", PROGRAM]
        done = subprocess.run(
            args, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    before, during, after, again = json.loads(done.stdout)
    idle = [[[f"levels-{kind}", "available"], 1]]
    assert [row for row in before[COUNT] if row[1]] == idle
    assert "keyrot.call.attempts" not in before
    assert during["keyrot.call.attempts"] == [[[f"levels-{kind}"], 1]]
    assert [row for row in during[COUNT] if row[1]] == idle
    assert COUNT not in after
    assert after["keyrot.call.attempts"] == during["keyrot.call.attempts"]
    assert [row for row in again[COUNT] if row[1]] == [[["second", "available"], 1]]
    assert again["keyrot.state.degraded"] == [[["second"], 0]]
