"""When the requests of a day are used up at the rate of the last hour, by a fake clock."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import MODEL, day, invalid

from keyrot_middleware.core.model import DEFAULT_ZONE, Limits
from keyrot_middleware.core.windows import next_midnight
from keyrot_middleware.monitoring.report import pool_health, source_of

HOUR = 3_600.0
OLD, NEW = "gemini-2.5-flash", "gemini-3.5-flash-lite"


def new_day(*keys: Any, **more: Any) -> Rig:
    """Return a pool at midnight."""
    rig = Rig(*keys, max_wait_s=0, **more)
    rig.clock.advance(next_midnight(rig.time(), DEFAULT_ZONE) - rig.time() + 1)
    return rig


def hour(rig: Rig, calls: int) -> None:
    """Make calls throughout an hour."""
    for _ in range(calls):
        rig.clock.advance(HOUR / calls)
        rig.call()
    if not calls:
        rig.clock.advance(HOUR)


def seconds(rig: Rig, at: str | None) -> float | None:
    """Return how long it is until a time."""
    return None if at is None else datetime.fromisoformat(at).timestamp() - rig.time()


def of_key(rig: Rig, key_id: str = "a", model: str = MODEL) -> float | None:
    found = {one["key_id"]: one for one in source_of(rig.pool).status()["keys"]}
    at = found[key_id]["used"][model]["runs_out_at"]
    assert pool_health(rig.pool)[0][key_id]["used"][model]["runs_out_at"] == at
    return seconds(rig, at)


def of_pool(rig: Rig, model: str = MODEL) -> float | None:
    calls = source_of(rig.pool).status()["summary"]["calls"]
    return seconds(rig, next(one["runs_out_at"] for one in calls if one["model"] == model))


def test_the_forecast_is_true_at_each_hour_and_moves_with_the_rate() -> None:
    """Of 120 requests, at 8 an hour: after 15 hours. At 2 an hour they last, and at none."""
    rig = new_day(key("a", Limits(rpd=120)))
    for number in range(1, 12):
        hour(rig, 8)
        assert of_key(rig) == pytest.approx((15 - number) * HOUR, abs=HOUR / 7 * 2)
        assert of_pool(rig) == of_key(rig)
    hour(rig, 4)
    assert of_key(rig) == pytest.approx(28 / 4 * HOUR, rel=0.05)
    hour(rig, 2)
    assert of_key(rig) is None
    hour(rig, 20)
    assert of_key(rig) == pytest.approx(6 / 20 * HOUR, rel=0.1)
    hour(rig, 0)
    assert (of_key(rig), of_pool(rig)) == (None, None)


def test_a_key_that_is_not_used_yet_has_the_limits_that_were_read() -> None:
    """One that comes later has 10 requests a day, the first one 20: 24 are left at 6 an hour."""
    rig = new_day(key("a", Limits(rpd=20)), key("b", priority=1))
    rig.pool.state.take_limits("b", {MODEL: Limits(rpd=10), "never-used": Limits(rpd=10)})
    hour(rig, 6)
    assert of_pool(rig) == pytest.approx(4 * HOUR)
    assert list(pool_health(rig.pool)[0]["b"]["used"]) == [MODEL]


def test_each_project_and_model_has_its_own_rate() -> None:
    """Keys of a project share one; a key without a limit of a day, and the part of the pool."""
    keys = [
        key("a", Limits(rpd=20), project="p", use=0.5),
        key("b", Limits(rpd=20), project="p", use=0.5),
        key("c", Limits(rpd=40), priority=1),
        key("d", priority=2),
    ]
    rig = new_day(*keys, strategy="fill")
    hour(rig, 5)
    rig.call(INFO._replace(model="other"))
    assert of_key(rig, "a") == of_key(rig, "b") == pytest.approx(HOUR, rel=0.05)
    assert of_key(rig, "a", "other") == pytest.approx(9 * HOUR)
    hour(rig, 10)
    assert of_key(rig, "c") == pytest.approx(35 / 5 * HOUR, rel=0.05)
    assert of_pool(rig) is None  # no limit of d is known


def test_the_pools_day_is_that_of_all_keys_that_can_serve() -> None:
    """What one has left does not matter while another serves; a rejected key has none to give."""
    keys = [key(name, Limits(rpd=30), priority=n) for n, name in enumerate("abc")]
    rig = new_day(*keys, strategy="fill")
    hour(rig, 20)
    assert of_key(rig) == pytest.approx(HOUR / 2, rel=0.1)
    assert of_pool(rig) == pytest.approx(70 / 20 * HOUR, rel=0.1)
    rig.will("a", day())
    rig.will("b", invalid())
    rig.call()
    assert rig.sent[-3:] == ["a", "b", "c"]
    assert of_key(rig) is None  # its day is over
    assert of_pool(rig) == pytest.approx(29 / 23 * HOUR, rel=0.1)
    rig.will("c", invalid())
    rig.failing()
    assert of_pool(rig) is None  # no key can serve at all


def test_the_old_name_of_a_model_has_the_day_of_the_one_that_answers() -> None:
    """Their calls count in one limit: 100 are left at 20 an hour, whichever is called."""
    rig = new_day(key("a", Limits(rpd=120)))
    for model in (OLD, NEW) * 10:
        rig.clock.advance(HOUR / 20)
        rig.call(INFO._replace(model=model))
    assert of_key(rig, model=OLD) == of_key(rig, model=NEW) == pytest.approx(5 * HOUR, rel=0.1)
    assert of_pool(rig, OLD) == of_pool(rig, NEW) == of_key(rig, model=NEW)


def test_a_clock_that_was_a_day_ahead_adds_nothing_to_that_day() -> None:
    """Its hour, tokens and forecast are those of its own calls, once the clock is there again."""
    rig = new_day(key("a", Limits(rpd=1_000)))
    hour(rig, 20)
    rig.clock.advance(24 * HOUR)
    hour(rig, 100)
    source_of(rig.pool).status()  # it is counted, as the refresher does each second
    rig.clock.advance(-24 * HOUR)
    rig.call()
    assert source_of(rig.pool).status()["summary"]["last_hour"]["requests"] == 1
    rig.clock.advance(23 * HOUR)
    hour(rig, 50)
    report = source_of(rig.pool)
    summary = report.status()["summary"]
    assert summary["last_hour"]["requests"] == pytest.approx(50, abs=1)
    assert summary["today"]["input_tokens"] == 50 * INFO.tokens
    assert sum(report.history(hours=24)["series"]["requests"]) == 50
    assert of_key(rig) == pytest.approx(950 / 50 * HOUR, rel=0.05)


def test_a_step_of_the_clock_over_midnight_and_back_is_forgotten() -> None:
    """An hour ahead, into the next day, and back: that day begins with its own calls."""
    rig = new_day(key("a", Limits(rpd=1_000)))
    rig.clock.advance(22.5 * HOUR)
    hour(rig, 30)
    source_of(rig.pool).status()
    rig.clock.advance(HOUR)
    rig.call()
    source_of(rig.pool).status()
    rig.clock.advance(-HOUR)
    rig.call()
    summary = source_of(rig.pool).status()["summary"]
    assert summary["today"]["input_tokens"] == 31 * INFO.tokens
    rig.clock.advance(HOUR)
    rig.call()
    summary = source_of(rig.pool).status()["summary"]
    assert summary["today"]["input_tokens"] == INFO.tokens
