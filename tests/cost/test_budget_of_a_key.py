"""A key with a budget stops within one call of it."""

import asyncio
import json
from typing import Any

import pytest
from test_costs import body, price

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted
from keyrot_middleware.core.model import DEFAULT_ZONE, NANO, NO_BUDGET, Budget
from keyrot_middleware.core.windows import next_midnight
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.keys_file import KeySpec, candidates_of
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

CALL = ("gemini-3.1-flash-lite", 1_000, 400, 150, 50, 0)
MODEL = CALL[0]


@pytest.fixture
def cost(clock: FakeClock, gemini: FakeGemini) -> float:
    gemini.always_any(Reply.custom(200, body(CALL)))
    return price(CALL, clock)


def spent(pool: Any) -> float:
    """Return the spending of the project `web` in the report."""
    found = source_of(pool).status()["summary"]["projects"]["web"]["usd_today"]
    return float(found)


@pytest.mark.parametrize("mode", ["sync", "async", "stream"])
def test_one_caller_stops_at_the_budget(gemini, clock, pool, connect, cost, mode) -> None:
    """Ten calls and a half: the eleventh exceeds the budget, the twelfth is not sent."""
    made = pool({"key_id": "paid", "project": "web", "usd": {"day": 10.5 * cost}}, max_wait_s=0)
    client = connect()

    def call() -> None:
        if mode == "sync":
            client.models.generate_content(model=MODEL, contents="hi")
        elif mode == "stream":
            list(client.models.generate_content_stream(model=MODEL, contents="hi"))
        else:
            asyncio.run(once())

    async def once() -> None:
        await client.aio.models.generate_content(model=MODEL, contents="hi")
        await client.aio.aclose()

    for _ in range(11):
        call()
    with pytest.raises(KeyPoolExhausted) as failed:
        call()
    assert gemini.count() == 11
    assert spent(made) == pytest.approx(11 * cost, abs=1e-9)
    assert failed.value.reasons == {"paid": failed.value.reasons["paid"]}
    assert failed.value.retry_at is not None
    midnight = next_midnight(clock.time(), DEFAULT_ZONE)
    assert failed.value.retry_at.timestamp() == pytest.approx(midnight)
    assert "KeyPoolUsdPerDay" in json.dumps(failed.value.details)


def test_status_reports_a_spent_budget_until_midnight(gemini, clock, pool, connect, cost) -> None:
    """The keys of the project are limited, those of another are not; then all are available."""
    keys = [
        {"key_id": "a", "project": "web", "usd": {"day": cost}},
        {"key_id": "b", "project": "web"},
        {"key_id": "c", "project": "other"},
    ]
    made = pool(*keys, strategy="fill")
    client = connect()
    client.models.generate_content(model=MODEL, contents="hi")
    status = source_of(made).status()
    states = {key["key_id"]: (key["state"], key["reason"]) for key in status["keys"]}
    assert states == {
        "a": ("limited", "usd"),
        "b": ("limited", "usd"),
        "c": ("available", None),
    }
    first = status["keys"][0]
    budget = {"day": {"spent": pytest.approx(cost), "limit": pytest.approx(cost)}}
    assert first["usd"] == status["keys"][1]["usd"] == budget
    assert first["sentence"].startswith(f"the budget of the day is spent: ${cost:.6f} of ")
    assert status["keys"][2]["usd"] == {}
    assert status["summary"]["projects"]["web"] == {
        "usd_today": pytest.approx(cost, abs=1e-9),
        "usd": budget,
        "unpriced_calls_today": 0,
    }
    why = {key["key_id"]: key["reason"] for key in source_of(made).explain(MODEL)["keys"]}
    assert why == {"a": "usd", "b": "usd", "c": None}
    assert keyrot_middleware.status()["keys"]["a"]["state"] == "limited"
    client.models.generate_content(model=MODEL, contents="hi")
    assert [request.key for request in gemini.log] == ["a", "c"]
    clock.advance(next_midnight(clock.time(), DEFAULT_ZONE) - clock.time())
    assert {key["state"] for key in source_of(made).status()["keys"]} == {"available"}
    client.models.generate_content(model=MODEL, contents="hi")
    assert gemini.log[-1].key == "a"


@pytest.mark.parametrize("shared", ["", "sqlite"])
def test_free_keys_cost_nothing(shared, gemini, pool, connect, cost, tmp_path) -> None:
    """They serve a workload whose budget is spent, and no budget and no day has their price."""
    url = f"sqlite://{tmp_path}/state" if shared else "memory://"
    keys = [
        {"key_id": "paid", "project": "web", "tier": "tier1"},
        {"key_id": "free", "project": "web", "tier": "free", "priority": 1, "usd": {"day": cost}},
    ]
    budget = {"night": {"usd": {"day": cost}}}
    made = pool(*keys, state_url=url, workloads=budget, max_wait_s=0)
    client = connect()
    with keyrot_middleware.workload("night"):
        for _ in range(6):
            client.models.generate_content(model=MODEL, contents="hi")
    assert (gemini.sent("paid"), gemini.sent("free")) == (1, 5)
    status = source_of(made).status()
    assert status["summary"]["today"]["cost_usd"] == pytest.approx(cost)
    found = {key["key_id"]: key["usd_today"] for key in status["keys"]}
    assert found == {"paid": pytest.approx(cost), "free": 0}


def test_a_budget_needs_genai_prices(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """install() names the extra to install, and installs nothing."""
    monkeypatch.setattr("keyrot_middleware.prices.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[cost\]'"):
        pool({"key_id": "paid", "usd": {"day": 1}})
    assert keyrot_middleware.status()["installed"] is False


def test_the_keys_of_a_billing_account_share_its_ten_minutes() -> None:
    """Google's number by its tier, unless the account has another; in billionths."""
    keys = (
        KeySpec(key_id="a", billing_account="co", tier="tier1", project="web"),
        KeySpec(key_id="b", billing_account="co", usd={"month": 8}),
        KeySpec(key_id="c", billing_account="co", platform="vertex_express"),
        KeySpec(key_id="d", billing_account="big", tier="tier2", usd={"10m": 90}),
        KeySpec(key_id="e", billing_account="free", tier="free"),
        KeySpec(key_id="f", tier="tier3"),
    )
    found = {key.key_id: key.usd for key in candidates_of(keys)}
    assert found == {
        "a": Budget(10 * NANO),
        "b": Budget(10 * NANO, None, 8 * NANO),
        "c": Budget(10 * NANO),
        "d": Budget(90 * NANO),
        "e": NO_BUDGET,
        "f": NO_BUDGET,
    }
