"""The gauge of a pool's problems says what its alerts say."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest
from support.pool import Rig, key
from support.receivers import Events
from support.replies import MODEL, OK, bad, denied, expired, failure, minute, overloaded
from support.states import degrading

from keyrot_middleware.core.model import Candidate, Limits
from keyrot_middleware.monitoring import report
from keyrot_middleware.monitoring.alerts import Alerts, Receiver
from keyrot_middleware.monitoring.levels import Levels
from keyrot_middleware.telemetry.metrics import MetricsObserver

Problem = tuple[str, str | None, str | None]
"""The event, the key and the model."""
NAMES = ("keyrot.event", "keyrot.key.id", "gen_ai.request.model")


@pytest.fixture(autouse=True)
def each_look_is_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a pool here is not that by which a look serves for a second."""
    monkeypatch.setattr(report, "FRESH_S", -1.0)


class Measured:
    """A pool whose problems are reported by its alerts, and measured."""

    def __init__(self, *keys: Candidate) -> None:
        self.rig = Rig(*keys, strategy="fill", max_wait_s=0)
        self.events = Events()
        self.alerts = Alerts(self.rig.pool, [Receiver("test", self.events)])
        self.alerts.look_in = lambda _: None  # type: ignore[method-assign]

    def call(self, times: int = 1, *, sleep: float = 5) -> None:
        """Make calls, and report what has begun and ended."""
        for _ in range(times):
            with suppress(Exception):  # what calls raise is tested elsewhere
                self.rig.call()
            self.rig.clock.sleep(sleep)
        self.alerts.look()

    @property
    def reported(self) -> set[Problem]:
        """Return what the alerts have reported lately."""
        found = {(one.event, one.key_id, one.model) for one in self.events.all}
        self.events.take()
        return found

    @property
    def measured(self) -> set[Problem]:
        """Return what a process measures that has just begun."""
        return problems(Levels(self.rig.pool))

    @property
    def answers(self) -> list[str]:
        found = Levels(self.rig.pool).read("keyrot.call.answers")
        return [labels["keyrot.call.answer"] for _, labels in found]


def problems(levels: Levels) -> set[Problem]:
    found = list(levels.read("keyrot.pool.problems"))
    assert all(value == 1 and set(labels) <= set(NAMES) for value, labels in found)
    rows = [tuple(labels.get(name) for name in NAMES) for _, labels in found]
    assert len(set(rows)) == len(rows)
    return set(rows)  # type: ignore[arg-type]


GONE = failure(404, f"models/{MODEL} is not found for API version v1beta")
CASES: dict[str, tuple[Any, Any, str, Problem]] = {
    "a total outage": (overloaded(), None, "failing", ("model_failing", None, MODEL)),
    "a model that is gone": (GONE, None, "failing", ("model_failing", None, MODEL)),
    "a rejected key": (None, expired(), "served", ("key_rejected", "a", None)),
    "a project that is cut off": (None, denied(), "served", ("project_blocked", "a", None)),
    "most of the day is used": (None, None, "served", ("quota_80_percent", "a", MODEL)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gauge_says_what_the_alerts_say(case: str) -> None:
    """Each alone, from when it is reported until its end is; and the answer fits."""
    every_reply, first_reply, answer, problem = CASES[case]
    limits = Limits(rpd=5) if case == "most of the day is used" else Limits()
    pool = Measured(key("a", limits), key("b"))
    pool.call()
    assert (pool.reported, pool.measured, pool.answers) == (set(), set(), ["served"])
    pool.rig.default = every_reply or pool.rig.default
    pool.rig.will("a", *[first_reply] * (first_reply is not None))
    pool.call(3)
    assert pool.reported == pool.measured == {problem}
    assert pool.answers == [answer]


def test_it_ends_when_the_alert_reports_its_end() -> None:
    """A model that fails, after good calls for as long; the same without any alerts."""
    pool = Measured(key("a"), key("b"))
    levels = Levels(pool.rig.pool)
    pool.rig.default = overloaded()
    pool.call(12)
    pool.rig.default = OK
    assert pool.reported == problems(levels) == {("model_failing", None, MODEL)}
    on = []
    for _ in range(30):
        pool.call(sleep=10)
        on.append(bool(pool.measured))
        assert bool(problems(levels)) is on[-1]
        assert pool.reported == (set() if on[-1] or not all(on[:-1]) else {RECOVERED})
    assert on[0]
    assert not on[-1]


RECOVERED = ("model_recovered", None, MODEL)


def test_what_has_begun_goes_on_without_alerts() -> None:
    """A minute is over by itself; what it did to calls goes on for as long as it had lasted."""
    pool = Measured(key("a"))
    pool.alerts.look = lambda: None  # type: ignore[method-assign]
    levels, found = Levels(pool.rig.pool), {("pool_exhausted", None, MODEL)}
    pool.rig.default = minute()
    pool.call(2)
    assert (pool.answers, problems(levels)) == (["no"], found)
    pool.rig.clock.sleep(60)
    assert (pool.answers, problems(levels)) == (["served"], found)
    pool.rig.default = OK
    pool.call(12, sleep=60)
    assert (pool.answers, problems(levels)) == (["served"], set())


def test_a_model_that_fails_goes_on_failing_without_a_key() -> None:
    """The answer is *no* then; the gauge still has both, as the alerts have."""
    pool = Measured(key("a"))
    pool.rig.default = overloaded()
    pool.call(3)
    assert pool.reported == pool.measured == {("model_failing", None, MODEL)}
    pool.rig.default = expired()
    pool.call(2)
    assert pool.answers == ["no"]
    found = {("key_rejected", "a", None), ("pool_exhausted", None, MODEL)}
    assert pool.reported == found
    assert pool.measured == {("model_failing", None, MODEL), *found}


def test_what_is_no_alarm_is_no_problem() -> None:
    """Requests that are refused, each by its own fault; a minute that no call was too many for."""
    pool = Measured(key("a", Limits(rpm=9)))
    pool.rig.will("a", *[bad()] * 4)
    pool.call(4)
    assert (pool.reported, pool.measured, pool.answers) == (set(), set(), ["refused"])
    pool.call(5, sleep=0)
    assert (pool.reported, pool.measured, pool.answers) == (set(), set(), ["no"])


def test_without_the_shared_state_what_was_the_matter_goes_on() -> None:
    pool = Measured(key("a"), key("b"))
    levels, found = Levels(pool.rig.pool), {("key_rejected", "a", None)}
    pool.rig.pool.state, shared = degrading(pool.rig.clock.time, inner=pool.rig.state)
    pool.rig.will("a", expired())
    pool.call()
    assert problems(levels) == pool.reported == found
    shared.cut()
    pool.call()
    assert pool.reported == {LOST}
    assert problems(levels) == found | {LOST}


LOST = ("state_degraded", None, None)


def test_a_scrape_has_a_series_while_it_lasts() -> None:
    """In the text that the exporter serves; then the series is gone, and its rule with it."""
    pool, provider = Measured(key("a"), key("b")), MeterProvider([PrometheusMetricReader()])
    observer = MetricsObserver("scraped", provider)
    observer.register_gauges(Levels(pool.rig.pool).read)

    def scraped() -> list[set[str]]:
        lines = re.findall(r"^keyrot_pool_problems\{(.*)\} 1\.0$", text(), re.MULTILINE)
        return [{*re.findall(r'keyrot_(?:event|key_id|pool_name)="[^"]+"', one)} for one in lines]

    def text() -> str:
        return generate_latest().decode()

    try:
        assert scraped() == []
        pool.rig.will("a", expired())
        pool.call()
        names = {'keyrot_event="key_rejected"', 'keyrot_key_id="a"', 'keyrot_pool_name="scraped"'}
        assert scraped() == [names]
        pool.rig.pool.reset("a")
        pool.call()
        assert "keyrot_key_count{" in text()
        assert scraped() == []
    finally:
        observer.unregister_gauges()
        provider.shutdown()
