"""A key for one request of a program's own: leased, used by the program, settled by its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from .adapters.foreign_errors import facts_from_reported_error
from .adapters.pooled_calls import PooledCalls
from .adapters.reading import with_served_tier
from .core.commands import Failed, StreamEnd, StreamOpened
from .core.flow import CallState, Exhausted, FailedAttempt
from .core.model import NO_USAGE, Lease, Usage, Verdict
from .core.text import display
from .core.usage import parse_usage
from .runtime import runner
from .secrets import Secret


class Report(NamedTuple):
    """What a failure means."""

    failure: str
    """Its class, a row of docs/failures.md, such as `quota_minute`; `unknown` blames no key."""
    try_another_key: bool
    """False: the request itself is at fault, or waiting is what helps; do not walk the pool."""
    cooldown_until: datetime | None
    """Until when the key, or its project, is cooling down; None: not at all."""


def report(verdict: Verdict, until: float | None) -> Report:
    """Return what a verdict means; *until*, epoch seconds: the end of the cooldown."""
    at = datetime.fromtimestamp(until, UTC) if until is not None else None
    return Report(verdict.failure, verdict.rotate, at)


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
            ValueError: The number of tokens is negative or no integer.
        """
        self.usage = reported_usage(tokens_used, response)
        self.tokens_used = self.usage.input_tokens

    def __repr__(self) -> str:
        return f"LeasedKey(key_id={self.key_id!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a leased key cannot be pickled or copied: its value stays where it is")


class KeyUse:
    """The use of one key, as the stream of a call: its only chunk is the key.

    It ends with what the program says of it. The driver of the call, and so the state, holds the
    lease until then, as for a Live session.
    """

    def __init__(
        self, calls: PooledCalls, call: CallState, no_key: Callable[[Exhausted], BaseException]
    ) -> None:
        """Lease nothing yet.

        Args:
            calls: The pool.
            call: The call.
            no_key: Makes the exception where no key is available.
        """
        self._calls, self._call, self._no_key = calls, call, no_key
        self._error: BaseException | None = None
        """What the program has raised or reported."""
        self._is_read = False
        self._relay: Any = None
        self.key: LeasedKey
        self.leased_at = 0.0
        """When, epoch seconds."""

    def begin(self) -> LeasedKey:
        """Lease a key, without waiting.

        Raises:
            KeyPoolExhausted: None is available.
        """
        pool, call = self._calls.pool, self._call
        key, self._relay = runner.hold(pool, call, self._send, self._no_key, self._observer())
        return key  # type: ignore[no-any-return]

    async def abegin(self) -> LeasedKey:
        """Async version of `begin`."""
        pool, call = self._calls.pool, self._call
        observer, no_key = self._observer(), self._no_key
        key, self._relay = await runner.ahold(pool, call, self._asend, no_key, observer)
        return key  # type: ignore[no-any-return]

    def finish(self, error: BaseException | None) -> Report | None:
        """Settle the lease; return what an exception of the program's means."""
        self._error = error
        with _unchanged(error):
            if error is None or isinstance(error, Exception):
                next(self._relay, None)
            else:
                self._relay.close()
        failed = self._failed_attempt()
        if failed is None:
            return None
        if failed.verdict.rejected:
            self._look_up(failed.key_id)
        return report(failed.verdict, failed.until)

    async def afinish(self, error: BaseException | None) -> Report | None:
        """Async version of `finish`."""
        self._error = error
        with _unchanged(error):
            if isinstance(error, GeneratorExit):  # whoever is closed cannot wait
                await self._relay.aclose()
            else:
                await anext(self._relay, None)
        failed = self._failed_attempt()
        if failed is None:
            return None
        if failed.verdict.rejected:
            await self._calls.pool.threads.run(partial(self._look_up, failed.key_id))
        return report(failed.verdict, failed.until)

    def drop(self) -> None:
        """Settle the lease of a program that has said nothing."""
        self._relay.close()

    def _observer(self) -> Any:
        return self._calls.observe(self._call.info)

    def _send(self, lease: Lease) -> StreamOpened:
        self.leased_at = lease.at
        self.key = LeasedKey(lease.key_id, self._calls.pool.secrets.value(lease.key_id))
        return StreamOpened(self, answered=False)

    async def _asend(self, lease: Lease) -> StreamOpened:
        return self._send(lease)

    def _failed_attempt(self) -> FailedAttempt | None:
        """Return what became of the key; forget the exception, whose frames are the program's."""
        self._error = self._relay = self._call.last = None
        return self._call.attempts[-1] if self._call.attempts else None

    def _look_up(self, key_id: str) -> None:
        pool = self._calls.pool
        if pool.refresh(key_id):
            pool.log_replaced(frozenset({key_id}))

    # The stream of the call -----------------------------------------------------------------------

    def __iter__(self) -> KeyUse:
        """Return this stream."""
        return self

    def __next__(self) -> LeasedKey:
        """Return the key, once; then raise what is no failure of it, such as a cancellation."""
        if not self._is_read:
            self._is_read = True
            return self.key
        if self._error is not None and not isinstance(self._error, Exception):
            raise self._error
        raise StopIteration

    def __aiter__(self) -> KeyUse:
        """Return this stream."""
        return self

    async def __anext__(self) -> LeasedKey:
        """Async version of `__next__`."""
        for key in self:
            return key
        raise StopAsyncIteration

    def end(self, _error: Exception | None) -> StreamEnd:
        """Return the usage, and the failure that the program has reported."""
        failed: Failed | None = None
        if isinstance(self._error, Exception):
            facts = facts_from_reported_error(self._error, self._calls.pool.secrets.redact)
            failed = Failed(facts, self._error)
        return StreamEnd(self.key.usage, (), failed)

    def close(self) -> None:
        """Do nothing: the program has the key."""

    async def aclose(self) -> None:
        """Do nothing."""


@contextmanager
def _unchanged(error: BaseException | None) -> Iterator[None]:
    """Leave the program's exception with the traceback and the context that it has.

    The flow raises it as it raises those of all calls, with a note of the attempt.
    """
    if error is None:
        yield
        return
    trace, context = error.__traceback__, error.__context__
    try:
        yield
    except BaseException as raised:
        if raised is not error and raised.__cause__ is not error:  # as of a StopIteration
            raise
    finally:
        error.__traceback__, error.__context__ = trace, context


class KeyLease:
    """A context manager, for `with` and for `async with`; it is used once."""

    __slots__ = ("_make", "_use")

    def __init__(self, make: Callable[[], KeyUse]) -> None:
        """Lease nothing yet; *make* makes the use of a key, at the start of the block."""
        self._make = make
        self._use: KeyUse | None = None

    def __enter__(self) -> LeasedKey:
        return self._new_use().begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        use = self._used()
        use.key.report = use.finish(error)

    async def __aenter__(self) -> LeasedKey:
        return await self._new_use().abegin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        use = self._used()
        use.key.report = await use.afinish(error)

    def _new_use(self) -> KeyUse:
        if self._use is not None:
            raise RuntimeError("a lease is used once: call lease() for each request")
        self._use = self._make()
        return self._use

    def _used(self) -> KeyUse:
        assert self._use is not None  # noqa: S101 - it was entered
        return self._use


def reported_usage(tokens_used: int | None, response: Any) -> Usage:
    """Return the usage that is given: the input tokens alone, or that of an SDK's response.

    Raises:
        ValueError: The number of tokens is negative or no integer.
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
        ValueError: It is negative or no integer.
    """
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: found {display(value)}; allowed: a whole number from 0")
