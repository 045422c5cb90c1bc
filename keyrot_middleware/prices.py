"""What a request costs by the price list of genai-prices (the extra `cost`).

The list comes with the package: nothing is fetched. It is imported when the first price is asked
for. Within a tier (of long contexts) a price is linear in the counts of tokens, so the list is
asked once for the rate of each kind of token, and a request costs a few multiplications.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec

from .core.model import Candidate, Usage
from .errors import MissingExtraError

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


class _Rates:
    """The prices of one model in one tier: dollars for each token of a kind."""

    __slots__ = ("_at", "_model", "_rates", "_size", "cached", "input", "output")

    def __init__(self, model: str, at: datetime, size: int) -> None:
        """Ask for the rates of all requests of a tier, of which *size* input tokens are one."""
        self._model, self._at, self._size = model, at, size
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
        return _calculate(self._model, self._at, self._size, dict.fromkeys(kinds, 1))


class _ModelPrices:
    """The prices of one model during one period."""

    __slots__ = ("_at", "_model", "_rates", "_starts")

    def __init__(self, model: str, at: datetime) -> None:
        """Find the model in the list.

        Raises:
            LookupError: The list does not have it.
        """
        self._model, self._at = model, at
        self._starts = _tiers(model, at)
        self._rates: dict[int, _Rates] = {}

    def of_size(self, input_tokens: int) -> _Rates:
        """Return the rates of requests with so many input tokens."""
        tier = bisect_left(self._starts, input_tokens)
        rates = self._rates.get(tier)
        if rates is None:
            first = self._starts[tier - 1] + 1 if tier else 1
            rates = self._rates[tier] = _Rates(self._model, self._at, first)
        return rates


class PriceList:
    """Prices requests. Threads may share it."""

    def __init__(self) -> None:
        """Import nothing yet."""
        self.is_installed = is_installed()
        self._models: dict[tuple[str, int], _ModelPrices | None] = {}
        self._unknown: set[str] = set()

    def cost(self, usage: Usage, model: str, at: float) -> float | None:
        """Return what a request cost, in US dollars; None where that is not known.

        Args:
            usage: What the response reported.
            model: As asked for: it counts where the response names no model with a known price.
            at: When it was sent, epoch seconds.
        """
        tokens, output = usage.input_tokens, usage.output_tokens
        if not self.is_installed or (tokens is None and output is None):
            return None
        prices = self._find(usage.model or model, at)
        if prices is None and usage.model != model:
            prices = self._find(model, at)
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

    def estimate(self, model: str, tokens: int, at: float) -> tuple[float, float]:
        """Return what a request may cost, in US dollars; 0 where not known.

        Args:
            model: As requested.
            tokens: Of its input.
            at: When it is sent, epoch seconds.

        Returns:
            Of its input alone, and with the longest answer.
        """
        prices = self._find(model, at) if self.is_installed else None
        if prices is None:
            return 0.0, 0.0
        rates = prices.of_size(tokens)
        return tokens * rates.input, tokens * rates.input + LONGEST_ANSWER * rates.output

    def _find(self, model: str, at: float) -> _ModelPrices | None:
        name = model, int(at // PERIOD_S)
        if name in self._models:
            return self._models[name]
        if len(self._models) >= MODELS_KEPT:
            self._models.clear()
        try:
            found = _ModelPrices(model, datetime.fromtimestamp(name[1] * PERIOD_S, UTC))
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


def _calculate(model: str, at: datetime, size: int, counts: Mapping[str, int]) -> Decimal:
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - optional, and slow to import

    # Where audio is cached, the list wants to know how much, be it nothing.
    usage = Usage(**{INPUT: size, "cache_audio_read_tokens": 0, **counts})
    price = calc_price(usage, model, provider_id=PROVIDER, genai_request_timestamp=at)
    return price.total_price


def _tiers(model: str, at: datetime) -> list[int]:
    """Return above how many input tokens other prices hold."""
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - as above
    from genai_prices.types import TieredPrices  # noqa: PLC0415 - as above

    price = calc_price(
        Usage(input_tokens=1), model, provider_id=PROVIDER, genai_request_timestamp=at
    )
    tiered = [
        found for found in vars(price.model_price).values() if isinstance(found, TieredPrices)
    ]
    return sorted({tier.start for prices in tiered for tier in prices.tiers})
