"""Keys whose values end: what is said before and after, and that the date blocks nothing."""

from pathlib import Path
from typing import Any

import pytest
from support.otel import RecordedMetrics
from support.pool import INFO, Rig, key
from support.replies import expired

from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.keys_file import expires_at, read_keys, with_expires
from keyrot_middleware.monitoring.alerts import Alerts, Receiver
from keyrot_middleware.monitoring.levels import Levels
from keyrot_middleware.monitoring.report import pool_health

WEEK, MONTH = 7 * DAY_S, 30 * DAY_S


def rig_with(*ends: float | None) -> Rig:
    """Return a pool whose keys end so many seconds from now."""
    names = "abcdef"
    rig = Rig(key("z"))
    now = rig.time()
    keys = [key(name, expires=end and now + end) for name, end in zip(names, ends, strict=False)]
    return Rig(*keys)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2027-03-01", 1_803_945_600.0),
        ("2027-03-01T12:00:00Z", 1_803_902_400.0),
        ("2027-03-01T12:00", 1_803_902_400.0),
        ("2027-03-01 12:00:00.5+01:00", 1_803_898_800.5),
        ("9999-12-31", 253_402_300_800.0),
    ],
)
def test_a_date_is_the_last_day_and_a_time_is_the_end(text: str, at: float) -> None:
    """In UTC, unless a zone is named."""
    assert expires_at(text) == at


@pytest.mark.parametrize(
    "value", ['"soon"', '"2027-13-01"', '"2027-02-30"', '"2027-3-1"', '"20270301"', "20270301"]
)
def test_a_wrong_date_is_named_with_what_is_allowed(value: str, tmp_path: Path) -> None:
    """As other mistakes in keys.json."""
    path = tmp_path / "keys.json"
    path.write_text(f'[{{"key_id": "a", "expires": {value}}}]')
    (problem,) = read_keys(path)[1]
    assert problem.startswith(f"{path}, key a, field expires: found {value}")
    assert "2027-03-01T12:00:00Z" in problem or "string" in problem


def sent_by(rig: Rig) -> tuple[Alerts, list[str]]:
    found: list[str] = []
    alerts = Alerts(
        rig.pool, [Receiver("test", lambda event: found.append(f"{event.event}: {event.sentence}"))]
    )
    return alerts, found


def test_it_is_said_a_month_a_week_and_a_day_before_and_once_it_has_ended() -> None:
    """Once each; the key serves all the while."""
    rig = rig_with(40 * DAY_S)
    alerts, said = sent_by(rig)
    steps = {35: 1, 29: 1, 12: 1, 6.5: 1, 3: 1, 0.5: 1, -0.5: 1, -20: 1}
    counts = []
    began = rig.time()
    for days in steps:
        rig.clock.advance(began + (40 - days) * DAY_S - rig.time())
        rig.call(INFO)
        for _ in range(2):
            alerts.look()
        counts.append(len(said))
    alerts.stop()
    assert counts == [0, 1, 1, 2, 2, 3, 4, 4]
    assert said[0].startswith("key_expires: pool test: key a ends on ")
    assert said[0].endswith("in 29 days. Type: keyrot rotate a")
    assert "in 12 h" in said[2]
    assert "as keys.json says; it is used until Gemini refuses it" in said[3]


def test_a_refusal_and_its_end_do_not_say_it_again() -> None:
    """Nor is a key that is refused already "used until Gemini refuses it"."""
    rig = rig_with(-DAY_S, None)
    alerts, said = sent_by(rig)
    rig.call(INFO)
    alerts.look()
    rig.will("a", expired())
    for _ in range(2):
        rig.call(INFO)
    alerts.look()
    lines = [line for line in pool_health(rig.pool)[1] if line.startswith("Key a ended")]
    assert [line.rpartition(", ")[2] for line in lines] == ["as keys.json says."]
    rig.clock.advance(60)
    rig.pool.reset("a")
    alerts.look()
    alerts.stop()
    names = [text.partition(":")[0] for text in said]
    assert names == ["key_expires", "key_rejected", "key_available_again"]


def test_status_says_it_and_that_a_key_is_not_used() -> None:
    """The three that end first by name; keys not used for 90 days, but none that never was."""
    rig = rig_with(6.5 * DAY_S, 0.5 * DAY_S, -DAY_S, 29 * DAY_S, None)
    health, lines = pool_health(rig.pool)
    assert [health[one]["available"] for one in "abcde"] == [True] * 5
    assert health["e"]["expires"] is None
    assert str(health["a"]["expires"]).endswith("Z")
    assert [line.split(" on ")[0] for line in lines if line.startswith("Key ")] == [
        "Key c ended",
        "Key b ends",
        "Key a ends",
    ]
    assert "1 more key ends within 30 days." in lines
    rig.call(INFO)
    rig.clock.advance(91 * DAY_S)
    lines = pool_health(rig.pool)[1]
    assert [line for line in lines if line.startswith("Not used")] == [
        "Not used for 90 days: key a."
    ]


def test_the_days_that_are_left_are_a_metric() -> None:
    """Negative after the end; a key without a date has none."""
    rig, metered = rig_with(6.5 * DAY_S, -DAY_S, None), RecordedMetrics()
    metered.observer.register_gauges(lambda metric: Levels(rig.pool).read(metric))
    found = {
        p.attributes["keyrot.key.id"]: p.value for p in metered.points("keyrot.key.expires_in")
    }
    assert found == pytest.approx({"a": 6.5, "b": -1.0})


ENTRIES = '[{"key_id": "b", "expires": "2026-01-01"},\n {"key_id": "a", "usd": {"day": 5}}]\n'
LONG = '[\n  {\n    "key_id": "a",\n    "rpm": 5\n  }\n]\n'


@pytest.mark.parametrize(
    ("text", "expires", "after"),
    [
        (ENTRIES, "2027-01-01", '"day": 5}, "expires": "2027-01-01"}]'),
        (LONG, "2027-01-01", '"rpm": 5,\n    "expires": "2027-01-01"\n  }\n]'),
        ('[{"expires": null, "key_id": "a"}]', None, '[{"key_id": "a"}]'),
        ('[{"key_id": "a", "expires": "2026-01-01"}]', None, '[{"key_id": "a"}]'),
        ('[{"key_id": "a", "expires": "x", "rpm": 1}]', "2027-01-01", '"rpm": 1, "expires": "2027'),
    ],
)
def test_a_date_is_written_into_the_text_of_a_file(text: str, expires: Any, after: str) -> None:
    """Where its entry is, in the form of that entry."""
    assert after in str(with_expires(text, "a", expires))


@pytest.mark.parametrize("text", ["", "[]", "[{]", '[{"key_id": "b"}]', '[{"key_id": "a"'])
def test_a_text_without_the_key_is_not_changed(text: str) -> None:
    """Nor one that is no JSON."""
    assert with_expires(text, "a", "2027-01-01") is None
