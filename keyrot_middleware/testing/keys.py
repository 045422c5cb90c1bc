"""Keys, models and limits as Google has them: quotas count per project and model bucket.

Source: docs/gemini-api.md#quota. The minute starts at :00, the day at midnight Pacific time.
"""

from __future__ import annotations

import asyncio
import secrets
import string
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from keyrot_middleware.core.model import DEFAULT_ZONE, Limits
from keyrot_middleware.core.windows import day_of, next_midnight
from keyrot_middleware.locks import Lock
from keyrot_middleware.providers.gemini.models import CURRENT_MODEL, REPLACED

Tier = Literal["free", "paid"]
Style = Literal["standard", "auth"]
LimitName = Literal["rpm", "tpm", "rpd"]
_ALPHABET = string.ascii_letters + string.digits
# Prefix and length of what follows: a standard key (AIza + 35) and an auth key (AQ. + 50).
_SHAPES = {"standard": ("AIza", 35), "auth": ("AQ.", 50)}


@dataclass(frozen=True, slots=True)
class FakeKey:
    """A key that the fake service accepts.

    Attributes:
        label: The key's name in the test.
        value: What goes into `x-goog-api-key`; kept out of `repr`.
        project: Owns quota and resources.
        billing_account: Owns spend caps and prepaid credit.
        tier: Selects the quotas that an error names.
        number: The project's number in Google's error bodies.
    """

    label: str
    value: str = field(repr=False)
    project: str
    billing_account: str
    tier: Tier
    number: str


def make_value(style: Style = "standard") -> str:
    """Return a random value in the shape of a Gemini key that contains FAKE.

    Raises:
        ValueError: If `style` is unknown.
    """
    if style not in _SHAPES:
        raise ValueError(f"style {style!r} is unknown: use one of {sorted(_SHAPES)}")
    prefix, length = _SHAPES[style]
    return prefix + "FAKE" + "".join(secrets.choice(_ALPHABET) for _ in range(length - 4))


class KeyRegistry:
    """The keys by value and by label."""

    def __init__(self) -> None:
        self.by_value: dict[str, FakeKey] = {}
        self._by_label: dict[str, FakeKey] = {}
        self._numbers: dict[str, str] = {}
        self.made = 0

    def add(self, label: str, value: str, project: str, account: str, tier: Tier) -> FakeKey:
        """Add a key.

        Raises:
            ValueError: If the label or the value is taken.
        """
        if label in self._by_label or value in self.by_value:
            raise ValueError(f"a key {label!r}, or its value, exists already: choose another")
        number = self._numbers.setdefault(project, str(100_000_000_001 + len(self._numbers)))
        key = FakeKey(label, value, project, account, tier, number)
        self._by_label[label] = self.by_value[value] = key
        self.made += 1
        return key

    def remove(self, label: str) -> None:
        """Remove a key, as if it were deleted in AI Studio."""
        del self.by_value[self.get(label).value]
        del self._by_label[label]

    def get(self, label: str) -> FakeKey:
        """Return the key with that label.

        Raises:
            KeyError: If there is no such key; the message lists the known ones.
        """
        if label not in self._by_label:
            known = ", ".join(sorted(self._by_label)) or "none yet"
            raise KeyError(f"no key {label!r}; add_key() made: {known}")
        return self._by_label[label]


# Models ------------------------------------------------------------------------------------------

_LISTED = (
    *(CURRENT_MODEL, "gemini-flash-latest", "gemini-flash-lite-latest", "gemini-pro-latest"),
    *("gemini-3.7-flash", "gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-3.1-flash-lite"),
    *("gemini-3.1-pro-preview", "gemini-embedding-001", "gemma-4-31b-it"),
    "imagen-4.0-generate-001",
)
# Every name in one of these families is a model, so a test may use any.
_FAMILIES = ("gemini", "gemma", "text-embedding", "embedding", "imagen", "veo", "learnlm", "tuned")


class ModelCatalogue:
    """Models and the aliases of their quota buckets."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.answering: dict[str, str] = {
            **REPLACED,
            "gemini-flash-latest": CURRENT_MODEL,
            "gemini-flash-lite-latest": "gemini-3.5-flash-lite",
        }
        """Models that answer under other names, by these; they share a quota."""
        self.removed: set[tuple[str, str]] = set()
        """Models, each with the API version that lacks it; empty: all of them."""

    def bucket(self, model: str) -> str:
        """Return the quota bucket of a model."""
        return self.aliases.get(model) or self.answering.get(model, model)

    def buckets(self) -> set[str]:
        """Return the quota buckets of the listed models, and those of aliases."""
        return {self.bucket(model) for model in _LISTED} | set(self.aliases.values())

    def serves(self, model: str, version: str) -> bool:
        """Return whether an API version has the model: of a known family, and not removed.

        `v1` has no alias (docs/gemini-api.md#v1-and-v1beta).
        """
        is_alias = model.endswith("-latest")
        removed = not self.removed.isdisjoint({(model, ""), (model, version)})
        return model.startswith(_FAMILIES) and not removed and not (is_alias and version == "v1")

    def all(self, version: str) -> list[dict[str, Any]]:
        """Return the models that an API version lists."""
        return [describe_model(model) for model in _LISTED if self.serves(model, version)]


def describe_model(model: str) -> dict[str, Any]:
    """Return a model as `models.get` does."""
    verbs = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
    if "embedding" in model:
        verbs = ["embedContent", "countTextTokens"]
    elif model.startswith("imagen"):
        verbs = ["predict"]
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": verbs,
    }


def list_page(name: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return one page of a list; the token is the index of the next item."""
    token, size = query.get("pageToken", ""), query.get("pageSize", "")
    start = int(token) if token.isdigit() else 0
    end = start + (int(size) if size.isdigit() and int(size) else 50)
    result: dict[str, Any] = {name: items[start:end]} if items[start:end] else {}
    return result | ({"nextPageToken": str(end)} if end < len(items) else {})


# Quotas ------------------------------------------------------------------------------------------


def _over(limits: Limits, other: Limits) -> Limits:
    """Return *limits*, with those of *other* where none is set."""
    pairs = zip(limits, other, strict=True)
    return Limits(*(more if own is None else own for own, more in pairs))


@dataclass(slots=True)
class QuotaUsage:
    """What a project has used in the current minute and day."""

    minute: int
    day: str
    requests: int = 0
    tokens: int = 0
    day_requests: int = 0


def seconds_to_minute(now: float) -> float:
    """Return the seconds from epoch `now` to the next :00; 60 at :00 itself."""
    return 60.0 - now % 60.0


def seconds_to_midnight(now: float) -> float:
    """Return the seconds from epoch `now` to the next midnight Pacific time."""
    return next_midnight(now, DEFAULT_ZONE) - now


class QuotaCounter:
    """Counts the usage of every project and bucket; thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._limits: dict[tuple[str, str | None], Limits] = {}
        self._used: dict[tuple[str, str], QuotaUsage] = {}

    def limit(self, project: str, limits: Limits, bucket: str | None = None) -> None:
        """Set limits of a project, for one bucket or for all; None: no change."""
        self._limits[project, bucket] = _over(limits, self._limits.get((project, bucket), Limits()))

    def limits(self, project: str, bucket: str) -> Limits:
        """Return the limits of a project for a bucket: the bucket's own over those for all."""
        general = self._limits.get((project, None), Limits())
        return _over(self._limits.get((project, bucket), Limits()), general)

    def buckets(self, project: str) -> set[str]:
        """Return the buckets for which a project has limits of their own."""
        return {bucket for of, bucket in self._limits if of == project and bucket is not None}

    def used(self, project: str, bucket: str, now: float) -> QuotaUsage:
        """Return a copy of the usage in the current windows."""
        with self._lock:
            return replace(self._current(project, bucket, now))

    def charge(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> list[LimitName]:
        """Count a request if it fits, atomically.

        Returns:
            The limits it would exceed, in which case nothing was counted; empty if it fits.
        """
        limits = self.limits(project, bucket)
        with self._lock:
            used = self._current(project, bucket, now)
            totals: dict[LimitName, int] = {
                "rpd": used.day_requests + requests,
                "rpm": used.requests + requests,
                "tpm": used.tokens + tokens,
            }
            exceeded = [
                name
                for name, total in totals.items()
                if (most := getattr(limits, name)) is not None and total > most
            ]
            if not exceeded:
                _add(used, requests, tokens)
            return exceeded

    def count(
        self, project: str, bucket: str, now: float, *, requests: int = 1, tokens: int = 0
    ) -> None:
        """Count a request whether it fits or not."""
        with self._lock:
            _add(self._current(project, bucket, now), requests, tokens)

    def _current(self, project: str, bucket: str, now: float) -> QuotaUsage:
        minute, day = int(now // 60), day_of(now, DEFAULT_ZONE)
        used = self._used.setdefault((project, bucket), QuotaUsage(minute, day))
        if used.minute != minute:
            used.minute, used.requests, used.tokens = minute, 0, 0
        if used.day != day:
            used.day, used.day_requests = day, 0
        return used


def _add(used: QuotaUsage, requests: int, tokens: int) -> None:
    used.requests += requests
    used.tokens += tokens
    used.day_requests += requests


class Clock(Protocol):
    """Anything with the time in epoch seconds."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""


class FakeClock:
    """A clock that only moves when a test moves it; safe for threads and tasks.

    Args:
        start: An aware `datetime`, or epoch seconds; by default 12:30:30 UTC on a winter day,
            30 s into a minute and far from the Pacific midnight.

    Raises:
        ValueError: If `start` is a `datetime` without a zone.
    """

    def __init__(self, start: datetime | float = 1_767_270_630.0) -> None:
        if isinstance(start, datetime) and start.tzinfo is None:
            raise ValueError("FakeClock(start=…) needs a datetime with a zone, e.g. tzinfo=UTC")
        self._now = start.timestamp() if isinstance(start, datetime) else float(start)
        self._passed = 0.0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"FakeClock({self.time()!r})"

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Return the seconds that have passed, which setting it back does not change."""
        return self._passed

    def advance(self, seconds: float) -> None:
        """Advance the clock; set it back if `seconds` is negative, as that of a machine may be."""
        with self._lock:
            self._now += seconds
            self._passed += max(0.0, seconds)

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` instead of waiting; by nothing if negative."""
        self.advance(max(0.0, seconds))

    async def asleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` instead of waiting, and let other tasks run once."""
        self.sleep(seconds)
        await asyncio.sleep(0)
