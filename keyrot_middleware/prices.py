"""What a request costs by the price list of genai-prices (the extra `cost`).

The list comes with the package: nothing is fetched. It takes a tenth of a millisecond for a price,
so of plain requests, whose price is linear in their counts of tokens, only the rates are asked for,
once an hour.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

from .core.model import NO_BUDGET, Budget, Usage
from .errors import MissingExtraError

DEFAULT = "google"
"""The provider of the list whose prices count where none is named."""
MODELS_KEPT = 1_000
"""Models whose rates are kept."""
PERIOD_S = 3_600.0
"""Prices begin at full hours."""
LONGEST_ANSWER = 65_536
"""Output tokens, with thoughts: the limit of the models of today."""
TIER_RATIOS: Mapping[str, Decimal] = {"flex": Decimal("0.5"), "priority": Decimal("1.8")}
"""What a request in a service tier costs, compared with a standard one, where the list has no price
for it. docs/cost.md has the source."""


def is_installed() -> bool:
    """Return whether genai-prices is installed."""
    try:
        return find_spec("genai_prices") is not None
    except (ImportError, ValueError):  # something else stands in its place in sys.modules
        return False


def require_prices(budgets: Iterable[Budget]) -> None:
    """Check that the list is there if there is a budget.

    Raises:
        MissingExtraError: It is not.
    """
    if any(usd != NO_BUDGET for usd in budgets) and not is_installed():
        raise MissingExtraError(
            wanted_by="usd of keys or workloads", package="genai-prices", extra="cost"
        )


class _ModelPrices:
    """The prices of one model in one service tier during one period."""

    def __init__(self, model: str, at: datetime, tier: str, provider: str) -> None:
        """Find the model in the list.

        Raises:
            LookupError: The list does not have it.
        """
        self._price, self._ratio = partial(_calculate, provider, model, at, tier), Decimal(1)
        one = {"input_tokens": 1, "output_tokens": 1}
        standard = _calculate(provider, model, at, "", one)
        if tier and self._price(one).total_price == standard.total_price:
            self._price, self._ratio = (
                partial(_calculate, provider, model, at, ""),
                TIER_RATIOS[tier],
            )
        prices = vars(standard.model_price).values()
        tiered = [tier for price in prices for tier in getattr(price, "tiers", ())]
        self._starts = sorted({tier.start for tier in tiered})
        """Above how many input tokens other prices hold."""
        self._rates: dict[int, tuple[float, float, float, float]] = {}

    def cost(self, tokens: int, cached: int, output: int, details: Mapping[str, int]) -> float:
        """Return what a request costs; *details* are kinds of tokens with prices of their own."""
        if details:
            counts = {"input_tokens": tokens, "output_tokens": output}
            return self._total({**counts, "cache_read_tokens": cached, **details})
        place = bisect_left(self._starts, tokens)
        if place not in self._rates:
            size = self._starts[place - 1] + 1 if place else 1
            fee = self._total({})  # of a request, such as Perplexity's
            whole = self._total({"input_tokens": size})
            cached_too = self._total({"input_tokens": size, "cache_read_tokens": 1})
            answered = self._total({"input_tokens": size, "output_tokens": 1})
            self._rates[place] = fee, (whole - fee) / size, cached_too - whole, answered - whole
        fee, of_input, of_cached, of_output = self._rates[place]
        return max(fee + tokens * of_input + cached * of_cached + output * of_output, 0.0)

    def _total(self, counts: Mapping[str, int]) -> float:
        return float(self._price(counts).total_price * self._ratio)


class PriceList:
    """Prices requests. Threads may share it.

    The first price imports the list, in the thread of the call whose price it is: it takes 5 MB,
    and programs that only look at keys need none.
    """

    def __init__(self) -> None:
        """Import nothing yet."""
        self.is_installed = is_installed()
        self.is_read = not self.is_installed
        """Pricing imports nothing any more, so that a background thread may do it."""

    def cost(
        self, usage: Usage, model: str, at: float, tier: str = "", provider: str = DEFAULT
    ) -> float | None:
        """Return what a request cost, in US dollars; None where that is not known.

        Args:
            usage: What the response reported.
            model: As asked for: it counts where the response names no model with a known price.
            at: When it was sent, epoch seconds.
            tier: The service tier in which it was served; one that is not known has the standard
                price.
            provider: Its name in the list.
        """
        tokens, output = usage.input_tokens, usage.output_tokens
        if not self.is_installed or (tokens is None and output is None):
            return None
        self.is_read = True
        served = usage.model or model
        prices = _find(served, at, tier, provider) or _find(model, at, tier, provider)
        if prices is None:
            return None
        cached = min(usage.cached_tokens or 0, tokens or 0)
        return prices.cost(tokens or 0, cached, output or 0, dict(usage.details))

    def estimate(
        self, model: str, tokens: int, at: float, tier: str = "", provider: str = DEFAULT
    ) -> tuple[float, float]:
        """Return what a request may cost, in US dollars; 0 where not known.

        Args:
            model: As requested.
            tokens: Of its input.
            at: When it is sent, epoch seconds.
            tier: The service tier that it asks for; likewise.
            provider: Its name in the list.

        Returns:
            Of its input alone, and with the longest answer.
        """
        prices = _find(model, at, tier, provider) if self.is_installed else None
        if prices is None:
            return 0.0, 0.0
        return prices.cost(tokens, 0, 0, {}), prices.cost(tokens, 0, LONGEST_ANSWER, {})


def _find(model: str, at: float, tier: str, provider: str) -> _ModelPrices | None:
    return _prices(model, int(at // PERIOD_S), tier if tier in TIER_RATIOS else "", provider)


@lru_cache(maxsize=MODELS_KEPT)
def _prices(model: str, period: int, tier: str, provider: str) -> _ModelPrices | None:
    try:
        return _ModelPrices(model, datetime.fromtimestamp(period * PERIOD_S, UTC), tier, provider)
    except LookupError:
        return None


def _calculate(
    provider: str, model: str, at: datetime, tier: str, counts: Mapping[str, int]
) -> Any:
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - optional, and slow to import

    return calc_price(
        # Where audio is cached, the list wants to know how much, be it nothing.
        Usage(**{"cache_audio_read_tokens": 0, **counts}),
        model,
        provider_id=provider,
        genai_request_timestamp=at,
        price_context={"service_tier": tier} if tier else None,
    )
