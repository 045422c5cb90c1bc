"""The pool for programs that choose keys by hand: the same state, the same rules.

manager = keyrot_middleware.get_key_manager()
key = manager.select_key("gemini-3.8-flash", tokens_needed=1200)
try:
    response = call_gemini_somehow(key.api_key)
except Exception as error:
    manager.report_error(key.key_id, error)
else:
    manager.report_success(key.key_id, tokens_used=1180)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, NamedTuple, Unpack

from . import providers
from ._install import NO_KEY_FOUND, open_pool
from .clients.errors import facts_from_reported_error
from .clients.no_key import why_no_key
from .clients.pooled_calls import PooledCalls
from .core.commands import Failed, StreamEnd, StreamOpened
from .core.flow import CallState, Exhausted
from .core.model import (
    DEFAULT_PLATFORM,
    NO_USAGE,
    Block,
    CallInfo,
    Lease,
    Unavailable,
    Usage,
    Verdict,
)
from .errors import ConfigError, handle_internal_error
from .keys_file import one_of
from .locks import Lock
from .monitoring.report import pool_health, source_of
from .monitoring.view import HealthStatus
from .providers.gemini.replies import parse_usage
from .providers.keys import StaysHere, display, hide_secrets
from .runtime import current_pool
from .runtime.driver import AsyncDriver, SyncDriver, complete
from .runtime.held import Held
from .runtime.pool import Pool, PoolClock, SystemClock
from .runtime.runner import ErrorMaker
from .secrets import Secret
from .settings import SettingArguments, hide_keys, load
from .telemetry import observe

LEASE_S = 600.0
"""Seconds after which a selection without a report counts as abandoned."""


class Report(NamedTuple):
    """What a failure means."""

    failure: str
    """Its class, a row of docs/failures.md, such as `quota_minute`; `unknown` blames no key."""
    try_another_key: bool
    """False: the request itself is at fault, or waiting is what helps; do not walk the pool."""
    cooldown_until: datetime | None
    """Until when the key, or its project, is cooling down; None: not at all."""


class LeasedKey(StaysHere):
    """A key that is leased for one request."""

    __slots__ = ("_value", "key_id", "report", "usage")

    def __init__(self, key_id: str, value: Secret) -> None:
        self.key_id = key_id
        self._value = value
        self.usage = NO_USAGE
        """What the request used, as far as it is known; else the reserved tokens count."""
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
            ValueError: The number of tokens is negative or no integer.
        """
        self.usage = _reported_usage(tokens_used, response)

    def __repr__(self) -> str:
        return f"LeasedKey(key_id={self.key_id!r})"


class KeyLease(Held):
    """The use of one key: a context manager, for `with` and for `async with`; it is used once."""

    def __init__(
        self, calls: PooledCalls, make: Callable[[], CallState], no_key: ErrorMaker
    ) -> None:
        """Lease nothing yet.

        Args:
            calls: The pool.
            make: Makes the call, at the start of the block.
            no_key: Makes the exception where no key is available.
        """
        self._calls, self._make, self._no_key = calls, make, no_key
        self._is_used = False
        self.key: LeasedKey
        self.leased_at = 0.0
        """When, epoch seconds."""

    def __enter__(self) -> LeasedKey:
        return complete(self._begin(SyncDriver))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        complete(self.finish(error))

    async def __aenter__(self) -> LeasedKey:
        return await self._begin(AsyncDriver)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.finish(error)

    async def _begin(self, kind: type[SyncDriver]) -> LeasedKey:
        if self._is_used:
            raise RuntimeError("a lease is used once: call lease() for each request")
        self._is_used = True
        call, pool = self._make(), self._calls.pool
        observer = observe(pool.observers, call.info, handle_internal_error)
        driver = kind(pool, call, self._send, observer)
        try:
            await driver.run()
        except Exhausted as exhausted:
            error = self._no_key(exhausted)
        else:
            self.hold(driver)
            return self.key
        raise error

    async def _send(self, lease: Lease) -> StreamOpened:
        self.leased_at = lease.at
        self.key = LeasedKey(lease.key_id, self._calls.pool.secrets.value(lease.key_id))
        return StreamOpened(self, answered=False)

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage so far, and what *error* means; to its call the use is a stream."""
        failed = None
        if error is not None:
            facts = facts_from_reported_error(error, self._calls.pool.secrets.redact)
            failed = Failed(facts, error)
        return StreamEnd(self.key.usage, (), failed)

    async def finish(self, error: BaseException | None) -> Report | None:
        """Settle the lease; return what an exception of the program's means."""
        driver = self.driver
        assert driver is not None  # noqa: S101 - the block was entered
        if error is not None and not isinstance(error, Exception):
            self.abandon()  # a cancellation or an interrupt is no failure of the key
            return None
        call = driver.call
        await self.ended(error)
        call.last = None  # the frames of the exception are the program's
        if not call.attempts:
            return None
        attempt = call.attempts[-1]
        if attempt.verdict.rejected:
            await driver.blocking(partial(self._look_up, attempt.key_id))
        self.key.report = _report(attempt.verdict, attempt.until)
        return self.key.report

    def _look_up(self, key_id: str) -> None:
        pool = self._calls.pool
        if pool.refresh(key_id):
            pool.log_replaced(frozenset({key_id}))


class KeyManager:
    """Choose keys by hand, and report what came of them. Safe from any thread."""

    def __init__(
        self,
        pool: Pool | None = None,
        /,
        *,
        clock: PoolClock | None = None,
        **settings: Unpack[SettingArguments],
    ) -> None:
        """Open a pool of its own from *settings* (as `install()` takes them), or share *pool*.

        Raises:
            ConfigError: A setting or keys.json is wrong, or there is no key at all.
        """
        hide_keys(settings)
        self._pool = pool or _own_pool(clock or SystemClock(), settings)
        self._owns_pool = pool is None
        self.closed = False
        """`close()` was called."""
        self._lock = Lock()
        self._calls = PooledCalls(self._pool, self._pool.allowed_origins)
        self._out: dict[str, deque[KeyLease]] = {}

    def lease(
        self,
        model_preference: str | None = None,
        tokens_needed: int = 0,
        exclude: Collection[str] = (),
        platform: str = DEFAULT_PLATFORM,
    ) -> KeyLease:
        """Lease a key for one request: `with manager.lease(model) as key`, or `async with`.

        The key is reserved at the start of the block, without waiting. A block that ends normally
        is a success; `key.record_usage()` books its true input tokens. An exception is reported as
        by `report_error()` and raised again, with keys in it redacted and a note of the key. A
        cancellation or an interrupt does not count as a failure of the key.

        Args:
            model_preference: As for `select_key()`; so are the others.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose.
            platform: As for `select_key()`.

        Raises:
            KeyPoolExhausted: At the start of the block: no key is available.
            ValueError: The number of tokens is negative or no integer, or the platform is unknown.
        """
        _check_count("tokens_needed", tokens_needed)
        one_of(platform, providers.platforms())
        excluded = frozenset((exclude,) if isinstance(exclude, str) else exclude)
        pool, model = self._pool, model_preference or ""
        info = CallInfo(model, "generateContent", tokens_needed, platform=platform)

        def no_key(exhausted: Exhausted) -> BaseException:
            found = exhausted.unavailable
            known = excluded & pool.selector.keys.keys()
            blocks = dict.fromkeys(known, Block("excluded", found.at, waitable=True)) | found.blocks
            from .clients.exhausted import exhausted as error  # noqa: PLC0415 - it imports the SDK

            all_blocked = Exhausted(Unavailable(found.at, blocks))
            return error(why_no_key(pool, all_blocked, providers.of(platform)), None)

        def make() -> CallState:
            self._forget_older_than(pool.clock.time() - LEASE_S)
            call = self._calls.call_state(info, "", 0.0)
            call.excluded |= dict.fromkeys(excluded, inf)
            return call

        return KeyLease(self._calls, make, no_key)

    def select_key(
        self,
        model_preference: str | None = None,
        tokens_needed: int = 0,
        exclude: Collection[str] = (),
        platform: str = DEFAULT_PLATFORM,
    ) -> LeasedKey:
        """Reserve a request on the best key that is available now; never waits.

        Args:
            model_preference: The model the request is for; its keys go first, its quota is used.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose, such as those that failed this job already.
            platform: `vertex_express` for a request to Vertex AI in express mode. Keys of one
                platform are never chosen for the other.

        Raises:
            KeyPoolExhausted: No key is available; `retry_at` and `reasons` say when and why.
            ValueError: The number of tokens is negative or no integer, or the platform is unknown.
        """
        use = self.lease(model_preference, tokens_needed, exclude, platform)
        key = use.__enter__()
        with self._lock:
            self._out.setdefault(key.key_id, deque()).append(use)
        return key

    def report_success(
        self, key_id: str, tokens_used: int | None = None, *, response: Any = None
    ) -> None:
        """Book the true input tokens of the oldest open selection of *key_id*.

        Args:
            key_id: As selected.
            tokens_used: Input tokens as the server counted them.
            response: Instead of *tokens_used*: the SDK's response, whose usage is read.

        Raises:
            KeyError: There is no such key.
            ValueError: The number of tokens is negative or no integer.
        """
        usage = _reported_usage(tokens_used, response)
        if use := self._take(key_id):
            use.key.usage = usage
            complete(use.finish(None))

    def report_error(self, key_id: str, error: BaseException) -> Report:
        """Report that the request failed: the key is judged by the rules of the pool.

        Without an open selection of the key, such as ten minutes later, the error is only named.

        Args:
            key_id: As selected.
            error: The SDK's exception, or that of another HTTP library (docs/quick-reference.md).
                Keys in it are redacted in place.

        Returns:
            What it was, and whether another key may serve the same request.

        Raises:
            KeyError: There is no such key.
        """
        use, pool = self._take(key_id), self._pool
        if use is not None:
            return complete(use.finish(error)) or _report(Verdict("unknown"), None)
        if not isinstance(error, Exception):
            return _report(Verdict("unknown"), None)
        facts = facts_from_reported_error(error, pool.secrets.redact)
        platform = pool.selector.keys[key_id].platform
        info = CallInfo("", "generateContent", platform=platform)
        return _report(providers.of(platform).classify(facts, info, pool.clock.time()), None)

    def reset(self, key_id: str) -> None:
        """Make a key available again, and forget its learned limits; see `reset()`.

        Raises:
            KeyError: There is no such key.
        """
        self._pool.reset(key_id)

    def get_health_status(self) -> dict[str, HealthStatus]:
        """Report how each key is, by its id."""
        return pool_health(self._pool)[0]

    def close(self) -> None:
        """Settle what was selected and not reported; stop the background work of an own pool.

        A pool that `install()` opened goes on. A closed manager is not used again.
        """
        self.closed = True
        self._forget_older_than(inf)
        if self._owns_pool:
            self._pool.close()

    def __enter__(self) -> KeyManager:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def explain(
        self,
        model: str,
        tokens: int = 0,
        workload: str = "",
        platform: str = DEFAULT_PLATFORM,
    ) -> dict[str, Any]:
        """Return which key a call would get now; nothing is sent, and nothing reserved.

        Args:
            model: As in a call.
            tokens: Input tokens of the call.
            workload: Whose keys are preferred; "" for none.
            platform: `vertex_express` for a call to Vertex AI in express mode.

        Returns:
            `key_id`, or None where no key is available; `sentence`, the same for people; and
            `keys`, a dict for each key with `key_id, project, position, available, reason,
            sentence, available_at`. Keys of one position are tried together, lower ones first.

        Raises:
            KeyrotError: The tokens are negative.
            ValueError: There is no such platform.
        """
        one_of(platform, providers.platforms())
        return source_of(self._pool).explain(model, tokens, workload, platform)

    def _forget_older_than(self, at: float) -> None:
        """Settle selections without a report: a forgotten probe would block its key forever."""
        with self._lock:
            stale = self._pop_older_than(at)
        for use in stale:
            use.abandon()

    def _pop_older_than(self, at: float) -> list[KeyLease]:
        """Take old selections out; the lock is held."""
        stale: list[KeyLease] = []
        for waiting in self._out.values():
            while waiting and waiting[0].leased_at < at:
                stale.append(waiting.popleft())
        return stale

    def _take(self, key_id: str) -> KeyLease | None:
        """Return the open selection of a key, the oldest; None where there is none."""
        with self._lock:
            waiting = self._out.get(key_id)
            if waiting:
                return waiting.popleft()
        if key_id not in self._pool.selector.keys:
            named, known = hide_secrets(key_id), ", ".join(self._pool.selector.keys)
            raise KeyError(f"no key {named!r} in pool {self._pool.name!r}; there are: {known}")
        return None


def _report(verdict: Verdict, until: float | None) -> Report:
    at = datetime.fromtimestamp(until, UTC) if until is not None else None
    return Report(verdict.failure, verdict.rotate, at)


def get_key_manager() -> KeyManager:
    """Return the process-wide manager: of the installed pool, else of one from the environment."""
    with _shared_lock:
        pool = current_pool()
        name = pool.name if pool else None
        known = _shared.get(name)
        if known is None or known.closed or (pool and known._pool is not pool):
            _shared[name] = KeyManager(pool)
        return _shared[name]


_shared: dict[str | None, KeyManager] = {}
_shared_lock = Lock()


def _own_pool(clock: PoolClock, settings: SettingArguments) -> Pool:
    config = load(**settings)
    if not config.settings.enabled:
        raise ConfigError(
            "KeyManager: switched off by ENABLE_KEY_ROTATION, so there is no pool to choose keys "
            "from; KeyManager(enabled=True) opens one all the same"
        )
    pool = open_pool(config, clock)
    if pool is None:
        raise ConfigError(f"KeyManager: {NO_KEY_FOUND.partition('; ')[0]}")
    return pool


def _reported_usage(tokens_used: int | None, response: Any) -> Usage:
    """Return the usage that is given: the input tokens alone, or that of an SDK's response.

    Raises:
        ValueError: The number of tokens is negative or no integer.
    """
    if tokens_used is not None:
        _check_count("tokens_used", tokens_used)
        return Usage(tokens_used)
    if not hasattr(response, "model_dump"):
        return NO_USAGE
    fields = {"usage_metadata", "model_version"}
    return parse_usage(
        response.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    )


def _check_count(name: str, value: object) -> None:
    """Refuse what would spoil the windows that it is counted in.

    Raises:
        ValueError: It is negative or no integer.
    """
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: found {display(value)}; allowed: a whole number from 0")
