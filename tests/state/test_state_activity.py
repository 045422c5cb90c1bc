"""A page shows the calls of all processes that share a state, of programs that end at once too."""

import os
import time
from collections.abc import Iterator

import pytest
from support.forks import run_fork
from support.servers import Server
from support.states import opened

from keyrot_middleware.core.activity import (
    DAY,
    HOUR,
    POOL,
    Attempt,
    CallRecord,
    project_entry,
)
from keyrot_middleware.core.model import Usage
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder
from keyrot_middleware.testing import FakeGemini

NOW = 1_764_158_400.0


def call(at: float, key_id: str, failure: str | None = None, **more: object) -> CallRecord:
    attempts = (Attempt(key_id, failure, 429 if failure else None, 0.25, "p"),)
    made = CallRecord(at, "m", 0.5, "ok", attempts, Usage(7, 3, cost_usd=0.001), True)
    return made._replace(**more)


def test_two_processes_add_to_one_history(url: str) -> None:
    """Sums of both: counts, waits, usage and calls, by pool, key, project, model and workload."""
    with opened(url) as one, opened(url) as other:
        first, second = ActivityRecorder(one, time.time), ActivityRecorder(other, time.time)
        first.add(call(NOW - 7_200, "a", "quota_minute", workload="night"))
        second.add(call(NOW, "b", workload="night", outcome="failed", waited=False))
        second.send()
        view = first.read().view(["a", "b", "never"], NOW)
        assert sum(view.histories[POOL].requests) == 1  # of the last hour
        assert view.today["b"].cost_usd == 0.001
        assert "never" not in view.histories
        assert [[a.key_id for a in c.attempts] for c in view.calls] == [["a"], ["b"]]
        assert [c.waited for c in view.calls] == [True, False]
        pool = first.read().history(POOL, DAY, NOW)
        sums = [2, 1, 1, 2, 1, 1, 14, 6, 2_000_000, 0, 0, 0]
        assert [sum(counts) for counts in pool] == sums
        assert (len(pool.calls), pool.calls[-1], pool.calls[-13]) == (144, 1, 1)
        assert sum(first.read().history(POOL, HOUR, NOW).calls) == 1
        for entry in ("a", project_entry("p")):
            assert sum(first.read().history(entry, DAY, NOW).refused) == 1
        assert first.read().shares("workload", DAY, NOW) == {"night": sums}
        assert first.read().shares("model", HOUR, NOW) == {
            "m": [1, 0, 0, 1, 1, 0, 7, 3, 1_000_000, 0, 0, 0]
        }
        assert [one.at for one in second.read().failures("a")] == [NOW - 7_200]
        assert second.read().failures("b") == []


def test_a_text_that_is_no_call_is_not_shown(valkey: Server) -> None:
    """Whatever else is in the list of calls."""
    with opened(valkey.url) as state:
        activity = ActivityRecorder(state, time.time)
        activity.add(call(NOW, "a"))
        activity.send()
        (calls,) = (name for name in valkey.names() if name.endswith(":calls"))
        for garbage in ("no json", "[]", '[1,"m",1,"odd",[]]', '[1,"m",NaN,"ok",[]]'):
            valkey.execute("LPUSH", calls, garbage)
        view = activity.read().view(["a"], NOW)
        assert [a.key_id for c in view.calls for a in c.attempts] == ["a"]


# Programs that end at once ---------------------------------------------------------------------

CALL = "client.post(PATH, json=BODY).raise_for_status()\n"
BEGIN = """\
import sys
import httpx
import keyrot_middleware
keyrot_middleware.install()
PATH = "/v1beta/models/gemini-3.1-flash-lite:generateContent"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
client = httpx.Client(
    base_url=sys.argv[1], headers={"x-goog-api-key": "keyrot-pool"}, trust_env=False
)
"""


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        running.add_key("key_1", tier="paid")
        yield running


@pytest.fixture
def environment(gemini: FakeGemini) -> dict[str, str]:
    value = gemini.key("key_1").value
    return {**os.environ, "GEMINI_API_KEYS": value, "KEYROT_ALLOWED_HOSTS": gemini.host}


def calls_in(url: str, *, is_priced: bool = False) -> int:
    with opened(url, pool="default") as state:
        view = ActivityRecorder(state, time.time).read().view(["key_1"], time.time())
        if is_priced:
            assert view.today["key_1"].cost_usd == view.today[POOL].cost_usd > 0
        assert sum(view.histories[POOL].calls) == sum(view.histories["key_1"].requests)
        return len(view.calls)


def test_the_calls_of_short_programs_are_counted(
    url: str, gemini: FakeGemini, environment: dict[str, str]
) -> None:
    """Each sends two calls and ends, which takes less than the second between two reports."""
    for _ in range(2):  # one after the other: two programs at once take longer than a second
        run_fork(BEGIN + 2 * CALL, gemini.url, environ={**environment, "KEYROT_STATE_URL": url})
    assert gemini.count("key_1") == 4
    assert calls_in(url) == 4
