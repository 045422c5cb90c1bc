"""A model without a price: each figure of money says that it does not have all."""

from typing import Any

import pytest
from test_costs import body, price

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.cli.status import _first_lines
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.testing import Reply

KNOWN = ("gemini-3.1-flash-lite", 1_000, 400, 150, 50, 0)
UNHEARD = ("gemini-unheard-9", 700, 0, 20, 5, 0)
PAID = {"key_id": "paid", "project": "web", "usd": {"day": 5}}
NIGHTLY = {"usd": {"month": 9}}


def call(gemini: Any, client: Any, one: tuple[Any, ...]) -> None:
    gemini.script("paid", Reply.custom(200, body(one)))
    with keyrot_middleware.workload("nightly"):
        client.models.generate_content(model=one[0], contents="hi")


def money(status: Any) -> list[str]:
    """Return the lines of `keyrot status` about money."""
    return [line.strip() for line in _first_lines(status) if "USD" in line or "price" in line]


def test_calls_without_a_price_are_no_zero(gemini, pool, connect, caplog) -> None:
    """The cost is not known, and a budget that they do not touch says so; all by the same count."""
    made = pool(PAID, workloads={"nightly": NIGHTLY})
    client, report = connect(), source_of(made)
    with pytest.warns(KeyrotWarning, match="no price is known for model 'gemini-unheard-9'"):
        call(gemini, client, UNHEARD)
    assert "no price is known for model 'gemini-unheard-9'" in caplog.text  # for keyrot serve
    call(gemini, client, UNHEARD)
    status = report.status()
    today, (key,) = status["summary"]["today"], status["keys"]
    assert (today["cost_usd"], today["unpriced_calls"]) == (None, 2)
    assert today["unpriced_models"] == ["gemini-unheard-9"]
    assert (key["usd_today"], key["unpriced_calls_today"]) == (None, 2)
    web, nightly = status["summary"]["projects"]["web"], status["summary"]["workloads"]["nightly"]
    assert (web["usd_today"], web["unpriced_calls_today"]) == (None, 2)
    assert nightly["unpriced_calls_today"] == 2
    assert report.attempts()["calls"][0]["cost_usd"] is None
    for by in ("model", "workload"):
        (share,) = report.history(by=by)["shares"]
        assert (share["nano_usd"], share["unpriced_calls"]) == (0, 2)
    missing = "2 calls without a price of today not counted"
    assert money(status) == [
        f"Today: no price (2 calls without a price), since {status['summary']['midnight']}",
        "No price is known for gemini-unheard-9",
        f"web: 0.0000 USD of 5.00 USD a day; {missing}",
        f"workload nightly: 0.0000 USD of 9.00 USD a month; {missing}",
    ]


def test_a_part_that_is_known_is_no_whole(gemini, clock, pool, connect) -> None:
    """What has a price is named, and how many calls have none."""
    made = pool(PAID)
    report = source_of(made)
    client = connect()
    call(gemini, client, KNOWN)
    status, known = report.status(), price(KNOWN, clock)
    assert status["summary"]["today"]["unpriced_calls"] == 0
    assert money(status)[0].startswith(f"Today: {known:.4f} USD, since")
    assert "not counted" not in "".join(money(status))
    call(gemini, client, UNHEARD)
    status = report.status()
    assert status["summary"]["today"]["cost_usd"] == pytest.approx(known)
    assert status["summary"]["projects"]["web"]["usd_today"] == pytest.approx(known)
    assert money(status)[0].startswith(f"Today: {known:.4f} USD + 1 call without a price, since")
    clock.advance(86_400)
    assert source_of(made).status()["summary"]["today"]["unpriced_calls"] == 0


def test_a_free_key_costs_nothing_whatever_the_model(gemini, pool, connect) -> None:
    """Its cost is known: it is 0."""
    report = source_of(pool({"key_id": "paid", "tier": "free"}))
    call(gemini, connect(), UNHEARD)
    today = report.status()["summary"]["today"]
    assert (today["cost_usd"], today["unpriced_calls"]) == (0.0, 0)
