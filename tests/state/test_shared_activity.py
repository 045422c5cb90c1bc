"""A page shows the calls of all processes that share a state."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.redis_state import opened
from support.servers import Server

from keyrot_middleware.core.activity import (
    CALLS_KEPT,
    DAY,
    HOUR,
    POOL,
    Attempt,
    CallRecord,
    project_entry,
)
from keyrot_middleware.core.model import Usage
from keyrot_middleware.runtime.activity import Activity

NOW = 1_764_158_400.0


def call(at: float, key_id: str, failure: str | None = None) -> CallRecord:
    """Make a call of one attempt."""
    attempts = (Attempt(key_id, failure, 429 if failure else None, 0.25),)
    return CallRecord(at, "m", 0.5, "ok", attempts, Usage(7, 3, cost_usd=0.001), True)


@pytest.mark.parametrize("place", ["server", "file"])
def test_two_processes_add_to_one_history(valkey: Server, place: str, tmp_path: Path) -> None:
    """Counts, waits, usage and calls are the sums of both."""
    url = valkey.url if place == "server" else f"sqlite://{tmp_path}/state.sqlite3"
    with opened(url) as one, opened(url) as other:
        first, second = Activity(one, time.time), Activity(other, time.time)
        first.add(call(NOW - 60, "a", "quota_minute"))
        second.add(call(NOW, "a"))
        second.add(call(NOW, "b"))
        second.send()
        view = first.view(["a", "b", "never"], NOW)
        assert view.histories["a"].requests[-2:] == [1, 1]
        assert view.histories["a"].failures[-2:] == [1, 0]
        assert sum(view.histories[POOL].requests) == 3
        assert (sum(view.histories[POOL].waits), view.today[POOL].input_tokens) == (3, 21)
        assert view.today["b"].cost_usd == 0.001
        assert "never" not in view.histories
        assert sorted(a.key_id for c in view.calls for a in c.attempts) == ["a", "a", "b"]


@pytest.mark.parametrize("place", ["server", "file"])
def test_the_use_of_a_day_is_that_of_all_processes(
    valkey: Server, place: str, tmp_path: Path
) -> None:
    """By pool, key, project, model and workload; and the failures of a key."""
    url = valkey.url if place == "server" else f"sqlite://{tmp_path}/state.sqlite3"
    with opened(url) as one, opened(url) as other:
        first, second = Activity(one, time.time), Activity(other, time.time)
        failed = Attempt("a", "quota_minute", 429, 0.25, "p")
        first.add(call(NOW - 7_200, "a")._replace(workload="night", attempts=(failed,)))
        second.add(call(NOW, "b")._replace(workload="night", outcome="failed"))
        second.send()
        pool = first.history(POOL, DAY, NOW)
        assert [sum(counts) for counts in pool] == [2, 1, 1, 2, 1, 2, 14, 6, 2_000_000]
        assert (len(pool.calls), pool.calls[-1], pool.calls[-13]) == (144, 1, 1)
        assert sum(first.history(POOL, HOUR, NOW).calls) == 1
        for entry in ("a", project_entry("p")):
            assert sum(first.history(entry, DAY, NOW).refused) == 1
        assert first.shares("workload", DAY, NOW) == {"night": [2, 1, 1, 2, 1, 2, 14, 6, 2_000_000]}
        assert first.shares("model", HOUR, NOW) == {"m": [1, 0, 0, 1, 1, 1, 7, 3, 1_000_000]}
        assert [one.at for one in second.failures("a")] == [NOW - 7_200]
        assert second.failures("b") == []


def test_activity_records_in_redis_expire(valkey: Server) -> None:
    """Each record has a time to live, and the list of calls a length."""
    with opened(valkey.url) as state:
        activity = Activity(state, time.time)
        for _ in range(2):
            for number in range(CALLS_KEPT):
                activity.add(call(NOW + number, "a"))
            activity.send()
        activity.add(call(NOW, "a", "quota_minute"))
        activity.send()
        kinds = ("minute", "slot", "day", "calls", "failures")
        kept = [name for name in valkey.names() if name.split("}:")[-1].startswith(kinds)]
        assert len(kept) >= 5
        assert all(int(valkey.execute("TTL", name)) > 0 for name in kept)
        assert len(activity.view([], NOW).calls) == CALLS_KEPT


def test_an_outage_leaves_the_activity_empty(valkey: Server) -> None:
    """Nothing is raised, and nothing is kept for later."""
    with opened(valkey.url) as state:
        activity = Activity(state, time.time)
        valkey.stop()
        activity.add(call(time.time(), "a"))
        activity.send()
        assert activity.view(["a"], NOW).calls == []


def test_a_failure_of_the_activity_does_not_degrade_the_pool(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without its commands, or a record of another type: limits stay shared; one warning."""
    with opened(valkey.url) as state:
        activity = Activity(state, time.time)
        activity.add(call(NOW, "a"))
        activity.send()
        (calls,) = (name for name in valkey.names() if name.endswith(":calls"))
        valkey.execute("SET", calls, "something else")
        for _ in range(3):
            activity.add(call(NOW, "a"))
            activity.send()
            assert activity.view(["a"], NOW).calls == []
            assert not state.degraded
    (warning,) = (r.message for r in caplog.records if r.levelname == "WARNING")
    assert "limits are not affected" in warning


def test_calls_that_waited_are_shown_as_such(valkey: Server) -> None:
    """Also where another process made them."""
    with opened(valkey.url) as state:
        activity = Activity(state, time.time)
        activity.add(call(NOW, "a"))
        activity.add(call(NOW, "a")._replace(waited=False))
        assert [c.waited for c in activity.view([], NOW).calls] == [False, True]


def test_a_call_that_cannot_be_read_is_not_shown(valkey: Server) -> None:
    """Something else wrote into the list."""
    with opened(valkey.url) as state:
        activity = Activity(state, time.time)
        activity.add(call(NOW, "a"))
        activity.send()
        (calls,) = (name for name in valkey.names() if name.endswith(":calls"))
        for garbage in ("no json", "[]", '[1,"m",1,"odd",[]]', '[1,"m",NaN,"ok",[]]'):
            valkey.execute("LPUSH", calls, garbage)
        view = activity.view(["a"], NOW)
        assert [a.key_id for c in view.calls for a in c.attempts] == ["a"]
