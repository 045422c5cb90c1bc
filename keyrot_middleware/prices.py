"""What a request costs by the price list of genai-prices (the extra `cost`).

The list comes with the package: nothing is fetched. It is imported when the first price is asked
for. Within a range of input tokens a price is linear in the counts of tokens, so the list is asked
once for the rate of each kind of token, and a request costs a few multiplications.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from .core.model import Candidate, Usage
from .errors import MissingExtraError

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

__all__ = ["PriceList", "is_installed", "require_prices"]

_log = logging.getLogger("keyrot_middleware")

PROVIDER = "google"
MODELS_KEPT = 1_000
"""Models whose rates are kept, and unknown models that are logged."""
PERIOD_S = 3_600.0
"""Prices begin at full hours, so that rates hold for one."""

LONGEST_ANSWER = 65_536
"""Output tokens, with thoughts: the limit of the models of today."""

INPUT, CACHED, OUTPUT = "input_tokens", "cache_read_tokens", "output_tokens"
_PART_OF: Mapping[str, tuple[str, ...]] = {
    CACHED: (),
    OUTPUT: (),
    "input_audio_tokens": (),
    "input_image_tokens": (),
    "input_video_tokens": (),
    "cache_audio_read_tokens": (CACHED, "input_audio_tokens"),
    "output_audio_tokens": (OUTPUT,),
    "output_image_tokens": (OUTPUT,),
    "output_video_tokens": (OUTPUT,),
}
"""Kinds of tokens that may have a price of their own, and what else they are counted as."""


def is_installed() -> bool:
    """Return whether genai-prices is installed."""
    try:
        return find_spec("genai_prices") is not None
    except (ImportError, ValueError):  # something else stands in its place in sys.modules
        return False


def require_prices(keys: Iterable[Candidate]) -> None:
    """Import the list if a key has a budget, so that no call waits for it.

    Raises:
        MissingExtraError: A key has `usd_per_day`, and genai-prices is not installed.
    """
    if all(key.usd_per_day is None for key in keys):
        return
    if not is_installed():
        raise MissingExtraError(
            wanted_by="usd_per_day in keys.json", package="genai-prices", extra="cost"
        )
    import_module("genai_prices")


TIER_RATIOS: Mapping[str, Decimal] = {"flex": Decimal("0.5"), "priority": Decimal("1.8")}
"""What a request in a service tier costs, compared with a standard one, where the list has no price
for it. docs/cost.md has the source."""


class _Price(NamedTuple):
    """What the list is asked for: a model at a time, and how its price is adjusted."""

    model: str
    at: datetime
    tier: str | None
    """The service tier whose price to ask for; None: the standard price."""
    ratio: Decimal
    """What that price is multiplied by."""

    def __call__(self, size: int, **counts: int) -> Decimal:
        """Return the price of a request with *size* input tokens."""
        return _calculate(self.model, self.at, size, counts, self.tier).total_price * self.ratio


class _Rates:
    """The prices of one model for one range of input tokens: dollars for each token of a kind."""

    __slots__ = ("_price_of", "_rates", "_size", "cached", "input", "output")

    def __init__(self, price_of: _Price, size: int) -> None:
        """Ask for the rates of all requests of a range, of which *size* input tokens are one."""
        self._price_of, self._size = price_of, size
        self.input = float(self._price() / size)
        self._rates: dict[str, Decimal] = {}
        self.cached, self.output = self.more(CACHED), self.more(OUTPUT)

    def more(self, kind: str) -> float:
        """Return by how much a token of *kind* changes the price of a request."""
        return float(self._more(kind))

    def _more(self, kind: str) -> Decimal:
        found = self._rates.get(kind)
        if found is None:
            wider = _PART_OF[kind]
            found = self._price(kind, *wider) - self._price()
            found -= sum(map(self._more, wider), Decimal(0))
            self._rates[kind] = found
        return found

    def _price(self, *kinds: str) -> Decimal:
        return self._price_of(self._size, **dict.fromkeys(kinds, 1))


class _ModelPrices:
    """The prices of one model in one service tier during one period."""

    __slots__ = ("_price_of", "_rates", "_starts")

    def __init__(self, model: str, at: datetime, tier: str) -> None:
        """Find the model in the list.

        Raises:
            LookupError: The list does not have it.
        """
        self._price_of = _find_price(model, at, tier)
        self._starts = _ranges(self._price_of)
        self._rates: dict[int, _Rates] = {}

    def of_size(self, input_tokens: int) -> _Rates:
        """Return the rates of requests with so many input tokens."""
        place = bisect_left(self._starts, input_tokens)
        rates = self._rates.get(place)
        if rates is None:
            first = self._starts[place - 1] + 1 if place else 1
            rates = self._rates[place] = _Rates(self._price_of, first)
        return rates


class PriceList:
    """Prices requests. Threads may share it."""

    def __init__(self) -> None:
        """Import nothing yet."""
        self.is_installed = is_installed()
        self._models: dict[tuple[str, int, str], _ModelPrices | None] = {}
        self._unknown: set[str] = set()

    def cost(self, usage: Usage, model: str, at: float, tier: str = "") -> float | None:
        """Return what a request cost, in US dollars; None where that is not known.

        Args:
            usage: What the response reported.
            model: As asked for: it counts where the response names no model with a known price.
            at: When it was sent, epoch seconds.
            tier: The service tier in which it was served; one that is not known has the standard
                price.
        """
        tokens, output = usage.input_tokens, usage.output_tokens
        if not self.is_installed or (tokens is None and output is None):
            return None
        prices = self._find(usage.model or model, at, tier)
        if prices is None and usage.model != model:
            prices = self._find(model, at, tier)
        if prices is None:
            self._log_unknown(usage.model or model)
            return None
        tokens = tokens or 0
        rates = prices.of_size(tokens)
        cost = tokens * rates.input + (output or 0) * rates.output
        cost += min(usage.cached_tokens or 0, tokens) * rates.cached
        for kind, count in usage.details:
            cost += count * rates.more(kind)
        return max(cost, 0.0)

    def estimate(self, model: str, tokens: int, at: float, tier: str = "") -> tuple[float, float]:
        """Return what a request may cost, in US dollars; 0 where not known.

        Args:
            model: As requested.
            tokens: Of its input.
            at: When it is sent, epoch seconds.
            tier: The service tier that it asks for; likewise.

        Returns:
            Of its input alone, and with the longest answer.
        """
        prices = self._find(model, at, tier) if self.is_installed else None
        if prices is None:
            return 0.0, 0.0
        rates = prices.of_size(tokens)
        return tokens * rates.input, tokens * rates.input + LONGEST_ANSWER * rates.output

    def _find(self, model: str, at: float, tier: str) -> _ModelPrices | None:
        name = model, int(at // PERIOD_S), tier if tier in TIER_RATIOS else ""
        if name in self._models:
            return self._models[name]
        if len(self._models) >= MODELS_KEPT:
            self._models.clear()
        try:
            found = _ModelPrices(model, datetime.fromtimestamp(name[1] * PERIOD_S, UTC), name[2])
        except LookupError:
            found = None
        self._models[name] = found
        return found

    def _log_unknown(self, model: str) -> None:
        """Log once that a model has no price."""
        if model in self._unknown or len(self._unknown) >= MODELS_KEPT:
            return
        self._unknown.add(model)
        _log.warning("no price is known for model %r: its calls are not part of any cost", model)


def _find_price(model: str, at: datetime, tier: str) -> _Price:
    """Return the price of a service tier: the list's own, else a ratio of the standard price."""
    price_of = _Price(model, at, tier or None, Decimal(1))
    standard = price_of._replace(tier=None)
    if tier and price_of(1, output_tokens=1) == standard(1, output_tokens=1):
        return standard._replace(ratio=TIER_RATIOS[tier])
    return price_of


def _calculate(
    model: str, at: datetime, size: int, counts: Mapping[str, int], tier: str | None
) -> PriceCalculation:
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - optional, and slow to import

    return calc_price(
        # Where audio is cached, the list wants to know how much, be it nothing.
        Usage(**{INPUT: size, "cache_audio_read_tokens": 0, **counts}),
        model,
        provider_id=PROVIDER,
        genai_request_timestamp=at,
        price_context={"service_tier": tier} if tier else None,
    )


def _ranges(price: _Price) -> list[int]:
    """Return above how many input tokens other prices hold."""
    from genai_prices.types import TieredPrices  # noqa: PLC0415 - as above

    found = vars(_calculate(price.model, price.at, 1, {}, price.tier).model_price).values()
    tiered = [prices for prices in found if isinstance(prices, TieredPrices)]
    return sorted({tier.start for prices in tiered for tier in prices.tiers})
