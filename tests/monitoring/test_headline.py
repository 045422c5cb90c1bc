"""What the page, the command and a notebook say of a pool first."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import Rig, key
from support.replies import bad, day

from keyrot_middleware.core.model import Limits
from keyrot_middleware.monitoring.headline import MODELS, headline_of, lines_of
from keyrot_middleware.monitoring.report import pool_health

NEXT = {"key_id": "paid_1", "available_at": "2026-01-01T12:31:00Z"}
NEVER = {"key_id": None, "available_at": None}
HOUR = {"calls": 0, "failed_calls": 0, "requests": 0, "failures": 0, "waits": 0}


def lines(**summary: Any) -> list[str]:
    """Return the lines of a pool of three keys, two of them available, but for *summary*."""
    whole = {"keys": 3, "available": 2, "next": NEXT, "models": {}, "last_hour": HOUR, **summary}
    return list(lines_of(headline_of(whole), lambda at: f"at {at}"))


@pytest.mark.parametrize(
    ("summary", "first"),
    [
        ({}, "2 of 3 keys are available."),
        ({"available": 1}, "1 of 3 keys is available."),
        ({"keys": 1, "available": 1}, "1 of 1 key is available."),
        ({"keys": 0, "available": 0, "next": NEVER}, "This pool has no key."),
        ({"available": 0}, "No key is available. paid_1 at 2026-01-01T12:31:00Z."),
        (
            {"available": 0, "next": NEVER},
            "No key is available. It is not known when one will be.",
        ),
    ],
)
def test_whether_calls_can_be_served_and_when_again_comes_first(
    summary: dict[str, Any], first: str
) -> None:
    """With the key that is available first."""
    assert lines(**summary)[0] == first


def test_models_without_a_key_follow() -> None:
    """A few of them, and none where no key is available at all."""
    without = {"available": 0, "keys": 1, "next": NEXT}
    models = {"fine": {**without, "available": 1}} | {f"m{n}": without for n in range(MODELS + 1)}
    said = lines(models=models)
    assert said[1] == "No key is available for m0. paid_1 at 2026-01-01T12:31:00Z."
    assert len(said) == MODELS + 2
    assert len(lines(available=0, models=models)) == 2


@pytest.mark.parametrize(
    ("hour", "last"),
    [
        ({}, "No call was made."),
        ({"calls": 1, "requests": 1}, "0 of 1 call failed. 0 of 1 request failed."),
        ({"calls": 2, "failed_calls": 2}, "2 of 2 calls failed. No request was sent."),
        (
            {"calls": 1234, "failed_calls": 2, "waits": 3, "requests": 1300, "failures": 70},
            "2 of 1,234 calls failed; 3 waited for a key. 70 of 1,300 requests failed; a call goes "
            "on with another key.",
        ),
        (dict.fromkeys(HOUR), "Not known while the shared state cannot be reached."),
    ],
)
def test_failed_calls_come_before_failed_requests(hour: dict[str, Any], last: str) -> None:
    """A call that could not be sent counts too, and what is not known is not zero."""
    assert lines(last_hour=HOUR | hour)[-1] == f"Last hour: {last}"


def test_a_pool_says_it_of_its_own_calls() -> None:
    """`status()` writes the time as a date and a clock in UTC."""
    rig = Rig(key("a", Limits(rpm=9)), key("b", Limits(rpm=9)), max_wait_s=0)
    rig.call()
    rig.default = bad()
    rig.failing()
    rig.default = day()
    rig.failing()
    keys, said = pool_health(rig.pool)
    assert {one["state"] for one in keys.values()} == {"cooling_down"}
    assert said[0].startswith("No key is available. ")
    assert said[0].endswith(" at 2026-01-02 08:00Z.")
    assert said[1:] == [
        "Last hour: 2 of 3 calls failed. 3 of 4 requests failed; a call goes on with another key."
    ]
