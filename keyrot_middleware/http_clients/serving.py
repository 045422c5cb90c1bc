"""Send a call through the pool, and read what comes back: the same for every HTTP library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from ..adapters import transport_failure
from ..adapters.bodies import Body, until_enough
from ..adapters.pooled_calls import PooledCalls
from ..adapters.redaction import Redact, Redacting, kept_error, redact_key
from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.model import Lease
from ..errors import handle_internal_error
from ..runtime import runner
from ..runtime.driver import complete
from ..runtime.first_token import Deadline
from ..secrets import Secret
from .calls import NO_RETRY, Call, Head, Outcome, Refused, Reply, Served, text_of

Send = Callable[[Any], Any]
"""Sends a request once, in a task by a coroutine."""


def outcome_of(response: Any) -> Outcome | None:
    """Return the outcome that a response carries, or the SDK's response around it."""
    inner = getattr(response, "response_stream", response)
    found = getattr(inner, "keyrot", None) or getattr(inner, "extensions", {}).get("keyrot")
    return found if isinstance(found, Outcome) else None


class Library(ABC):
    """What a library has to say, and what is done with it.

    A coroutine of a sync library has nothing to wait for: it runs in one step.
    """

    def __init__(self, calls: PooledCalls | None, served: Served) -> None:
        """Serve a pool.

        Args:
            calls: None where no key was found at all.
            served: What goes through it.
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
    def head(self, response: Any, request: Any, redact: Redact) -> Any:
        """Take keys out of the head of a response that was just received.

        Returns:
            Those of its headers that are read, by their names in lower case.
        """

    def status(self, response: Any) -> int:
        """Return the status of a response."""
        code: int = response.status_code
        return code

    @abstractmethod
    def error_pieces(self, response: Any) -> Any:
        """Return the decoded bytes of an error, as an iterator or an async one."""

    @abstractmethod
    def pieces(self, response: Any) -> tuple[Any, Callable[[], Any]]:
        """Return the bytes of a stream as they come, and what closes it; see `Body`."""

    def is_shared(self, response: Any) -> bool:
        """Return whether the connection of a response has other calls too."""
        del response
        return False

    @abstractmethod
    async def content(self, response: Any, headers: Any) -> bytes:
        """Read a response, decoded, and leave it as unread as it came; *headers*: see `head`."""

    @abstractmethod
    async def aclose(self, response: Any) -> None:
        """Release the connection of a response."""

    @abstractmethod
    def rebuilt(self, response: Any, content: bytes) -> Any:
        """Return an unread response like another one, with another content."""

    @abstractmethod
    def streamed(self, response: Any, body: Any, relay: Any) -> Any:
        """Return the response whose stream the program reads through *relay*."""

    @abstractmethod
    def reply(self, reply: Reply, request: Any) -> Any:
        """Return a response of our own."""

    @abstractmethod
    async def body_of(self, request: Any) -> tuple[bytes, Any]:
        """Return the body, and the rest of one that is too long to be kept; or None."""

    @abstractmethod
    def with_body(self, request: Any, content: bytes, rest: Any) -> Any:
        """Return a request whose body was read."""

    # Send -----------------------------------------------------------------------------------------

    def handle(self, found: Any, request: Any, send_once: Send) -> Any:
        """Send a request in a thread; arguments as for `ahandle`."""

        async def once(one: Any) -> Any:
            return send_once(one)

        run = partial(runner.arun, in_thread=True)
        return complete(self._handle(found, request, once, run))

    async def ahandle(self, found: Any, request: Any, send_once: Send) -> Any:
        """Send a request through the pool, or as it is.

        Args:
            found: What `read` has returned for it.
            request: The request.
            send_once: Sends it, or a copy of it.
        """
        return await self._handle(found, request, send_once, runner.arun)

    async def _handle(self, found: Any, request: Any, once: Send, run: Any) -> Any:
        if isinstance(found, Head):
            content, rest = await self.body_of(request)
            found = found.call(content, rest)
            if not isinstance(found, Call):
                request = self.with_body(request, content, rest)
        if isinstance(found, Reply):
            return self.reply(found, request)
        if isinstance(found, Secret):
            return await self._send_home(request, found, once)
        while isinstance(found, Call):
            try:
                return await self._serve(found, request, once, run)
            except Exception as failure:
                goes_on = found.go_on(failure)
            if not goes_on:
                return self.last(found, request)
        return await once(request)

    async def _serve(self, call: Call, request: Any, once: Send, run: Any) -> Any:
        observer, opened = call.observe(), list[Any]()

        async def send(lease: Lease) -> Any:
            key, in_full = call.key(lease), observer is not None or bool(lease.purses)
            try:
                with Redacting(call.redact):
                    response = await once(self.copy(call, request, key))
                    headers = self.head(response, request, call.redact)
                    reply = await self._received(call, response, headers, key, in_full)
            except Exception as error:
                return lost(error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = await run(call.calls.pool, call.call, send, call.no_key, observer)
        if call.call.info.conversation:
            call.note_model()
        return self.finished(found, opened, request)

    async def _received(
        self, call: Call, response: Any, headers: Any, key: Secret, in_full: bool
    ) -> Any:
        if call.call.first_token_s is not None:
            self._has_head(call, response, headers)
        if self.status(response) >= 400:
            return self.failed(call, response, await self._said(response))
        if self.status(response) >= 300:
            content, where = await self.content(response, headers), response.headers.get("location")
            error = call.refused_redirect(self.status(response), where)
            kept = error or kept_error(self.status(response), content, call.redact)
            return Done(response if kept == content else self.rebuilt(response, kept))
        if not call.is_stream(headers):
            content = await self.content(response, headers)
            return self.done(call, response, content, headers, key=key, in_full=in_full)
        pieces, close = self.pieces(response)
        body = Body(pieces, close, call.reader(headers), headers, key=key, redact=call.redact)
        try:
            await body.read_first()
            if not body.reader.failed_at_once:
                return StreamOpened(body)
            said = await until_enough(body)
        except BaseException:
            await body.aclose()  # the next attempt needs a connection too
            raise
        await body.aclose()
        return self.failed(call, response, said, body.error)

    def _has_head(self, call: Call, response: Any, headers: Any) -> None:
        """End a deadline that is the head's alone; note whether others may have one here."""
        tokens, host = call.calls.pool.first_tokens, call.call.info.host
        tokens.shared[host] = tokens.shared.get(host, False) or self.is_shared(response)
        deadline = call.call.deadline
        if deadline is not None and (
            isinstance(deadline, Deadline)
            or self.status(response) >= 300
            or not call.is_stream(headers)
        ):
            deadline.cancel()

    async def _send_home(self, request: Any, key: Secret, once: Send) -> Any:
        """Send a request with the home key, once and without the pool."""
        redact = self.redact
        with Redacting(redact):
            response = await once(self.with_key(request, key))
            self.head(response, request, redact)
            if self.status(response) < 400:
                return response
            return self.rebuilt_error(response, await self._said(response), redact)[0]

    async def _said(self, response: Any) -> bytes:
        try:
            return await until_enough(self.error_pieces(response))
        finally:
            await self.aclose(response)

    # Make a response ------------------------------------------------------------------------------

    def failed(self, call: Call, response: Any, said: bytes, event: Any = None) -> Failed:
        """Return the failure that a response is, or the first *event* of its stream."""
        rebuilt, kept = self.rebuilt_error(response, said, call.redact)
        headers = response.headers
        if event is not None:
            facts = FailureFacts(None, event, headers.get("retry-after"), headers=headers)
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
            return call.done(response, text_of(hidden), headers, in_full=in_full)
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
