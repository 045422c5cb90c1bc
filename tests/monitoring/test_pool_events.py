"""The events of a pool, once each, and their messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.receivers import Events
from support.replies import day, invalid, minute
from support.servers import server

from keyrot_middleware.core.model import (
    Block,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Verdict,
)
from keyrot_middleware.core.text import utc
from keyrot_middleware.monitoring import alerts
from keyrot_middleware.monitoring.alerts import REPEAT_S, AlertWatcher
from keyrot_middleware.state import open_shared
from keyrot_middleware.state.memory import MemoryState

MODEL = INFO.model


class WatchedPool:
    """A rig's pool with a watcher that checks when the test asks for it."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.events = rig, Events()
        self.watcher = AlertWatcher(rig.pool, [self.events])  # type: ignore[list-item]  # its put()
        rig.pool.event_listeners = (self.watcher,)

    def look(self) -> list[tuple[str, str | None]]:
        """Report what calls noticed, check the pool, and return the new events."""
        self.watcher.report_noticed()
        self.watcher.look()
        return self.events.take()

    def reject(self, key_id: str) -> None:
        """Settle a lease of a key as another process would: no listener is called."""
        verdict = Verdict(
            "key_invalid", 400, Scope.KEY, until=self.rig.time() + 3600, rejected=True
        )
        state = self.rig.pool.state
        lease = state.acquire(INFO, ((0, self.rig.selector.keys[key_id]),), spread=False)
        assert isinstance(lease, Lease)
        state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))


def watched(*keys: Any, **policy: Any) -> WatchedPool:
    """Watch a pool of *keys*, which are used in this order."""
    return WatchedPool(Rig(*keys, **{"strategy": "fill", "max_wait_s": 0, **policy}))


def test_a_working_pool_has_no_events() -> None:
    """Calls succeed; no event is reported."""
    pool = watched(key("a"), key("b"))
    pool.rig.call()
    assert pool.look() == []


def test_a_rejected_key_is_reported_once() -> None:
    """With its reason, when it is tried again, and a sentence without its value."""
    pool = watched(key("a"), key("b"))
    pool.rig.will("a", invalid())
    pool.rig.call()
    pool.watcher.report_noticed()
    (event,) = pool.events.all
    assert (event.event, event.pool, event.key_id, event.reason) == (
        "key_rejected",
        "test",
        "a",
        "key_invalid",
    )
    assert event.sentence == ("pool test: Google rejects key a (key_invalid); replace its value.")
    assert event.at == utc(pool.rig.time())
    assert event.available_at is not None
    assert event.available_at > event.at
    assert pool.look() == [("key_rejected", "a")]
    assert pool.look() == []


def test_a_key_that_another_process_found_rejected_is_reported() -> None:
    """A check finds it, though no call of this process did."""
    pool = watched(key("a"), key("b"))
    pool.look()
    pool.reject("a")
    assert pool.look() == [("key_rejected", "a")]
    assert pool.look() == []


def test_a_rejected_key_that_is_available_again_is_reported_once() -> None:
    """After a reset, at the next check, when calls can use it."""
    pool = watched(key("a"), key("b"))
    pool.rig.will("a", invalid())
    pool.rig.call()
    assert pool.look() == [("key_rejected", "a")]
    pool.rig.pool.reset("a")
    assert pool.look() == [("key_available_again", "a")]
    assert pool.look() == []


def test_a_key_that_cools_down_for_a_while_is_no_event() -> None:
    """A full minute is normal: only quotas and exhaustion are reported."""
    pool = watched(key("a"), key("b"))
    pool.rig.will("a", minute("20s"))
    pool.rig.call()
    assert pool.look() == []
    pool.rig.clock.sleep(61)
    assert pool.look() == []


def test_an_event_repeated_within_ten_minutes_is_reported_later_if_it_lasts() -> None:
    """Rejected, reset, rejected again: the second message comes when ten minutes are over."""
    pool = watched(key("a"), key("b"))
    pool.reject("a")
    assert pool.look() == [("key_rejected", "a")]
    pool.rig.pool.reset("a")
    assert pool.look() == [("key_available_again", "a")]
    for _ in range(10):
        pool.rig.clock.sleep(10)
        assert pool.look() == []
    pool.reject("a")
    assert pool.look() == []
    pool.rig.clock.sleep(REPEAT_S - 110)
    assert pool.look() == []
    pool.rig.clock.sleep(20)
    assert pool.look() == [("key_rejected", "a")]
    assert pool.look() == []


def test_an_event_that_ends_within_ten_minutes_is_not_reported_again() -> None:
    """A key that is rejected twice and reset twice in ten minutes: one message of each kind."""
    pool = watched(key("a"), key("b"))
    found = []
    for _ in range(2):
        pool.rig.clock.sleep(60)
        pool.look()
        pool.reject("a")
        found += pool.look()
        pool.rig.pool.reset("a")
        found += pool.look()
    pool.rig.clock.sleep(2 * REPEAT_S)
    found += pool.look()
    assert found == [("key_rejected", "a"), ("key_available_again", "a")]


def test_an_exhausted_pool_is_reported_once_in_ten_minutes() -> None:
    """However many calls find no key; with the time of the first one."""
    pool = watched(key("a", Limits(rpd=1)), key("b", Limits(rpd=1)))
    pool.look()
    for _ in range(2):
        pool.rig.call()
    for _ in range(20):
        pool.rig.failing()
    pool.watcher.report_noticed()
    (event,) = pool.events.all
    assert (event.event, event.key_id, event.reason) == ("pool_exhausted", None, "rpd")
    assert event.sentence.startswith(f"pool test: no key is available for {MODEL} until 2")
    assert event.available_at is not None
    pool.look()
    pool.rig.clock.sleep(REPEAT_S / 2)
    pool.rig.failing()
    assert pool.look() == []
    pool.rig.clock.sleep(REPEAT_S / 2 + 1)
    pool.rig.failing()
    assert pool.look() == [("pool_exhausted", None)]


def test_the_first_key_after_an_exhausted_pool_is_reported() -> None:
    """It reports that calls succeed again; the others add nothing."""
    pool = watched(key("a"), key("b"))
    for key_id in ("a", "b"):
        pool.rig.will(key_id, day())
    pool.rig.failing()
    pool.rig.failing()
    assert pool.look() == [("pool_exhausted", None)]
    pool.rig.clock.sleep(timedelta(days=1).total_seconds() + 60)
    assert pool.look() == [("key_available_again", "a")]
    assert pool.look() == []


def test_a_quota_of_80_percent_is_reported_once() -> None:
    """At the eighth of ten requests a day, not at the seventh."""
    pool = watched(key("a", Limits(rpd=10)))
    for _ in range(7):
        pool.rig.call()
    assert pool.look() == []
    pool.rig.call()
    pool.watcher.look()
    (event,) = pool.events.all
    assert (event.event, event.key_id, event.reason) == ("quota_80_percent", "a", "rpd")
    assert event.sentence == (
        f"pool test: key a has used 80% of its requests per day (RPD) for {MODEL}."
    )
    pool.rig.call()
    assert pool.look() == [("quota_80_percent", "a")]
    assert pool.look() == []


def test_windows_that_fill_up_together_are_one_event() -> None:
    """One message names all windows of a key."""
    pool = watched(key("a", Limits(rpm=5, rpd=5)))
    for _ in range(4):
        pool.rig.call()
    pool.watcher.look()
    (event,) = pool.events.all
    assert "80% of its requests per day (RPD)" in event.sentence
    assert "80% of its requests per minute (RPM)" in event.sentence


def test_keys_of_one_project_share_a_quota_and_its_event() -> None:
    """The first key of the project represents it."""
    limits = Limits(rpd=5)
    pool = watched(key("a", limits, project="p"), key("b", limits, project="p"))
    for _ in range(4):
        pool.rig.call()
    assert pool.look() == [("quota_80_percent", "a")]


def test_a_minute_that_fills_up_again_is_reported_once_in_ten_minutes() -> None:
    """Each minute crosses 80 % again."""
    pool = watched(key("a", Limits(rpm=5)))
    found = []
    for _ in range(5):
        for _ in range(4):
            pool.rig.call()
        found += pool.look()
        pool.rig.clock.sleep(61)
        found += pool.look()
    assert found == [("quota_80_percent", "a")]


def test_a_daily_limit_is_reported_though_a_minute_was_before() -> None:
    """It waits until the ten minutes are over, and is not forgotten."""
    pool = watched(key("a", Limits(rpm=5, rpd=10)))
    found = []
    for _ in range(2):
        for _ in range(4):
            pool.rig.call()
        found += pool.look()
        pool.rig.clock.sleep(61)
        found += pool.look()
    assert found == [("quota_80_percent", "a")]
    pool.rig.clock.sleep(REPEAT_S)
    pool.watcher.look()
    assert [(event.event, event.reason) for event in pool.events.all] == [
        ("quota_80_percent", "rpd")
    ]


class Shared(MemoryState):
    """A state that a test can cut off."""

    down = False

    @property
    def degraded(self) -> bool:
        """Whether it is cut off."""
        return self.down


def test_a_degraded_state_is_reported_and_its_recovery() -> None:
    """Once each; rejections by other processes are not checked meanwhile."""
    pool = watched(key("a"), key("b"))
    state = pool.rig.pool.state = Shared(RetryPolicy(), pool.rig.time)
    pool.reject("a")
    assert pool.look() == [("key_rejected", "a")]
    state.down = True
    assert pool.look() == [("state_degraded", None)]
    pool.rig.pool.reset("a")
    assert pool.look() == []
    state.down = False
    assert pool.look() == [("state_recovered", None), ("key_available_again", "a")]
    pool.rig.clock.sleep(60)
    assert pool.look() == []
    state.down = True
    assert pool.look() == []
    pool.rig.clock.sleep(REPEAT_S)
    assert pool.look() == [("state_degraded", None)]


def test_an_exhausted_budget_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the keys of a project, with the time when they are available again."""
    pool = watched(key("a", project="p"), key("b", project="p"), key("c"))
    until = pool.rig.time() + 3600
    blocks = {"a": Block("usd", until), "b": Block("usd", until)}
    monkeypatch.setattr(pool.rig.pool.state, "get_blocks", lambda *_: blocks)
    pool.watcher.look()
    (event,) = pool.events.all
    assert (event.event, event.key_id, event.reason) == ("budget_reached", "a", "usd")
    assert event.available_at == utc(until)
    assert "the budget of the project of key a is spent until " in event.sentence
    assert pool.look() == [("budget_reached", "a")]


def test_names_cannot_break_a_line() -> None:
    """A model name with control characters stays in one line."""
    pool = watched(key("a", Limits(rpd=1)))
    info = INFO._replace(model="evil\n\x1b[31mmodel")
    pool.rig.call(info)
    pool.rig.failing(info)
    pool.look()
    pool.rig.clock.sleep(REPEAT_S + 1)
    pool.rig.failing(info)
    pool.watcher.report_noticed()
    assert [event.sentence.isprintable() for event in pool.events.all] == [True]


@pytest.mark.parametrize("model", ["@everyone", "<!channel>", "<img src=x>", "[x](http://h)"])
def test_a_model_name_cannot_address_a_channel(model: str) -> None:
    """A program may let its users choose the model; a receiver may read markup in its name."""
    pool = watched(key("a", Limits(rpd=1)))
    info = INFO._replace(model=model)
    pool.rig.call(info)
    pool.rig.failing(info)
    pool.watcher.report_noticed()
    (event,) = pool.events.all
    assert model not in event.sentence
    assert "for a model with an unusual name" in event.sentence


def test_the_events_of_calls_are_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the maximum the oldest are dropped, and this is logged once."""
    monkeypatch.setattr(alerts, "NOTICED_MAX", 5)
    pool = watched(*(key(f"k{number}") for number in range(9)), key("last"))
    for number in range(9):
        pool.rig.will(f"k{number}", invalid())
    pool.rig.call()
    pool.watcher.report_noticed()
    assert pool.events.take() == [("key_rejected", f"k{number}") for number in range(4, 9)]
    assert sum("the oldest are dropped" in text for text in caplog.messages) == 1
    assert len(pool.look()) == 4


def test_processes_with_one_redis_report_once() -> None:
    """Two pools over one server: each event of a key comes from one of them, also its recovery."""
    url, pools = server("valkey").url, []
    for _ in range(2):
        pool = watched(key("a"), key("b"))
        state = open_shared(url, RetryPolicy(), pool.rig.time, pool="pool-events")
        assert state is not None
        pool.rig.pool.state = state
        pool.watcher = AlertWatcher(pool.rig.pool, [pool.events])  # type: ignore[list-item]
        pools.append(pool)
    one, other = pools
    assert one.look() + other.look() == []
    one.reject("a")
    assert one.look() + other.look() == [("key_rejected", "a")]
    one.rig.pool.reset("a")
    assert other.look() + one.look() == [("key_available_again", "a")]
    one.reject("b")
    late = watched(key("a"), key("b"))
    late.rig.pool.state = one.rig.pool.state
    late.watcher = AlertWatcher(late.rig.pool, [late.events])  # type: ignore[list-item]
    assert late.look() == []  # events from before its start are not reported
    for pool in pools:
        pool.rig.pool.state.close()
