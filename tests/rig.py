"""A real pool in memory under a scripted upstream, and a tape of what a call asked for."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from keyrot_middleware.core.commands import Done, Failed, Opened, StreamEnd
from keyrot_middleware.core.failures import Facts
from keyrot_middleware.core.flow import Call, call_flow
from keyrot_middleware.core.model import NO_LIMITS, CallInfo, Candidate, Lease, Limits, Usage
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.core.roster import Roster
from keyrot_middleware.drive import aio, sync
from keyrot_middleware.drive.pool import Pool
from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Place, Ring, Secret
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.testing import FakeClock

MODEL = "gemini-2.5-flash"
INFO = CallInfo(MODEL, "generateContent", tokens=10, estimate=10)
STREAMED = INFO._replace(verb="streamGenerateContent", stream=True)
OK = Done("answer", Usage(input_tokens=10))


def key(key_id: str, limits: Limits = NO_LIMITS, **labels: Any) -> Candidate:
    """Make a key; without a project it is its own."""
    project = labels.pop("project", key_id)
    billing = labels.pop("billing_account", project)
    return Candidate(key_id, project, billing, limits, **labels)


class GoogleError(Exception):
    """Stands for the SDK's APIError."""


def failure(code: int, message: str = "", *details: Mapping[str, Any]) -> Failed:
    """Give a failed send with Google's body."""
    body = {"error": {"code": code, "message": message, "details": list(details)}}
    return Failed(Facts(code=code, body=body), GoogleError(f"{code} {message}"))


def lost(transport: Any) -> Failed:
    """Give a transport error: `connect`, `reset`, `timeout` or `other`."""
    return Failed(Facts(transport=transport), ConnectionError(transport))


def spent(window: str, delay: str | None = None, value: int = 5, model: str = MODEL) -> Failed:
    """Give the 429 of a spent quota: *window* is `PerMinute` or `PerDay`."""
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
        "quotaId": f"GenerateRequests{window}PerProjectPerModel-FreeTier",
        "quotaDimensions": {"model": model, "location": "global"},
        "quotaValue": str(value),
    }
    kind = "type.googleapis.com/google.rpc."
    details: list[Mapping[str, Any]] = [{"@type": f"{kind}QuotaFailure", "violations": [violation]}]
    if delay is not None:
        details.append({"@type": f"{kind}RetryInfo", "retryDelay": delay})
    return failure(429, "You exceeded your current quota", *details)


def minute(delay: str = "20s", **told: Any) -> Failed:
    """Give the 429 of a spent minute."""
    return spent("PerMinute", delay, **told)


def day() -> Failed:
    """Give the 429 of a spent day, which claims that two seconds would do."""
    return spent("PerDay", "2s")


def capacity() -> Failed:
    """Give the 429 that names neither time nor quota."""
    return failure(429, "Resource has been exhausted (e.g. check quota).")


def invalid() -> Failed:
    """Give the 400 of a key that is none."""
    return failure(400, "API key not valid. Please pass a valid API key.")


def blocked() -> Failed:
    """Give the 403 of a key that may not use this method of the API."""
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return failure(403, "Blocked.", {"@type": kind, "reason": "API_KEY_SERVICE_BLOCKED"})


def denied() -> Failed:
    """Give the 403 of a project that Google has closed."""
    return failure(403, "Your project has been denied access. Please contact support.")


def far() -> Failed:
    """Give the 400 of a place where the free tier is not offered."""
    return failure(400, "User location is not supported for the API use.")


def overloaded() -> Failed:
    """Give the 503 that is nobody's fault."""
    return failure(503, "The model is overloaded. Please try again later.")


def bad() -> Failed:
    """Give the 400 of a malformed request."""
    return failure(400, "Invalid JSON payload received.")


class Chunks:
    """A stream as the SDK opens it, for both drivers: its chunks, then an end or a failure."""

    def __init__(self, *chunks: Any, failed: Failed | None = None, names: tuple[str, ...] = ()):
        self.chunks, self.failed, self.names = chunks, failed, names
        self.given = self.closed = 0
        self.complaint: Exception | None = None
        """What closing raises."""

    def __iter__(self) -> Iterator[Any]:
        """Give the chunks."""
        for chunk in self.chunks:
            self.given += 1
            yield chunk
        if self.failed is not None:
            assert isinstance(self.failed.error, Exception)
            raise self.failed.error

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Give the chunks."""
        for chunk in self:
            yield chunk

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it: three input tokens, and one more for each chunk."""
        failed = self.failed if error is not None else None
        return StreamEnd(Usage(input_tokens=3 + self.given), self.names, failed)

    def close(self) -> None:
        """Close."""
        self.closed += 1
        if self.complaint is not None:
            raise self.complaint

    async def aclose(self) -> None:
        """Close."""
        self.close()


class Shelf:
    """A secret store whose values a test may change."""

    scheme = "shelf"

    def __init__(self, *key_ids: str) -> None:
        self.values = {key_id: f"FAKE-value-of-{key_id}" for key_id in key_ids}

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Give what is there."""
        return {key_id: Secret(self.values[key_id]) for key_id in refs}


class Rig:
    """A pool, what upstream answers to each of its keys, and what was sent and slept."""

    def __init__(self, *keys: Candidate, **policy: Any) -> None:
        self.policy = RetryPolicy(**policy)
        self.clock = FakeClock()
        self.draw = 0.0
        self.sent: list[str] = []
        self.slept: list[float] = []
        self.script: dict[str, deque[Any]] = defaultdict(deque)
        """Replies per key; when none are left: OK. A callable is called for one."""
        lock = threading.Lock()
        self.roster = Roster(keys, self.policy.strategy, lambda: lock)
        self.state = MemoryState(self.policy, self.clock.time)
        self.shelf = Shelf(*(k.key_id for k in keys))
        self.pool = Pool(
            "test",
            self.roster,
            self.state,
            Ring({k.key_id: Place(self.shelf) for k in keys}),
            self.policy,
            clock=self,
            draw=lambda: self.draw,
        )

    def time(self) -> float:
        """Tell the time of the test's clock."""
        return self.clock.time()

    def sleep(self, seconds: float) -> None:
        """Move the clock, and note it."""
        self.slept.append(seconds)
        self.clock.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Move the clock, and note it."""
        self.sleep(seconds)

    def will(self, key_id: str, *replies: Any) -> None:
        """Let upstream answer *replies* to the next sends with that key."""
        self.script[key_id].extend(replies)

    def send(self, lease: Lease) -> Any:
        """Answer by the script."""
        self.sent.append(lease.key_id)
        replies = self.script[lease.key_id]
        reply = replies.popleft() if replies else OK
        if callable(reply):
            reply = reply()
        return Opened(reply) if isinstance(reply, Chunks) else reply

    async def asend(self, lease: Lease) -> Any:
        """Answer by the script."""
        return self.send(lease)

    def flow(self, info: CallInfo = INFO, home: Candidate | None = None) -> Tape:
        """Make the flow of a call."""
        return Tape(call_flow(self.make(info, home)))

    def make(self, info: CallInfo = INFO, home: Candidate | None = None) -> Call:
        """Make a call."""
        return Call(info, self.roster, self.policy, self.pool.scale, home)

    def call(self, info: CallInfo = INFO, home: Candidate | None = None) -> Any:
        """Carry a call through, in this thread; for a stream give all its chunks."""
        flow, perform = call_flow(self.make(info, home)), sync.Performer(self.pool, self.send)
        if info.stream:
            return list(sync.run_stream(flow, perform))
        return sync.run(flow, perform)

    async def acall(self, info: CallInfo = INFO, home: Candidate | None = None) -> Any:
        """Carry a call through, in this task; for a stream give all its chunks."""
        flow, perform = call_flow(self.make(info, home)), aio.AsyncPerformer(self.pool, self.asend)
        if info.stream:
            return [chunk async for chunk in await aio.run_stream(flow, perform)]
        return await aio.run(flow, perform)

    def failing(self, info: CallInfo = INFO, home: Candidate | None = None) -> Any:
        """Carry a call through that must fail; give its exception."""
        try:
            self.call(info, home)
        except Exception as error:
            return error
        raise AssertionError("the call was expected to fail")


class Tape:
    """A flow, and everything that went in and out of it."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.log: list[Any] = []

    def __next__(self) -> Any:
        """Begin."""
        return self._asked(next(self.flow))

    def send(self, reply: Any) -> Any:
        """Reply."""
        self.log.append(("reply", reply))
        return self._asked(self.flow.send(reply))

    def throw(self, error: BaseException) -> Any:
        """Throw in."""
        self.log.append(("thrown", error))
        return self._asked(self.flow.throw(error))

    def _asked(self, command: Any) -> Any:
        self.log.append(("asked", command))
        return command

    def of(self, kind: type) -> list[Any]:
        """List the commands of one kind."""
        return [what for how, what in self.log if how == "asked" and type(what) is kind]
