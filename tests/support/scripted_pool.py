"""A rig whose telemetry is looked at: observers, texts that must not be logged, HTTP spans."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from opentelemetry import trace

from keyrot_middleware.core.commands import Done, Failed, StreamEnd, StreamOpened
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo, Candidate, Lease, RetryPolicy, Usage
from keyrot_middleware.telemetry import Observer
from keyrot_middleware.telemetry.logs import LogObserver
from support import replies
from support.pool import Rig
from support.replies import ChunkStream

PROMPT = "the prompt that must not be logged"
USAGE = Usage(12, 30, 4, 8, "gemini-2.5-flash-001", "resp-1", ("stop",))
INFO = CallInfo("gemini-3.1-flash-lite", "generateContent", tokens=10, host="gemini.test:8443")
STREAMED = INFO._replace(verb="streamGenerateContent", stream=True)
OK = Done("answer", USAGE)


def failure(code: int | None = None, *, transport: Any = "") -> Failed:
    """Return a failed send: a transport error, or a Google error, which may quote the prompt."""
    if code is None:
        return Failed(FailureFacts(transport=transport), ConnectionResetError(PROMPT))
    return replies.failure(code, PROMPT if code < 500 else "An internal error has occurred.")


def minute(seconds: int) -> Failed:
    return replies.minute(f"{seconds}s")


class Chunks(replies.Chunks):
    """Each read makes an HTTP span; the second chunk waits for the gate, where there is one."""

    def __init__(self, count: int = 3, failed: Failed | None = None, tracer: Any = None) -> None:
        super().__init__(*range(count), failed=failed)
        self._tracer = tracer
        self.gate: asyncio.Event | None = None

    def __iter__(self) -> Iterator[int]:
        chunks = super().__iter__()
        while True:
            if self._tracer is not None:
                self._tracer.start_span("HTTP read").end()
            if (chunk := next(chunks, None)) is None:
                return
            yield chunk

    async def __aiter__(self) -> Any:
        for number, chunk in enumerate(self):
            if number and self.gate is not None:
                await self.gate.wait()
            yield chunk

    def end(self, error: Exception | None) -> StreamEnd:
        return StreamEnd(USAGE, failed=self.failed if error is not None else None)


class SettledAtOnce(deque[Any]):
    """In place of `Pool.abandoned`: no test waits for the thread of the pool."""

    def append(self, call: Any) -> None:
        call.settle_abandoned()


class ScriptedPool(Rig):
    """A pool of keys, each with scripted replies to its sends."""

    def __init__(
        self,
        observers: Sequence[Observer],
        keys: Sequence[str] = ("flash_01", "flash_02", "pro_01"),
        policy: RetryPolicy | None = None,
        script: Mapping[str, list[Any]] | None = None,
    ) -> None:
        super().__init__(
            *(Candidate(key, f"project-{key[:3]}", "billing") for key in keys),
            pool={
                "observers": observers,
                "event_listeners": [one for one in observers if isinstance(one, LogObserver)],
                "abandoned": SettledAtOnce(),
            },
            **asdict(policy or RetryPolicy(strategy="fill", max_wait_s=30)),
        )
        self.script = dict(script or {})  # type: ignore[assignment]
        self.seen: list[Any] = []
        """The current span of each send."""

    def send(self, lease: Lease) -> Any:
        """Return the next reply of the lease's key; raise it where it is an exception."""
        self.seen.append(trace.get_current_span())
        replies: Any = self.script.get(lease.key_id)
        reply = replies.pop(0) if replies else OK
        if isinstance(reply, Callable):  # type: ignore[arg-type]
            reply = reply()
        if isinstance(reply, BaseException):
            raise reply
        return StreamOpened(ChunkStream(reply)) if isinstance(reply, Chunks) else reply

    def run(self, info: CallInfo = INFO) -> Any:  # type: ignore[override]
        return self.open(info)

    async def arun(self, info: CallInfo = INFO) -> Any:
        return await self.aopen(info)

    def stream(self, info: CallInfo = STREAMED) -> Iterator[Any]:
        """Open a stream for this thread; nothing is sent before the first read."""
        yield from self.open(info)

    async def astream(self, info: CallInfo = STREAMED) -> ChunkStream:
        relay: ChunkStream = await self.aopen(info)
        return relay

    def all_modes(self, *, stream: bool = False) -> dict[str, Callable[[], Any]]:
        """Give the ways to make one whole call: in a thread, and in a task."""
        info = STREAMED if stream else INFO
        return {"sync": lambda: self.call(info), "async": lambda: asyncio.run(self.acall(info))}
