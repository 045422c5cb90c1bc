"""What the calls of a pool would get now, asked by a process that may serve none of them."""

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.pool import key

from keyrot_middleware.core.activity import ActivityRows, Attempt, CallRecord, Pair
from keyrot_middleware.core.judgement import Judgement
from keyrot_middleware.core.model import (
    DEFAULT_PLATFORM,
    Block,
    CallInfo,
    Candidate,
    Limits,
    RetryPolicy,
    Terms,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.monitoring.calls_now import AT_ONCE, ask, judge_calls, read_runs
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder
from keyrot_middleware.runtime.call_settings import CallSettings, read_said, read_settings
from keyrot_middleware.runtime.rotations import emptied_at, report_values
from keyrot_middleware.state import MemoryState, State
from keyrot_middleware.testing import FakeClock

KEYS = (key("a", Limits(rpd=40)), key("b", Limits(rpd=40)))
BATCH = CallSettings({"batch": Terms("batch", share=0.5)}, frozenset({"free"}), {"m": "n"}, 9.0)


def call(at: float, workload: str = "", *, failure: str | None = None) -> CallRecord:
    attempts = (Attempt("a", failure, 503 if failure else None, 0.1),)
    outcome = "failed" if failure else "ok"
    return CallRecord(at, "m", 0.2, outcome, attempts, workload=workload)  # type: ignore[arg-type]


def judged(state: State, clock: FakeClock, settings: CallSettings) -> list[Judgement]:
    now, activity = clock.time(), ActivityRecorder(state, clock.time)
    return judge_calls(state, Selector(KEYS), activity, settings, {}, now=now)


def test_each_model_is_judged_for_the_workloads_that_call_it(
    state: State, clock: FakeClock
) -> None:
    """The worst first; those of yesterday if they are not served."""
    activity, settings = (
        ActivityRecorder(state, clock.time),
        replace(BATCH, tiers=None, next_models={}),
    )
    for workload in ("", "batch", "batch"):
        activity.add(call(clock.time(), workload))
    activity.send()
    for found in KEYS * 20:
        state.acquire(settings.info("m", "batch", DEFAULT_PLATFORM), ((0, found),), strategy="fill")
    batch, other = judged(state, clock, settings)
    assert (batch.workload, batch.answer, batch.able, batch.keys) == ("batch", "no", 0, 2)
    assert batch.block is not None
    assert batch.block.note == "share of batch: 20 of 40 a day"
    assert (other.workload, other.answer, other.able) == (None, "served", 2)
    spare, _other = judged(state, clock, replace(settings, next_models={"m": "n", "n": "m"}))
    assert (spare.answer, spare.is_spare, spare.ends_by) == ("served", True, "time")
    clock.advance(86_400)
    assert judged(state, clock, settings) == []


def test_settings_are_those_of_the_processes_that_run(state: State, clock: FakeClock) -> None:
    """Each says once a minute with what its calls are made; of several, all that one may use."""
    own, now = CallSettings(), clock.time()
    assert read_settings(read_said(state), now, own) is own
    state.add_activity(ActivityRows({}, BATCH.texts(now)))
    assert read_settings(read_said(state), now, own) == BATCH
    state.add_activity(ActivityRows({}, CallSettings({None: Terms(behind="chat")}).texts(now)))
    both = read_settings(read_said(state), now, own)
    assert (both.terms.keys(), both.tiers, both.wait_s) == ({None, "batch"}, None, own.wait_s)
    assert read_settings(read_said(state), now + 300, own) is own


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([None, *["overloaded"] * 2], None),
        ([None, *["overloaded"] * 3], ("overloaded", 503, -120, 3)),
        ([None, *["overloaded"] * 9], ("overloaded", 503, -480, 9)),
        (["overloaded"] * 100, ("overloaded", 503, -3_540, 60)),
        (["overloaded"] * 9 + [None] * 10, None),
        (["overloaded", "overloaded", "bad_request", "reset"], ("reset", 503, -180, 3)),
        (["overloaded"] * 3 + ["model_withdrawn"] * 3, ("model_withdrawn", 503, -300, 6)),
    ],
)
def test_calls_that_fail_whatever_the_key_are_read_from_any_state(
    failures: list[str | None], expected: Any, state: State, clock: FakeClock
) -> None:
    """Since when and how many is known from the minutes, one of which each call here takes."""
    activity, pair = ActivityRecorder(state, clock.time), Pair(DEFAULT_PLATFORM, "m", "")
    clock.advance(-clock.time() % 60)
    for failure in failures:
        clock.advance(60)
        activity.add(call(clock.time(), failure=failure))
    found = read_runs(activity.read(), clock.time())(pair, [pair]).failing
    said = found and (found.failure, found.code, found.since - clock.time(), found.failed)
    assert said == expected


def test_a_large_pool_is_asked_up_to_the_first_key_that_can_serve() -> None:
    """Of five thousand keys a state is asked only for so many; a rejected one does not serve."""
    asked: list[int] = []

    class Exhausted(MemoryState):
        def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
            asked.append(len(found := [one.key_id for one in candidates]))
            return {key_id: Block("rpd", 1.0) for key_id in found if key_id != "k700"}

    keys, state = [key(f"k{n}") for n in range(5_000)], Exhausted(RetryPolicy(), lambda: 0.0)
    info, rejected = CallInfo("m", "generateContent"), {"k700": "key_leaked"}
    found, blocks = ask(state, info, keys, {})
    assert (len(found), len(blocks), asked) == (2 * AT_ONCE, 2 * AT_ONCE - 1, [AT_ONCE] * 2)
    assert len(ask(state, info, keys, rejected)[0]) == len(keys)


def test_a_state_that_was_emptied_gets_all_at_once(clock: FakeClock) -> None:
    """What values the keys have, within seconds; and that it was emptied, for those who look."""
    first, second = (MemoryState(RetryPolicy(), clock.time) for _ in range(2))
    one = key("a").with_value("0123")
    pool: Any = SimpleNamespace(
        name="p",
        state=first,
        selector=Selector([one]),
        clock=clock,
        epoch=None,
        call_settings=BATCH,
        configured=[one],
        keys_problem="",
    )
    report_values(pool, is_new_minute=False)
    assert first.snapshot([one]) and first.activity_log("settings")
    for _ in range(2):
        report_values(pool, is_new_minute=False)
    assert len(first.activity_log("settings")) == 1
    assert emptied_at(first, clock.time()) is None
    pool.state = second
    for _ in range(2):
        clock.advance(3)
        report_values(pool, is_new_minute=False)
    assert read_settings(read_said(second), clock.time(), CallSettings()) == BATCH
    assert emptied_at(second, clock.time()) == clock.time() - 3
    assert second._records.fingerprints["a"] == "0123"
    clock.advance(3_600)
    assert emptied_at(second, clock.time()) is None
    pool.state = SimpleNamespace(degraded=True, activity_log=lambda _: [])
    report_values(pool, is_new_minute=False)
