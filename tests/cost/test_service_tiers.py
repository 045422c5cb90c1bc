"""Flex and priority requests have the price of the tier in which they were served."""

from typing import Any

import pytest
from google.genai import types
from support.modes import MODES, ask
from test_budget_of_a_key import spent
from test_costs import MILLIONTH, ObservedPool, body, price

from keyrot_middleware.testing import Reply
from keyrot_middleware.testing.replies import Scripted

CALL = ("gemini-3.8-flash", 1_000, 400, 150, 50, 0)
MODEL = CALL[0]
ASKED = {"flex": 0.5, "standard": 1.0, "priority": 1.8}


def served(tier: str | None, call: tuple[Any, ...] = CALL, **headers: str) -> Scripted:
    answer = body(call)
    if tier is not None:
        answer["usageMetadata"]["serviceTier"] = tier
    return Reply.custom(200, answer).with_headers(**headers)


def asking(tier: str | None) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(service_tier=tier)  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", ASKED)
@pytest.mark.parametrize("mode", MODES)
def test_a_call_costs_what_its_tier_costs(gemini, clock, pool, connect, mode, tier) -> None:
    """In the span and in the report, sync and async, whole and as a stream."""
    observed = ObservedPool(pool({"key_id": "paid", "project": "web"}))
    gemini.tokens(lambda _body: 1_000_000)
    gemini.thoughts(0)
    standard = price((MODEL, 1_000_000, 0, 3, 0, 0), clock)
    ask(mode, connect(), model=MODEL, config=asking(tier))
    (cost,) = observed.costs("generate_content")
    assert cost == pytest.approx(ASKED[tier] * standard, rel=1e-3)
    today = observed.report.status()["summary"]["today"]["cost_usd"]
    assert today == pytest.approx(cost, abs=MILLIONTH)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "named", "header", "ratio"),
    [
        ("priority", "standard", "", 1.0),  # its limit was full
        ("priority", None, "standard", 1.0),
        ("priority", None, "", 1.8),
        (None, "PRIORITY", "", 1.8),
        ("priority", "priority", "standard", 1.0),
        (None, None, "flex", 0.5),
        (None, None, "", 1.0),
    ],
)
def test_the_served_tier_is_booked(
    gemini, clock, pool, connect, stream, asked, named, header, ratio
) -> None:
    """The header names it, else the usage, else it is the one that was asked for."""
    made = pool({"key_id": "paid", "project": "web", "usd": {"day": 1.0}})
    headers = {"X_Gemini_Service_Tier": header} if header else {}
    gemini.always("paid", served(named, **headers))
    for mode in ("sync_stream", "async_stream") if stream else ("sync", "async"):
        ask(mode, connect(), model=MODEL, config=asking(asked))
    assert spent(made) == pytest.approx(2 * ratio * price(CALL, clock), abs=1e-9)
