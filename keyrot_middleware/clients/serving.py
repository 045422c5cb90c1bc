"""One attempt of a call: send the request, read the response, settle it; for every HTTP library."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Generic, TypeVar

from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.model import Lease
from ..errors import handle_internal_error
from ..runtime import runner
from ..runtime.driver import complete
from ..runtime.first_token import Deadline
from ..secrets import Secret
from ..telemetry import observe
from .bounded import LONGEST_BODY, until_enough
from .call import Call, Incoming
from .errors import lost_connection
from .large import text_of
from .pooled_calls import PooledCalls
from .redaction import ENOUGH, Redact, Redacting, kept_error, redact_key
from .refusals import NO_RETRY, Explanation, OwnResponse, RefusalError
from .routing import Served, in_place_of_placeholder
from .stream import Stream

Request = TypeVar("Request")
Response = TypeVar("Response")
Pieces = Iterator[bytes] | AsyncIterator[bytes]
Send = Callable[[Request], Awaitable[Response]]
"""Sends a request once."""
Plan = Call | OwnResponse | Secret | None
"""What is to be done with a request; `routing.read` says it."""


def explanation_of(response: object) -> Explanation | None:
    """Return the outcome that a response carries, or the SDK's response around it."""
    inner = getattr(response, "response_stream", response)
    outcome = getattr(inner, "keyrot", None) or getattr(inner, "extensions", {}).get("keyrot")
    return outcome if isinstance(outcome, Explanation) else None


class Library(ABC, Generic[Request, Response]):
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

    @abstractmethod
    def copy(self, call: Call, request: Request, key: Secret) -> Request:
        """Return the program's request with one key."""

    @abstractmethod
    def with_key(self, request: Request, key: Secret) -> Request:
        """Return the program's request with *key* in place of its placeholder."""

    @abstractmethod
    def head(self, response: Response, request: Request, redact: Redact) -> Mapping[str, str]:
        """Take keys out of the head of a response that was just received.

        Returns:
            Those of its headers that are read, by their names in lower case.
        """

    status: Callable[[Response], int] = staticmethod(attrgetter("status_code"))
    """Returns the status of a response."""

    @abstractmethod
    def error_pieces(self, response: Response) -> Pieces:
        """Return the decoded bytes of an error."""

    @abstractmethod
    def pieces(self, response: Response) -> tuple[Pieces, Callable[[], object]]:
        """Return the bytes of a stream as they come, and what closes it; see `Stream`."""

    def is_shared(self, response: Response) -> bool:
        """Return whether the connection of a response has other calls too."""
        del response
        return False

    @abstractmethod
    async def content(
        self, response: Response, headers: Mapping[str, str]
    ) -> tuple[bytes, Pieces | None]:
        """Read a response, decoded, and leave it as unread as it came; *headers*: see `head`.

        Returns:
            What was read, and None; or the beginning of one that is too long to be kept, as it
            came, and the rest: it is not closed.
        """

    @abstractmethod
    async def aclose(self, response: Response) -> None:
        """Release the connection of a response."""

    @abstractmethod
    def rebuilt(self, response: Response, content: bytes) -> Response:
        """Return an unread response like another one, with another content."""

    def stream_type(self, *, in_thread: bool) -> type[Stream]:
        """Return the class of a stream that a thread or a task reads."""
        del in_thread
        return Stream

    @abstractmethod
    def streamed(self, response: Response, stream: Stream) -> Response:
        """Return the response, of which the program reads *stream*."""

    @abstractmethod
    def reply(self, reply: OwnResponse, request: Request) -> Response:
        """Return a response of our own."""

    @abstractmethod
    async def body_of(self, request: Request) -> tuple[bytes, Pieces | None]:
        """Return the body, and the rest of one that is too long to be kept; or None."""

    @abstractmethod
    def with_body(self, request: Request, content: bytes, rest: Pieces | None) -> Request:
        """Return a request whose body was read."""

    # Send -----------------------------------------------------------------------------------------

    def handle(
        self,
        incoming: Incoming,
        plan: Plan,
        request: Request,
        send_once: Callable[[Request], Response],
    ) -> Any:
        """Send a request in a thread; arguments as for `ahandle`."""

        async def once(one: Request) -> Response:
            return send_once(one)

        if isinstance(plan, Call):
            plan.in_thread = True
        return complete(self.ahandle(incoming, plan, request, once))

    async def ahandle(
        self,
        incoming: Incoming,
        plan: Plan,
        request: Request,
        once: Send[Request, Response],
    ) -> Any:
        """Send a request through the pool, or as it is.

        Args:
            incoming: What the request is.
            plan: What is to be done with it.
            request: The request.
            once: Sends it, or a copy of it, by a coroutine.
        """
        if isinstance(plan, Call):
            content, rest = await self.body_of(request)
            try:
                plan.begin(content, rest)
            except Exception:
                handle_internal_error("clients")
                plan = in_place_of_placeholder(self._calls, self._served, incoming)
                request = self.with_body(request, content, rest)
        if isinstance(plan, OwnResponse):
            return self.reply(plan, request)
        if isinstance(plan, Secret):
            return await self._send_home(request, plan, once)
        while isinstance(plan, Call):
            try:
                return await self._serve(plan, request, once)
            except Exception as failure:
                goes_on = plan.go_on(failure)
            if not goes_on:
                return self.last(plan, request)
        return await once(request)

    async def _serve(self, call: Call, request: Request, once: Send[Request, Response]) -> Any:
        pool, opened = call.calls.pool, list[Response]()
        observer = observe(pool.observers, call.state.info, handle_internal_error)

        async def send(lease: Lease) -> Done | Failed | StreamOpened:
            key, in_full = call.key(lease), observer is not None or bool(lease.purses)
            try:
                with Redacting(call.redact):
                    response = await once(self.copy(call, request, key))
                    headers = self.head(response, request, call.redact)
                    reply = await self._received(call, response, headers, key, in_full)
            except Exception as error:
                return Failed(lost_connection(error), error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response,)
            return reply

        answer: Any = await runner.arun(
            pool, call.state, send, call.no_key, observer, in_thread=call.in_thread
        )
        if opened:
            response = self.streamed(opened.pop(), answer)
            answer = self.with_explanation(response, Explanation(answer.notes), request)
        return answer

    async def _received(
        self, call: Call, response: Response, headers: Mapping[str, str], key: Secret, in_full: bool
    ) -> Done | Failed | StreamOpened:
        status = self.status(response)
        may_be_page = status < 300 and call.may_be_page(headers)
        is_stream = status < 300 and call.is_stream(headers) and (call.stream or not may_be_page)
        if call.state.first_token_s is not None:
            self._has_head(call, response, is_stream)
        if status >= 400:
            return self.failed(call, response, await self._said(response))
        if not is_stream:
            return await self._read_whole(call, response, headers, key, in_full=in_full)
        stream = self._stream_of(call, headers, key, *self.pieces(response))
        try:
            failed = await self._begin(call, response, stream, may_be_page=may_be_page)
        except BaseException:
            await stream.release()
            raise
        if failed is None:
            return StreamOpened(stream)
        await stream.release()  # the next attempt needs a connection too
        return failed

    async def _begin(
        self, call: Call, response: Response, stream: Stream, *, may_be_page: bool
    ) -> Failed | None:
        """Read the beginning of a stream; return the failure that it is, or None."""
        if may_be_page and call.is_no_answer(self.status(response), await stream.begin()):
            page, is_whole = await stream.read_up_to(LONGEST_BODY)
            if is_whole:  # else it is too long to be kept: the program reads it
                return self.no_answer(call, response, page)
        await stream.read_first(call.state.deadline)
        if not stream.reader.failed_at_once:
            return None
        said, _ = await stream.read_up_to(ENOUGH)
        return self.failed(call, response, said[:ENOUGH], stream.error)

    def _stream_of(
        self,
        call: Call,
        headers: Mapping[str, str],
        key: Secret,
        pieces: Pieces,
        close: Callable[[], object],
    ) -> Stream:
        make = self.stream_type(in_thread=call.in_thread)
        return make(pieces, close, call.reader(headers), headers, key=key, redact=call.redact)

    async def _read_whole(
        self,
        call: Call,
        response: Response,
        headers: Mapping[str, str],
        key: Secret,
        *,
        in_full: bool,
    ) -> Done | Failed | StreamOpened:
        status, (content, rest) = self.status(response), await self.content(response, headers)
        if rest is not None and status < 300:
            stream = self._stream_of(call, headers, key, rest, self.pieces(response)[1])
            stream.put_back(content)
            return StreamOpened(stream)
        if status >= 300:
            if rest is not None:
                await self.aclose(response)
            kept = call.refused_redirect(status, headers) or kept_error(
                status, content, call.redact, headers.get("content-type")
            )
            return Done(response if kept == content else self.rebuilt(response, kept))
        if (hidden := redact_key(content, key)) != content:
            response = self.rebuilt(response, hidden)
        text, is_whole = text_of(hidden)
        if call.is_no_answer(status, text):
            return self.no_answer(call, response, hidden)
        if (error := call.find_error(hidden, text)) is not None:
            return self.failed(call, response, hidden, error)
        return call.done(response, text, headers, in_full=in_full and is_whole)

    def _has_head(self, call: Call, response: Response, is_stream: bool) -> None:
        """End a deadline that is the head's alone; note whether others may have one here."""
        tokens, host = call.calls.pool.first_tokens, call.state.info.host
        tokens.shared[host] = tokens.shared.get(host, False) or self.is_shared(response)
        deadline = call.state.deadline
        if deadline is not None and (isinstance(deadline, Deadline) or not is_stream):
            deadline.cancel()

    async def _send_home(
        self, request: Request, key: Secret, once: Send[Request, Response]
    ) -> Response:
        """Send a request with the home key, once and without the pool."""
        redact = self._calls.redact("") if self._calls is not None else str
        with Redacting(redact):
            response = await once(self.with_key(request, key))
            headers = self.head(response, request, redact)
            status = self.status(response)
            if status < 400:
                return response
            said, kind = await self._said(response), headers.get("content-type")
            kept = kept_error(status, said, redact, kind)
            return self.rebuilt(response, kept)

    async def _said(self, response: Response) -> bytes:
        try:
            return await until_enough(self.error_pieces(response))
        finally:
            await self.aclose(response)

    # Make a response ------------------------------------------------------------------------------

    def failed(self, call: Call, response: Any, said: bytes, event: Any = None) -> Failed:
        """Return the failure that a response is, or that *event* in it."""
        code, headers = self.status(response), response.headers
        kept = kept_error(code, said, call.redact, headers.get("content-type"))
        rebuilt = self.rebuilt(response, kept)
        if event is not None:
            facts = FailureFacts(None, event, headers.get("retry-after"), headers=headers)
            return Failed(facts, RefusalError(rebuilt, event))
        text = kept.decode(json.detect_encoding(kept), "replace")
        return call.refused(code, text, headers, rebuilt)

    def no_answer(self, call: Call, response: Any, said: bytes) -> Failed:
        """Return the failure that a success is which is no answer; the program gets it as it is."""
        text = call.redact(said.decode("utf-8", "replace"))
        cause = "a page in place of an answer" if text.strip() else "nothing in place of an answer"
        facts = FailureFacts(self.status(response), text, transport="no_answer", cause=cause)
        return Failed(facts, RefusalError(self.rebuilt(response, said), text))

    def last(self, call: Call, request: Request) -> Any:
        """Return the response that ends a call; raise what is none."""
        error = call.take_error()
        if not isinstance(error, RefusalError):
            raise error
        before, last = error.__cause__, None
        if isinstance(before, RefusalError):
            last = (before.code, before.body, before.response)
        outcome = Explanation(getattr(error, "__notes__", ()), error.no_key, last)
        response = error.response
        if isinstance(response, OwnResponse):
            response = self.reply(response, request)
        elif hasattr(response.headers, "update") and (
            not call.state.info.sdk_retries or self.status(response) < 500
        ):
            response.headers[NO_RETRY] = "false"  # it was sent again here already
        return self.with_explanation(response, outcome, request)

    def with_explanation(self, response: Any, outcome: Explanation, request: Request) -> Any:
        """Return the response to *request* that carries an outcome; see `explanation_of`."""
        response.keyrot = outcome
        return response
