"""`KeyManager.lease()`: a key for one request, settled when the block ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from .adapters.reading import with_served_tier
from .core.model import NO_USAGE, CallInfo, Lease, Usage
from .core.text import display
from .core.usage import parse_usage
from .secrets import Secret
from .state.base import Holder
from .state.threads import StateThreads

__all__ = ["KeyLease", "LeasedKey", "Report", "check_count", "reported_usage"]


class Report(NamedTuple):
    """What a failure means."""

    failure: str
    """Its class, a row of docs/failures.md, such as `quota_minute`; `unknown` blames no key."""
    try_another_key: bool
    """False: the request itself is at fault, or waiting is what helps; do not walk the pool."""
    cooldown_until: datetime | None
    """Until when the key, or its project, is cooling down; None: not at all."""


class LeasedKey:
    """A key that is leased for one request."""

    __slots__ = ("_value", "key_id", "report", "tokens_used", "usage")

    def __init__(self, key_id: str, value: Secret) -> None:
        self.key_id = key_id
        self._value = value
        self.tokens_used: int | None = None
        """Input tokens as the server counted them; None: unknown, the reserved ones count."""
        self.usage = NO_USAGE
        """All that is known of what the request used."""
        self.report: Report | None = None
        """After the block: what its exception means; None where there was none."""

    @property
    def api_key(self) -> str:
        """The key itself."""
        return str(self._value.reveal())

    def record_usage(self, tokens_used: int | None = None, *, response: Any = None) -> None:
        """Record what the request used, which is booked when the block ends.

        Args:
            tokens_used: Input tokens as the server counted them.
            response: Instead of *tokens_used*: the SDK's response, whose usage is read.

        Raises:
            ValueError: The tokens are no whole number from 0.
        """
        self.usage = reported_usage(tokens_used, response)
        self.tokens_used = self.usage.input_tokens

    def __repr__(self) -> str:
        return f"LeasedKey(key_id={self.key_id!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a leased key cannot be pickled or copied: its value stays where it is")


Reserve = Callable[[Holder], tuple[Lease, CallInfo, Secret]]
"""Reserves a request for a holder; returns the lease, its call and the value of its key."""
SettleLease = Callable[[Lease, CallInfo, Usage, BaseException | None], Report | None]
"""Settles a lease with the usage and the exception of its block."""


class KeyLease:
    """A context manager, for `with` and for `async with`; it is used once."""

    __slots__ = ("__weakref__", "_call", "_ended", "_key", "_reserve", "_settle", "_threads")

    def __init__(self, reserve: Reserve, settle: SettleLease, threads: StateThreads) -> None:
        self._reserve = reserve
        self._settle = settle
        self._threads = threads
        self._call: tuple[Lease, CallInfo] | None = None
        self._key: LeasedKey | None = None
        self._ended = False

    def is_alive(self) -> bool:
        """Report whether the block has not ended; see `state.base.Holder`."""
        return not self._ended

    def __enter__(self) -> LeasedKey:
        self._begin()
        return self._enter(self._reserve(self))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit(error)

    async def __aenter__(self) -> LeasedKey:
        self._begin()
        reserve = partial(self._reserve, self)
        return self._enter(await self._threads.run(reserve, self._give_back))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Shielded: a task that is cancelled meanwhile must not leave the lease unsettled.
        await asyncio.shield(asyncio.ensure_future(self._threads.run(partial(self._exit, error))))

    def _begin(self) -> None:
        if self._call is not None or self._ended:
            raise RuntimeError("a lease is used once: call lease() for each request")

    def _enter(self, reserved: tuple[Lease, CallInfo, Secret]) -> LeasedKey:
        lease, info, value = reserved
        self._call = lease, info
        self._key = LeasedKey(lease.key_id, value)
        return self._key

    def _exit(self, error: BaseException | None) -> None:
        assert self._call is not None and self._key is not None  # noqa: S101 - was entered
        self._ended = True
        self._key.report = self._settle(*self._call, self._key.usage, error)

    def _give_back(self, reserved: tuple[Lease, CallInfo, Secret]) -> None:
        """Settle what was reserved for a task that was cancelled meanwhile."""
        self._ended = True
        lease, info, _ = reserved
        self._settle(lease, info, NO_USAGE, asyncio.CancelledError())


def reported_usage(tokens_used: int | None, response: Any) -> Usage:
    """Return the usage that is given: the input tokens alone, or that of an SDK's response.

    Raises:
        ValueError: The tokens are no whole number from 0.
    """
    if tokens_used is not None:
        check_count("tokens_used", tokens_used)
        return Usage(tokens_used)
    meta = getattr(response, "usage_metadata", None)
    counts = {
        "promptTokenCount": getattr(meta, "prompt_token_count", None),
        "toolUsePromptTokenCount": getattr(meta, "tool_use_prompt_token_count", None),
        "candidatesTokenCount": getattr(meta, "candidates_token_count", None),
        "thoughtsTokenCount": getattr(meta, "thoughts_token_count", None),
        "cachedContentTokenCount": getattr(meta, "cached_content_token_count", None),
    }
    known = {name: count for name, count in counts.items() if count is not None}
    model = getattr(response, "model_version", None)
    usage = parse_usage({"usageMetadata": known, "modelVersion": model})
    http = getattr(response, "sdk_http_response", None)
    return with_served_tier(usage, getattr(http, "headers", None))


def check_count(name: str, value: object) -> None:
    """Refuse what would spoil the windows that it is counted in.

    Raises:
        ValueError: It is no whole number from 0.
    """
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: found {display(value)}; allowed: a whole number from 0")
