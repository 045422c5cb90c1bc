"""Prices are those of genai-prices, whose list is read once for rates, and fetches nothing."""

import builtins
import socket
from datetime import UTC, datetime
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyrot_middleware.core.model import Usage
from keyrot_middleware.prices import PriceList

NOW = datetime(2026, 11, 26, 12, 30, tzinfo=UTC)
AT = NOW.timestamp()
MODELS = (
    "gemini-2.5-flash",
    "gemini-2.5-pro",  # costs more above 200,000 input tokens
    "gemini-3.1-pro-preview",
    "gemini-3.8-flash",
    "gemini-3.1-flash-image-preview",  # images of its output have a price of their own
    "gemini-3.8-live",
    "gemini-embedding-2",  # has no output
)
PRICES = PriceList()


def expected(
    model: str, at: datetime = NOW, context: dict[str, str] | None = None, **counts: int
) -> float:
    usage = genai_prices.Usage(**counts)
    price = genai_prices.calc_price(
        usage, model, provider_id="google", genai_request_timestamp=at, price_context=context
    ).total_price
    return float(price)


@given(
    model=st.sampled_from(MODELS),
    tokens=st.sampled_from([0, 1, 999, 200_000, 200_001, 1_000_000]),
    parts=st.tuples(*[st.integers(0, 3)] * 5),
    output=st.integers(0, 70_000),
)
def test_a_request_has_the_cost_of_the_list(model, tokens, parts, output) -> None:
    """In each tier, with cached tokens, audio and images, some of which are cached too."""
    cached, audio, image, made, both = (tokens * part // 10 for part in parts)
    counts = {
        "input_audio_tokens": audio,
        "input_image_tokens": image,
        "cache_audio_read_tokens": min(cached, audio, both),
        "output_image_tokens": min(made, output),
    }
    usage = Usage(tokens, output, cached, details=tuple(counts.items()))
    want = expected(
        model, input_tokens=tokens, cache_read_tokens=cached, output_tokens=output, **counts
    )
    assert PRICES.cost(usage, model, AT) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(("tier", "ratio"), [("flex", 0.5), ("priority", 1.8)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokens", [1_000, 300_000])
def test_a_service_tier_has_its_price(model: str, tier: str, ratio: float, tokens: int) -> None:
    """Where the list has no price for it, the ratio of the standard one, for each kind of token."""
    usage = Usage(tokens, 50, 400, details=(("input_audio_tokens", 300),))
    standard = PRICES.cost(usage, model, AT)
    assert standard is not None
    assert PRICES.cost(usage, model, AT, tier) == pytest.approx(ratio * standard)
    assert PRICES.estimate(model, tokens, AT, tier) == pytest.approx(
        tuple(ratio * amount for amount in PRICES.estimate(model, tokens, AT))
    )
    assert PRICES.cost(usage, model, AT, "of-the-future") == standard


def test_the_model_that_answered_counts() -> None:
    """An alias has the price of its model; if that has none, the one of the requested model."""
    usage = Usage(1_000, 100, model="gemini-2.5-pro-001")
    want = expected("gemini-2.5-pro", input_tokens=1_000, output_tokens=100)
    assert PRICES.cost(usage, "gemini-flash-latest", AT) == pytest.approx(want)
    odd = usage._replace(model="of-the-future")
    assert PRICES.cost(odd, "gemini-2.5-pro", AT) == pytest.approx(want)


def test_requests_of_an_unknown_model_have_no_cost() -> None:
    prices = PriceList()
    assert prices.cost(Usage(1, 1), "tunedModels/ours", AT) is None
    assert prices.estimate("tunedModels/ours", 10, AT) == (0.0, 0.0)


def test_a_request_is_estimated_before_it_is_sent() -> None:
    least, most = PRICES.estimate("gemini-2.5-flash", 10, AT)
    assert least == pytest.approx(expected("gemini-2.5-flash", input_tokens=10))
    assert most == pytest.approx(
        expected("gemini-2.5-flash", input_tokens=10, output_tokens=65_536)
    )


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a price was looked for in the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert PriceList().cost(Usage(1, 1), "gemini-2.5-flash", AT) is not None


def test_without_genai_prices_nothing_has_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyrot_middleware.prices.find_spec", lambda _name: None)
    prices, imported = PriceList(), builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        assert not name.startswith("genai_prices")
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert not prices.is_installed
    assert prices.cost(Usage(1, 1), "gemini-2.5-flash", AT) is None
    assert prices.estimate("gemini-2.5-flash", 1, AT) == (0.0, 0.0)
