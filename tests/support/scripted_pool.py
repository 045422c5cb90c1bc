"""A real pool under a scripted upstream, and the four ways to send a call through it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace

from keyrot_middleware.core.commands import Done, Failed, StreamEnd, StreamOpened
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.flow import CallState, Exhausted
from keyrot_middleware.core.model import CallInfo, Candidate, Lease, RetryPolicy, Usage
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.errors import handle_internal_error
from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.runtime import runner
from keyrot_middleware.runtime.pool import Pool
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from keyrot_middleware.secrets.stores import InlineStore
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.telemetry import Observer, observe
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.testing import FakeClock

SECRET = "FAKE-secret-of-{}"
PROMPT = "the prompt that must not be logged"
USAGE = Usage(12, 30, 4, 8, "gemini-2.5-flash-001", "resp-1", ("stop",))
INFO = CallInfo("gemini-2.5-flash", "generateContent", tokens=10, host="gemini.test:8443")
STREAMED = INFO._replace(verb="streamGenerateContent", stream=True)


class GoogleError(Exception):
    """Stands in for the SDK's APIError; its text may hold anything."""


def failure(
    code: int | None = None, *, error: BaseException | None = None, transport: Any = "", **body: Any
) -> Failed:
    """Return a failed send: a Google error with a code, or a transport error."""
    if code is None:
        return Failed(FailureFacts(transport=transport), error or ConnectionResetError(PROMPT))
    content = {"error": {"code": code, "message": PROMPT, "status": "UNKNOWN", **body}}
    return Failed(FailureFacts(code=code, body=content), error or GoogleError(f"{code} {PROMPT}"))


def minute(seconds: int) -> Failed:
    """Return the 429 of an exhausted minute that ends in *seconds*."""
    quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    return failure(
        429,
        details=[
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": quota, "quotaValue": "5"}],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"},
        ],
    )


def invalid() -> Failed:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    return failure(400, details=[info])


OK = Done("answer", USAGE)


class Chunks:
    """A stream as the SDK opens it, sync and async; each read makes an HTTP span."""

    def __init__(self, count: int = 3, failed: Failed | None = None, tracer: Any = None) -> None:
        self._left = deque(range(count))
        self._failed = failed
        self._tracer = tracer
        self.gate: asyncio.Event | None = None
        """Where given, the second chunk waits for it."""
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        return iter(self._read, None)

    def _read(self) -> int | None:
        if self._tracer is not None:
            self._tracer.start_span("HTTP read").end()
        if self._left:
            return self._left.popleft()
        if self._failed is not None:
            raise self._failed.error
        return None

    async def __aiter__(self) -> Any:
        for number, chunk in enumerate(self):
            if number and self.gate is not None:
                await self.gate.wait()
            yield chunk

    def end(self, error: Exception | None) -> StreamEnd:
        return StreamEnd(USAGE, failed=self._failed if error is not None else None)

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class SettledAtOnce(deque[Any]):
    """In place of `Pool.abandoned`: no test waits for the thread of the pool."""

    def append(self, call: Any) -> None:
        call.settle_abandoned()


@dataclass
class ScriptedPool:
    """A pool of keys, each with scripted replies to its sends."""

    observers: Sequence[Observer]
    keys: Sequence[str] = ("flash_01", "flash_02", "pro_01")
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(strategy="fill", max_wait_s=30))
    clock: FakeClock = field(default_factory=FakeClock)
    script: dict[str, list[Any]] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    """The current span of each send."""
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        self.values = {key: Secret(SECRET.format(key)) for key in self.keys}
        candidates = [Candidate(key, f"project-{key[:3]}", "billing") for key in self.keys]
        store = InlineStore(self.values)
        self.pool = Pool(
            name="test",
            selector=Selector(candidates, self.policy.strategy),
            state=MemoryState(self.policy, self.clock.time),
            secrets=SecretCache({key: SecretLocation(store) for key in self.keys}),
            policy=self.policy,
            observers=self.observers,
            event_listeners=[one for one in self.observers if isinstance(one, LogObserver)],
            clock=self.clock,
            random=lambda: 0.0,
            abandoned=SettledAtOnce(),
            configured=candidates,
        )

    def send(self, lease: Lease) -> Any:
        """Return the next reply of the lease's key; raise it where it is an exception."""
        self.seen.append(trace.get_current_span())
        replies = self.script.get(lease.key_id)
        reply = replies.pop(0) if replies else OK
        if isinstance(reply, Callable):  # type: ignore[arg-type]
            reply = reply()
        if isinstance(reply, BaseException):
            raise reply
        return StreamOpened(reply) if isinstance(reply, Chunks) else reply

    async def asend(self, lease: Lease) -> Any:
        return self.send(lease)

    def _call(self, info: CallInfo, send: Any) -> tuple[Any, ...]:
        pool = self.pool
        call = CallState(info, pool.selector, pool.policy, pool.token_scale, Gemini().classify)
        return pool, call, send, _raised, observe(pool.observers, info, handle_internal_error)

    def run(self, info: CallInfo = INFO) -> Any:
        return runner.run(*self._call(info, self.send))

    async def arun(self, info: CallInfo = INFO) -> Any:
        return await runner.arun(*self._call(info, self.asend))

    def stream(self, info: CallInfo = STREAMED) -> Iterator[Any]:
        """Open a stream for this thread; nothing is sent before the first read."""
        yield from runner.run(*self._call(info, self.send))

    async def astream(self, info: CallInfo = STREAMED) -> runner.AsyncRelay:
        relay: runner.AsyncRelay = await self.arun(info)
        return relay

    def all_modes(self, *, stream: bool = False) -> dict[str, Callable[[], Any]]:
        """Give the ways to make one whole call: in a thread, and in a task."""
        if not stream:
            return {"sync": self.run, "async": lambda: asyncio.run(self.arun())}
        return {"sync": lambda: list(self.stream()), "async": lambda: asyncio.run(self._all())}

    async def _all(self) -> list[Any]:
        return [chunk async for chunk in await self.astream()]


def _raised(exhausted: Exhausted) -> BaseException:
    return exhausted
