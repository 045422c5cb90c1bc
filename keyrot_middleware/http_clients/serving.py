"""Send a call through the pool, and read what comes back: the same for every HTTP library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any

from ..adapters.bodies import AsyncBody, Body, auntil_enough, until_enough
from ..adapters.pooled_calls import PooledCalls
from ..adapters.reading import transport_failure
from ..adapters.redaction import Redact, Redacting, kept_error, redact_key
from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.model import Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..secrets import Secret
from .calls import NO_RETRY, Call, Outcome, Refused, Reply


def outcome_of(response: Any) -> Outcome | None:
    """Return the outcome that a response carries, or the SDK's response around it."""
    inner = getattr(response, "response_stream", response)
    found = getattr(inner, "keyrot", None) or getattr(inner, "extensions", {}).get("keyrot")
    return found if isinstance(found, Outcome) else None


class Library(ABC):
    """What a library has to say, and what is done with it.

    A library is sync, async or both, and has the methods of the kinds that it has.
    """

    def __init__(self, calls: PooledCalls | None, served: Collection[str]) -> None:
        """Serve a pool.

        Args:
            calls: None where no key was found at all.
            served: The libraries whose requests are served, google-genai among them or not.
        """
        self._calls, self._served = calls, served

    @property
    def redact(self) -> Redact:
        """What redacts the keys of the pool; there is one."""
        if self._calls is None:
            raise RuntimeError("there is no pool")
        return self._calls.redact("")

    @abstractmethod
    def copy(self, call: Call, request: Any, key: Secret) -> Any:
        """Return the program's request with one key."""

    @abstractmethod
    def with_key(self, request: Any, key: Secret) -> Any:
        """Return the program's request with *key* in place of its placeholder."""

    @abstractmethod
    def scrub(self, response: Any, request: Any, redact: Redact) -> None:
        """Take keys out of the head of a response that was just received."""

    def status(self, response: Any) -> int:
        """Return the status of a response."""
        code: int = response.status_code
        return code

    def error_pieces(self, response: Any) -> Iterator[bytes]:
        """Return the decoded bytes of an error."""
        raise NotImplementedError

    def aerror_pieces(self, response: Any) -> AsyncIterator[bytes]:
        """Async version of `error_pieces`."""
        raise NotImplementedError

    def pieces(self, response: Any) -> tuple[Iterator[bytes], Callable[[], Any]]:
        """Return the bytes of a stream as they come, and what closes it."""
        raise NotImplementedError

    def apieces(self, response: Any) -> tuple[AsyncIterator[bytes], Callable[[], Awaitable[Any]]]:
        """Async version of `pieces`."""
        raise NotImplementedError

    def content(self, response: Any) -> bytes:
        """Read a response, decoded, and leave it as unread as it came."""
        raise NotImplementedError

    async def acontent(self, response: Any) -> bytes:
        """Async version of `content`."""
        raise NotImplementedError

    async def aclose(self, response: Any) -> None:
        """Release the connection of a response of an async client."""
        await response.aclose()

    @abstractmethod
    def headers(self, response: Any) -> Any:
        """Return those headers of a response that are read, by their names in lower case."""

    @abstractmethod
    def rebuilt(self, response: Any, content: bytes) -> Any:
        """Return an unread response like another one, with another content."""

    @abstractmethod
    def streamed(self, response: Any, body: Any, relay: Any) -> Any:
        """Return the response whose stream the program reads through *relay*."""

    @abstractmethod
    def reply(self, reply: Reply, request: Any) -> Any:
        """Return a response of our own."""

    # Sync -----------------------------------------------------------------------------------------

    def serve(self, call: Call, request: Any, send_once: Callable[[Any], Any]) -> Any:
        """Send a request through the pool; *send_once* sends a copy of it."""
        while True:
            try:
                return self._serve(call, request, send_once)
            except Exception as failure:
                goes_on = call.go_on(failure)
            if not goes_on:
                return self.last(call, request)

    def _serve(self, call: Call, request: Any, send_once: Callable[[Any], Any]) -> Any:
        observer, opened = call.observe(), list[Any]()

        def send(lease: Lease) -> Any:
            key, in_full = call.key(lease), observer is not None or lease.has_budget
            try:
                with Redacting(call.redact):
                    response = send_once(self.copy(call, request, key))
                    self.scrub(response, request, call.redact)
                    reply = self._received(call, response, key, in_full)
            except Exception as error:
                return lost(error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = runner.run(call.calls.pool, call.call, send, call.no_key, observer)
        return self.finished(found, opened, request)

    def _received(self, call: Call, response: Any, key: Secret, in_full: bool) -> Any:
        if response.status_code >= 400:
            try:
                said = until_enough(self.error_pieces(response))
            finally:
                response.close()
            return self.failed(call, response, said)
        if response.status_code >= 300:
            where = response.headers.get("location")
            if (error := call.refused_redirect(response.status_code, where)) is None:
                return Done(response)
            response.close()
            return Done(self.rebuilt(response, error))
        headers = self.headers(response)
        if not call.is_stream(headers):
            content = self.content(response)
            return self.done(call, response, content, headers, key=key, in_full=in_full)
        pieces, close = self.pieces(response)
        body = Body(pieces, close, call.ledger(headers), headers, key=key, redact=call.redact)
        try:
            body.read_first()
            if not body.ledger.failed_at_once:
                return StreamOpened(body)
            said = until_enough(body)
        except BaseException:
            body.close()  # the next attempt needs a connection too
            raise
        body.close()
        return self.failed(call, response, said, body.error)

    def send_home(self, request: Any, key: Secret, send_once: Callable[[Any], Any]) -> Any:
        """Send a request with the home key, once and without the pool."""
        redact = self.redact
        with Redacting(redact):
            response = send_once(self.with_key(request, key))
            self.scrub(response, request, redact)
            if response.status_code < 400:
                return response
            try:
                said = until_enough(self.error_pieces(response))
            finally:
                response.close()
            return self.rebuilt_error(response, said, redact)[0]

    # Async ----------------------------------------------------------------------------------------

    async def aserve(self, call: Call, request: Any, send_once: Callable[[Any], Any]) -> Any:
        """Send a request through the pool; *send_once* sends a copy of it."""
        while True:
            try:
                return await self._aserve(call, request, send_once)
            except Exception as failure:
                goes_on = call.go_on(failure)
            if not goes_on:
                return self.last(call, request)

    async def _aserve(self, call: Call, request: Any, send_once: Callable[[Any], Any]) -> Any:
        observer, opened = call.observe(), list[Any]()

        async def send(lease: Lease) -> Any:
            key, in_full = call.key(lease), observer is not None or lease.has_budget
            try:
                with Redacting(call.redact):
                    response = await send_once(self.copy(call, request, key))
                    self.scrub(response, request, call.redact)
                    reply = await self._areceived(call, response, key, in_full)
            except Exception as error:
                return lost(error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = await runner.arun(call.calls.pool, call.call, send, call.no_key, observer)
        return self.finished(found, opened, request)

    async def _areceived(self, call: Call, response: Any, key: Secret, in_full: bool) -> Any:
        if self.status(response) >= 400:
            return self.failed(call, response, await self._asaid(response))
        if self.status(response) >= 300:
            where = response.headers.get("location")
            if (error := call.refused_redirect(self.status(response), where)) is None:
                return Done(response)
            await self.aclose(response)
            return Done(self.rebuilt(response, error))
        headers = self.headers(response)
        if not call.is_stream(headers):
            content = await self.acontent(response)
            return self.done(call, response, content, headers, key=key, in_full=in_full)
        pieces, close = self.apieces(response)
        body = AsyncBody(pieces, close, call.ledger(headers), headers, key=key, redact=call.redact)
        try:
            await body.read_first()
            if not body.ledger.failed_at_once:
                return StreamOpened(body)
            said = await auntil_enough(body)
        except BaseException:
            await body.aclose()
            raise
        await body.aclose()
        return self.failed(call, response, said, body.error)

    async def asend_home(self, request: Any, key: Secret, send_once: Callable[[Any], Any]) -> Any:
        """Send a request with the home key, once and without the pool."""
        redact = self.redact
        with Redacting(redact):
            response = await send_once(self.with_key(request, key))
            self.scrub(response, request, redact)
            if self.status(response) < 400:
                return response
            return self.rebuilt_error(response, await self._asaid(response), redact)[0]

    async def _asaid(self, response: Any) -> bytes:
        try:
            return await auntil_enough(self.aerror_pieces(response))
        finally:
            await self.aclose(response)

    # What sync and async calls share --------------------------------------------------------------

    def failed(self, call: Call, response: Any, said: bytes, event: Any = None) -> Failed:
        """Return the failure that a response is, or the first *event* of its stream."""
        rebuilt, kept = self.rebuilt_error(response, said, call.redact)
        headers = response.headers
        if event is not None:
            facts = FailureFacts(None, event, headers.get("retry-after"))
            return Failed(facts, Refused(rebuilt, event))
        text = kept.decode("utf-8", "replace")
        return call.refused(self.status(response), text, headers, rebuilt)

    def rebuilt_error(self, response: Any, said: bytes, redact: Redact) -> tuple[Any, bytes]:
        """Return a response that is an error, without a key in it, and its content."""
        kept = kept_error(self.status(response), said, redact)
        return self.rebuilt(response, kept), kept

    def done(
        self, call: Call, response: Any, content: bytes, headers: Any, *, key: Secret, in_full: bool
    ) -> Done | Failed:
        """Return a whole response, of which *content* and *headers* were read."""
        hidden = redact_key(content, key)
        if hidden != content:
            response = self.rebuilt(response, hidden)
        try:
            text = hidden.decode("utf-8", "replace")
            return call.done(response, text, headers, in_full=in_full)
        except Exception:
            handle_internal_error("http_clients")
            return Done(response)

    def finished(self, found: Any, opened: list[Any], request: Any) -> Any:
        """Return the response that the program gets; *opened*: that of a stream, and its body."""
        if not opened:
            return found
        response, body = opened
        opened.clear()
        response = self.streamed(response, body, found)
        return self.with_outcome(response, Outcome(body.notes), request)

    def last(self, call: Call, request: Any) -> Any:
        """Return the response that ends a call; raise what is none."""
        error = call.take_error()
        if not isinstance(error, Refused):
            raise error
        before, last = error.__cause__, None
        if isinstance(before, Refused):
            last = (before.code, before.body, before.response)
        outcome = Outcome(getattr(error, "__notes__", ()), error.no_key, last)
        response = error.response
        if isinstance(response, Reply):
            response = self.reply(response, request)
        elif hasattr(response.headers, "update") and (
            not call.call.info.sdk_retries or self.status(response) < 500
        ):
            response.headers[NO_RETRY] = "false"  # it was sent again here already
        return self.with_outcome(response, outcome, request)

    def with_outcome(self, response: Any, outcome: Outcome, request: Any) -> Any:
        """Return the response to *request* that carries an outcome; see `outcome_of`."""
        response.keyrot = outcome
        return response


def lost(error: Exception) -> Failed:
    """Return the failure of a send that has no response."""
    return Failed(FailureFacts(transport=transport_failure(error)), error)
