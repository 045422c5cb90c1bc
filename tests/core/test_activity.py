"""The activity of the last hour and day, and its bounded size."""

from __future__ import annotations

import tracemalloc

import pytest

from keyrot_middleware.core.activity import (
    CALLS_KEPT,
    MINUTES,
    POOL,
    ActivityBatch,
    ActivityLog,
    Attempt,
    CallRecord,
    dump_call,
    load_call,
)
from keyrot_middleware.core.model import NO_USAGE, Usage

NOW = 1_764_158_400.0  # 2025-11-26 12:00:00 UTC
USAGE = Usage(input_tokens=10, output_tokens=5, cost_usd=0.000_002_5)


def call(at: float, *attempts: tuple[str, str | None], **more: object) -> CallRecord:
    """Make a call with one attempt for each pair of key id and failure."""
    made = tuple(Attempt(key, failure, 429 if failure else None, 0.1) for key, failure in attempts)
    fields = {"usage": USAGE, "waited": False} | more
    return CallRecord(at, "m", 0.2, "ok", made, **fields)  # type: ignore[arg-type]


def test_requests_and_failures_are_counted_per_key_and_minute() -> None:
    """The last of sixty minutes is the current one; the sums are under the pool's name."""
    log = ActivityLog()
    log.add(call(NOW - 60, ("a", "quota_minute"), ("b", None)))
    log.add(call(NOW, ("b", None)))
    view = log.view(["a", "b", "never"], NOW)
    assert view.histories["a"].requests[-2:] == [1, 0]
    assert view.histories["a"].failures[-2:] == [1, 0]
    assert view.histories["b"].requests[-2:] == [1, 1]
    assert view.histories[POOL].requests[-2:] == [2, 1]
    assert "never" not in view.histories
    assert len(view.histories["a"].requests) == MINUTES


def test_minutes_of_more_than_an_hour_ago_are_dropped() -> None:
    """Waits as well as requests are dropped."""
    log = ActivityLog()
    log.add(call(NOW, ("a", None), waited=True))
    log.add(call(NOW + 3600, ("a", None), waited=True))
    view = log.view(["a"], NOW + 3600)
    assert sum(view.histories["a"].requests) == 1
    assert view.waits == 1


def test_history_starts_again_where_the_clock_steps_back() -> None:
    """Minutes that are in the future now do not block the counting of the present."""
    log = ActivityLog()
    log.add(call(NOW + 86_400, ("a", None)))
    log.add(call(NOW, ("a", None)))
    assert sum(log.view(["a"], NOW).histories["a"].requests) == 1


def test_a_small_step_back_of_the_clock_moves_no_request_to_another_minute() -> None:
    """Requests of minutes that are in the future now are not shown as those of an hour ago."""
    log = ActivityLog()
    log.add(call(NOW, ("a", None)))
    log.add(call(NOW - 600, ("a", "timeout")))
    view = log.view(["a"], NOW - 600)
    assert list(view.histories["a"].requests) == [0] * (MINUTES - 1) + [1]
    assert sum(view.histories["a"].failures) == 1
    assert sum(log.view(["a"], NOW).histories["a"].requests) == 2


def test_a_key_takes_less_than_a_kilobyte() -> None:
    """In a process with ten thousand keys, all in use."""
    log = ActivityLog()
    log.add(call(NOW, ("first", None)))
    tracemalloc.start()
    for number in range(1_000):
        log.add(call(NOW, (f"k{number}", None)))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used / 1_000 < 1_000


def test_usage_is_summed_for_the_pacific_day() -> None:
    """It belongs to the key that served; at midnight Pacific time it starts from zero."""
    log = ActivityLog()
    log.add(call(NOW, ("a", "quota_minute"), ("b", None)))
    log.add(call(NOW, ("b", None)))
    log.add(call(NOW, ("b", "timeout"), usage=NO_USAGE))
    log.add(call(NOW, usage=NO_USAGE))
    today = log.view(["a", "b"], NOW).today
    assert (today["b"].input_tokens, today["b"].output_tokens) == (20, 10)
    assert today["b"].cost_usd == 0.000_005
    assert today[POOL] == today["b"]
    assert "a" not in today
    assert log.view(["b"], NOW + 86_400).today == {}


def test_only_the_latest_calls_are_kept() -> None:
    """The newest comes first."""
    log = ActivityLog()
    for number in range(CALLS_KEPT + 5):
        log.add(call(NOW + number, ("a", None)))
    calls = log.view([], NOW + CALLS_KEPT).calls
    assert len(calls) == CALLS_KEPT
    assert calls[0].at == NOW + CALLS_KEPT + 4


@pytest.mark.parametrize("waited", [False, True])
def test_a_batch_has_everything_that_calls_add(waited: bool) -> None:
    """Counters by minute and key, usage by day and key, and the calls themselves."""
    batch = ActivityBatch()
    assert not batch
    batch.add(call(NOW, ("a", "quota_minute"), ("b", None), waited=waited))
    batch.add(call(NOW, usage=NO_USAGE))
    minute = int(NOW // 60)
    assert batch
    assert batch.minutes[(minute, "a")] == [1, 1]
    assert batch.minutes[(minute, POOL)] == [2, 1]
    assert batch.waits == ({minute: 1} if waited else {})
    assert batch.days[("2025-11-26", "b")] == batch.days[("2025-11-26", POOL)]
    assert batch.days[("2025-11-26", "b")].nano_usd == 2_500
    assert len(batch.calls) == 2


def test_a_call_is_written_as_text_and_read_back() -> None:
    """For a shared state; its usage is in other records."""
    attempts = (Attempt("a", "quota_day", 429, 0.5), Attempt("b", None, None, 1.0))
    record = CallRecord(NOW, "m", 1.5, "ok", attempts, waited=True)
    assert load_call(dump_call(record)) == record
    assert load_call(dump_call(record).encode()) == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[1,"m",1,"unknown",[],0]',
        '[1e999,"m",1,"ok",[],0]',
        '[1,"m",1,"ok",[7],0]',
    ],
)
def test_what_is_no_call_is_none(text: str) -> None:
    """Something else may have written it."""
    assert load_call(text) is None
