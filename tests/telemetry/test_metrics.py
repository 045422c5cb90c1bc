"""The metrics of a call, as an SDK with a reader sees them."""

from typing import Any

import pytest
from opentelemetry import context
from support.otel import RecordedMetrics
from support.pool import INFO, Rig, key
from support.replies import invalid
from support.scripted_pool import STREAMED, Chunks, ScriptedPool, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.judgement import KEY_STATES
from keyrot_middleware.core.model import Candidate, Limits
from keyrot_middleware.monitoring.levels import Levels

INFERENCE = "opentelemetry.genai.client.inference.context"
DURATION = "gen_ai.client.operation.duration"
ATTEMPT = "keyrot.attempt.duration"


@pytest.fixture
def metered() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_call_that_changes_its_key(metered: RecordedMetrics, way: str) -> None:
    """Each send is counted with its key and failure; the call as a success."""
    scripted = ScriptedPool([metered.observer], script={"flash_01": [minute(9)]})
    scripted.all_modes()[way]()
    by = metered.by
    assert by(ATTEMPT, "keyrot.key.id", "error.type", "keyrot.failure.class") == {
        ("flash_01", "429", "quota_minute"): 1,
        # All keys of one project cool down: the next one is of another.
        ("pro_01", None, None): 1,
    }
    assert by(ATTEMPT, "keyrot.pool.name", "gen_ai.request.model") == {
        ("test", "gemini-3.1-flash-lite"): 2
    }
    assert [(p.attributes, p.value) for p in metered.points("keyrot.call.attempts")] == [
        ({"keyrot.pool.name": "test"}, 2)
    ]
    assert by("keyrot.key.cooldowns", "keyrot.key.id", "keyrot.failure.class") == {
        ("flash_01", "quota_minute"): 1
    }
    tokens = by("keyrot.key.tokens", "keyrot.key.id", "gen_ai.token.type")
    assert tokens == {("pro_01", "input"): 12, ("pro_01", "output"): 30}
    assert by("keyrot.key.wait_time", "keyrot.pool.name") == {"test": 2}
    assert by("keyrot.key.timeouts", "keyrot.pool.name") == {"test": 0}


def test_the_metrics_of_the_conventions(metered: RecordedMetrics) -> None:
    """Duration and tokens of the whole call have the attributes that the conventions name."""
    ScriptedPool([metered.observer], script={"flash_01": [minute(9)]}).run()
    called = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-3.1-flash-lite",
        "gen_ai.response.model": "gemini-2.5-flash-001",
        "server.address": "gemini.test",
        "server.port": 8443,
        "keyrot.pool.name": "test",
    }
    assert [(p.attributes, p.count) for p in metered.points(DURATION)] == [(called, 1)]
    usage = {p.attributes.pop("gen_ai.token.type"): p for p in metered.points(TOKENS)}
    assert {kind: point.value for kind, point in usage.items()} == {"input": 12, "output": 30}
    assert usage["input"].attributes == called
    assert metered.points("gen_ai.client.operation.time_to_first_chunk") == []


TOKENS = "gen_ai.client.token.usage"


def test_a_call_that_fails(metered: RecordedMetrics) -> None:
    """One key will come back: a 429. Usage without a value in the response is not counted."""
    script = {"a1": [minute(9_000)], "b1": [invalid()]}
    scripted = ScriptedPool([metered.observer], keys=("a1", "b1"), script=script)
    with pytest.raises(Exhausted):
        scripted.run()
    assert metered.by(DURATION, "error.type") == {"429": 1}
    assert metered.by("keyrot.call.attempts", "error.type") == {"429": 1}
    assert metered.by(ATTEMPT, "error.type") == {"429": 1, "400": 1}
    assert metered.by("keyrot.key.cooldowns", "keyrot.key.id") == {"a1": 1, "b1": 1}
    assert metered.points(TOKENS) == metered.points("keyrot.key.tokens") == []


def test_under_the_official_instrumentation(metered: RecordedMetrics) -> None:
    """What it measures itself we do not."""
    token = context.attach(context.set_value(INFERENCE, object()))
    try:
        ScriptedPool([metered.observer]).run()
        list(ScriptedPool([metered.observer], script={"flash_01": [Chunks(2)]}).stream(STREAMED))
    finally:
        context.detach(token)
    assert {name for name in metered.collect() if name.startswith("gen_ai.")} == set()
    assert metered.by(ATTEMPT, "error.type") == {None: 2}


COUNT = "keyrot.key.count"
USED = "keyrot.key.quota.used_ratio"


class RecordedGauges(RecordedMetrics):
    def __init__(self, **script: Any) -> None:
        super().__init__()
        keys = ("a_limited", "b_bad", "c_busy", "d_idle")
        self.scripted = ScriptedPool([self.observer], keys=keys, script=script)
        self.observer.register_gauges(self._levels)

    def _levels(self, metric: str) -> Any:
        """Look anew at each collection: its clock is not that of a look."""
        return Levels(self.scripted.pool).read(metric)

    @property
    def states(self) -> Any:
        """Count the keys by their state."""
        return self.by(COUNT, "keyrot.key.state")

    def limit(self, key_id: str, limits: Limits) -> None:
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
        ("a_limited", "gemini-3.1-flash-lite", "rpm"): 0.1,
        ("a_limited", "gemini-3.1-flash-lite", "tpm"): 0.25,
        ("a_limited", "gemini-3.1-flash-lite", "rpd"): 0.01,
    }
    assert gauges.by(USED, *names) == share


def test_the_old_name_of_a_model_has_the_shares_of_the_one_that_answers() -> None:
    """They count in one limit: now, and in the fullest minute of today."""
    rig, metered = Rig(key("a", Limits(rpm=10, rpd=100))), RecordedMetrics()
    metered.observer.register_gauges(lambda metric: Levels(rig.pool).read(metric))
    old, new = "gemini-2.5-flash", "gemini-3.5-flash-lite"
    for model in (old, new, old, new):
        rig.call(INFO._replace(model=model))
    rig.clock.advance(120)
    rig.call(INFO._replace(model=new))
    names = ("gen_ai.request.model", "keyrot.quota")
    used, peak = (metered.by(name, *names) for name in (USED, "keyrot.key.quota.peak_ratio"))
    for model in (old, new):
        assert (used[model, "rpm"], used[model, "rpd"], peak[model, "rpm"]) == (0.1, 0.05, 0.4)


def test_degraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 while this process counts alone, 0 else."""
    gauges = RecordedGauges()
    assert gauges.by("keyrot.state.degraded", "keyrot.pool.name") == {"test": 0}
    assert gauges.by("keyrot.key.pending_requests", "keyrot.pool.name") == {"test": 0}
    monkeypatch.setattr(type(gauges.scripted.pool.state), "degraded", True)
    assert gauges.by("keyrot.state.degraded", "keyrot.pool.name") == {"test": 1}
