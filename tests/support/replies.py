"""What upstream answers: Google's bodies, lost connections, streams."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

from keyrot_middleware.clients.events import EventReader
from keyrot_middleware.clients.stream import Stream
from keyrot_middleware.core.commands import Done, Failed, StreamEnd
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import Usage
from keyrot_middleware.runtime.driver import complete
from keyrot_middleware.secrets import Secret
from support.google_bodies import delay, quota_failure, reason, rest, violation

MODEL = "gemini-3.1-flash-lite"
OK = Done("answer", Usage(input_tokens=10))


STATUSES = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}


class GoogleError(Exception):
    """Stands in for the SDK's APIError."""


def failure(code: int, message: str = "", *details: dict[str, Any]) -> Failed:
    body = rest(code, STATUSES.get(code, "UNKNOWN"), message, *details)
    return Failed(FailureFacts(code=code, body=body), GoogleError(f"{code} {message}"))


def lost(transport: Any) -> Failed:
    """Return a transport error: `connect`, `reset`, `timeout` or `other`."""
    return Failed(FailureFacts(transport=transport), ConnectionError(transport))


def exhausted(window: str, named: str, value: int = 5, model: str = MODEL) -> Failed:
    """Return the 429 of an exhausted quota: *window* is `PerMinute` or `PerDay`."""
    quota_id = f"GenerateRequests{window}PerProjectPerModel-FreeTier"
    quota = quota_failure(violation(quota_id, str(value), "generate_content_requests", model))
    return failure(429, "You exceeded your current quota", quota, delay(named))


def minute(named: str = "20s", **body: Any) -> Failed:
    return exhausted("PerMinute", named, **body)


def day() -> Failed:
    """Return the 429 of an exhausted day, with a RetryInfo of two seconds."""
    return exhausted("PerDay", "2s")


def exceeds_limit(limit: int = 1_000) -> Failed:
    """Return the 429 of a minute's input tokens, of which there are no more than *limit* in all."""
    quota = quota_failure(violation("GenerateContentInputTokensPerMinute", str(limit)))
    return failure(429, "You exceeded your current quota", quota, delay("9s"))


def capacity() -> Failed:
    return failure(429, "Resource has been exhausted (e.g. check quota).")


def no_room() -> Failed:
    """Return the 429 of a project that may not store cached content."""
    return failure(429, "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded: limit=0")


def invalid() -> Failed:
    return failure(400, "API key not valid. Please pass a valid API key.")


def expired() -> Failed:
    return failure(400, "API key expired. Please renew the API key.")


def blocked() -> Failed:
    """Return the 403 of a key that may not use this method of the API."""
    return failure(403, "Blocked.", reason("API_KEY_SERVICE_BLOCKED"))


def denied() -> Failed:
    return failure(403, "Your project has been denied access. Please contact support.")


def unsupported_region() -> Failed:
    """Return the 400 of a region where the free tier is not offered."""
    return failure(400, "User location is not supported for the API use.")


def overloaded() -> Failed:
    return failure(503, "The model is overloaded. Please try again later.")


def bad() -> Failed:
    return failure(400, "Invalid JSON payload received.")


class Chunks:
    """A stream as the SDK opens it, for both drivers: its chunks, then an end or a failure."""

    def __init__(
        self,
        *chunks: Any,
        failed: Failed | None = None,
        names: tuple[str, ...] = (),
        complaint: Exception | None = None,
    ) -> None:
        """*complaint* is the error that closing raises."""
        self.chunks, self.failed, self.names = chunks, failed, names
        self.given = self.closed = 0
        self.complaint = complaint

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.chunks:
            self.given += 1
            yield chunk
        if self.failed is not None:
            assert isinstance(self.failed.error, Exception)
            raise self.failed.error

    async def __aiter__(self) -> AsyncIterator[Any]:
        for chunk in self:
            yield chunk

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage: three input tokens, and one more for each chunk."""
        failed = self.failed if error is not None else None
        return StreamEnd(Usage(input_tokens=3 + self.given), self.names, failed)

    def close(self) -> None:
        self.closed += 1
        if self.complaint is not None:
            raise self.complaint

    async def aclose(self) -> None:
        self.close()


class ChunkStream(Stream):
    """The open stream of chunks that are no bytes, such as numbers; each is read in a tuple."""

    def __init__(self, chunks: Chunks) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, EventReader(), {}, key=Secret("k"), redact=str)
        self.chunks = chunks

    def hold(self, driver: Any) -> Any:
        self._is_async = not driver.in_thread
        self._pieces = _in_tuples(self.chunks) if self._is_async else zip(self.chunks, strict=True)
        return super().hold(driver)

    async def _next(self) -> Any:  # an interrupt at any of its lines must leave nothing behind
        return await anext(self._pieces, None) if self._is_async else next(self._pieces, None)

    async def _last(self, data: Any, error: Exception | None) -> Any:
        await super()._last(b"", error)
        return ()

    def end(self, error: Exception | None) -> StreamEnd:
        return self.chunks.end(error)

    async def release(self) -> None:
        with suppress(Exception):
            self.chunks.close()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if not (found := complete(self.read())):
            raise StopIteration
        return found[0]

    async def __anext__(self) -> Any:
        return (await super().__anext__())[0]


async def _in_tuples(chunks: Chunks) -> AsyncIterator[Any]:
    async for chunk in chunks:
        yield (chunk,)
