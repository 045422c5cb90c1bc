"""The body of a response that is read in pieces: up to its first event, and by the program.

The bytes go to the program unchanged, but for an echo of the key. What they report is read on the
way, and the lease ends with them: read to the end, closed or dropped.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from inspect import isawaitable
from typing import Any

from ..core.commands import Failed, StreamEnd
from ..core.failures import FailureFacts
from ..core.model import NO_USAGE, Reported, Usage, service_tier
from ..errors import handle_internal_error
from ..providers.base import Events
from ..runtime import runner
from ..runtime.driver import complete
from ..secrets import Secret
from .errors import lost_connection
from .large import is_vast, shortened
from .redaction import ENOUGH, Redact, Redacting, begun_key, redact_key, redacted_json

LONGEST_BODY = 32 * 1024 * 1024
"""Bytes of a body from a generator that are kept, so that it can be sent again. Google takes 20 MB
in one request (https://ai.google.dev/gemini-api/docs/files). Nor is more kept of a reply."""
_BLANK = 32
"""No key has this byte or a lower one, and most events end with such."""


class EventError(Exception):
    """An error came inside a stream, where the program reads it. Never reaches a caller."""


class Body:
    """The pieces and what they report. Over a sync library no coroutine of it suspends."""

    def __init__(
        self,
        pieces: Any,
        close: Callable[[], object],
        reader: EventReader,
        headers: Mapping[str, str],
        *,
        key: Secret,
        redact: Redact,
    ) -> None:
        """Read nothing yet.

        Args:
            pieces: The bytes, an iterator or an async one.
            close: Releases the connection; may return an awaitable.
            reader: Reads the bytes.
            headers: Those of the response.
            key: The one that the request went with.
            redact: Takes keys out of exceptions.
        """
        self._pieces, self._close, self.reader = pieces, close, reader
        self._is_async = hasattr(pieces, "__anext__")
        self._headers, self._key, self.redact = headers, key, redact
        self._held = b""
        """The end of what was read, while it may be the beginning of the key."""
        self.first: list[bytes] = []
        """What was read before the first event that shows something was complete."""
        self.is_closing = False
        """The program reads no further."""
        self.tail = b""
        """An error event: the program reads it once the lease is settled with it."""
        self.notes: list[str] = []
        """About each attempt, if the stream ends with an error event."""

    def take(self, data: bytes | None) -> bytes | None:
        """Count what has arrived, or that no more will; return what the program reads of it."""
        if not data:
            if data is None and self._held:
                data, self._held = self._held, b""
            return data
        try:
            self.reader.feed(data)
        except Exception:
            self.reader.give_up()
            handle_internal_error("clients")
        if self._held:
            data, self._held = self._held + data, b""
        data = redact_key(data, self._key)
        if data[-1] > _BLANK and (begun := begun_key(data, self._key)):
            data, self._held = data[:-begun], data[-begun:]
        return data

    @property
    def error(self) -> Any:
        """The event that is an error, without keys: it may be quoted later."""
        error = self.reader.error
        return error and redacted_json(error, self.redact)

    @property
    def ends_in_error(self) -> bool:
        """Whether an error came behind events that the program has."""
        return self.reader.error is not None and not self.reader.failed_at_once

    def failed_event(self) -> Failed:
        """Return the failure that is an event of the stream."""
        facts = FailureFacts(None, self.error, self._headers.get("retry-after"))
        return Failed(facts, EventError())

    def finish(self) -> None:
        """Read what is left in the reader."""
        try:
            self.reader.finish()
        except Exception:
            handle_internal_error("clients")

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        failed: Failed | None = None
        if not self.reader.is_over:
            self.finish()
        if error is not None:
            failed = Failed(lost_connection(error), error)
        elif self.reader.error is not None:
            failed = self.failed_event()
        reader = self.reader
        return StreamEnd(reader.usage, reader.names, failed, reader.reported)

    async def read_first(self, deadline: Any = None) -> None:
        """Read until the first event that shows something is here, or all of the body is.

        Any event ends *deadline*: the work has begun.
        """
        while not self.reader.has_begun:
            data = await self._next()
            if deadline is not None and self.reader.has_event:
                deadline.cancel()
            if data is None:
                self.finish()
                return
            self.first.append(data)

    async def begin(self) -> bytes:
        """Return the first bytes, which are read again."""
        while not b"".join(self.first).strip():
            data = await self._next()
            if data is None:
                break
            self.first.append(data)
        return b"".join(self.first)

    async def _next(self) -> bytes | None:
        with Redacting(self.redact):
            if self._is_async:
                data = await anext(self._pieces, None)
            else:
                data = next(self._pieces, None)
        return self.take(data)

    def __iter__(self) -> Iterator[bytes]:
        """Return this body."""
        return self

    def __next__(self) -> bytes:
        """Return the next bytes; for a thread."""
        try:
            return complete(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return this body."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            StopAsyncIteration: The body ended.
        """
        data: bytes | None = None
        if not self.is_closing:
            data = self.first.pop(0) if self.first else await self._next()
        if data is None:
            raise StopAsyncIteration
        if self.ends_in_error:
            self.tail, self._held = data + self._held, b""
            raise StopAsyncIteration
        return data

    async def read_of(self, relay: runner.Relay | runner.AsyncRelay) -> bytes:
        """Return the next bytes for the program, from the relay of this body; none at the end."""
        try:
            while (data := await relay.read()) is not None:
                if data:
                    return bytes(data)
        except EventError as error:
            self.notes += getattr(error, "__notes__", ())
        tail, self.tail = self.tail, b""
        return tail

    def drop(self, relay: runner.Relay | runner.AsyncRelay) -> None:
        """End the stream where the program has released its connection."""
        self.is_closing = True
        relay.abandon()

    async def aclose(self) -> None:
        """Release the connection."""
        with suppress(Exception):
            closing = self._close()
            if isawaitable(closing):
                await closing

    def close(self) -> None:
        """Release the connection; for a thread."""
        complete(self.aclose())

    async def leave(self, relay: runner.Relay | runner.AsyncRelay) -> None:
        """End the stream where the program closes it.

        Programs stop reading behind the last event, before the end of the bytes. Closed there, the
        stream is whole; closed before, the call is abandoned.
        """
        self.is_closing = True
        try:
            if self.reader.is_over:
                with suppress(EventError):
                    while await relay.read() is not None:
                        pass
            else:
                await relay.end()
        except (ValueError, RuntimeError):
            pass  # another thread or task reads it, and ends with an error now
        await self.aclose()


class Tee:
    """The stream of a response, of which the lease ends with it."""

    def __init__(self, body: Body, relay: runner.Relay) -> None:
        self._body, self._relay = body, relay

    def __iter__(self) -> Iterator[bytes]:
        try:
            while data := complete(self._body.read_of(self._relay)):
                yield data
        except GeneratorExit:  # dropped half-read: its connection is free at once, as without us
            self._body.is_closing = True
            if not self._body.reader.is_over:  # else it may be closed yet, as a whole stream
                with suppress(ValueError):
                    self._relay.close()
            self._body.close()
            raise

    def close(self) -> None:
        """End the stream."""
        complete(self._body.leave(self._relay))


class AsyncTee:
    """The same for async streams.

    No generator: a loop closes one that is dropped, while what is above closes it too.
    """

    def __init__(self, body: Body, relay: runner.Relay | runner.AsyncRelay) -> None:
        self._body, self._relay = body, relay

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not (data := await self._body.read_of(self._relay)):
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """End the stream."""
        await self._body.leave(self._relay)


@cache
def mixed_type(ours: type, *theirs: type) -> Any:
    """Return the class of our streams that is one of the library's too, which asks for that."""
    return type(ours.__name__, (ours, *theirs), {})


def with_served_tier(usage: Usage, served: str | None) -> Usage:
    """Return *usage* with the service tier that the headers name; without, that of the body.

    The header is how Google says that a request was served in another tier than it asked for. The
    body of an interaction may repeat the one that was asked for.
    """
    served = service_tier(served) if usage is not NO_USAGE else None
    return usage if served is None else usage._replace(service_tier=served)


class EventReader:
    """Reads server-sent events, and the array of JSON that comes without `alt=sse`.

    It reads no more than what a client reads that stops behind the last event: that stream is over.
    """

    def __init__(
        self,
        events: Events | None = None,
        *,
        is_array: bool = False,
        served_tier: str | None = None,
        estimate: int = 0,
        is_job: bool = False,
    ) -> None:
        """Start empty.

        Args:
            events: Reads each event, in one of the protocols; None: the bytes report nothing.
            is_array: The events are the elements of an array.
            served_tier: The service tier that the headers name, if any.
            estimate: The input tokens, where the server counts none.
            is_job: The first event names what is made, which is not made twice.
        """
        self._events: Any = events
        self._is_array, self._served_tier, self._estimate = is_array, served_tier, estimate
        self._is_job = is_job
        self._enough = 0
        """Bytes from which on an element is tried again: to try it at each would be quadratic."""
        self._rest = bytearray()
        """The beginning of a line, or of an element, whose end is not here."""
        self._other = bytearray()
        """What is no event: an error behind the events comes as JSON alone."""
        self._begun = False
        self.has_event = False
        """An event is here, whether or not it shows anything; a ping is none."""
        self.error: Any = None
        """The event that is an error."""
        self.is_over = False
        """The response is complete, whether or not more bytes come."""
        self.names: tuple[str, ...] = ()
        """The stored resources named so far."""
        self.reported: Sequence[Reported] = ()
        """The limits that the headers name."""

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        usage: Usage = NO_USAGE if self._events is None else self._events.usage
        if usage.estimated:
            usage = usage._replace(input_tokens=self._estimate)
        return with_served_tier(usage, self._served_tier)

    @property
    def has_begun(self) -> bool:
        """Whether the first event that shows something is here, not only a part of it."""
        return self._begun or self.is_over or self._events is None

    @property
    def failed_at_once(self) -> bool:
        """Whether an error has come before any event that shows something."""
        return self.error is not None and not self._begun

    def give_up(self) -> None:
        """Read no further."""
        self._events = None
        self._rest.clear()

    def feed(self, data: bytes) -> None:
        """Add bytes of the stream."""
        if self._events is None:
            return
        self._rest += data
        if self._is_array:
            # Most elements end with a piece; to search each piece for one would be quadratic.
            if len(self._rest) >= self._enough and data.rstrip(b" \r\n,]").endswith(b"}"):
                self._read_elements()
        elif b"\n" in data or b"\r" in data:
            *lines, rest = bytes(self._rest).replace(b"\r", b"\n").split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                self._read_line(line)
        if len(self._rest) > LONGEST_BODY:  # one event
            self.give_up()

    def finish(self) -> None:
        """Read what is left: the body has ended."""
        if self._events is None:
            return
        if self._is_array:
            self._read_elements()
        else:
            self._read_line(bytes(self._rest))
            self._read_json(self._other)
        self._rest.clear()
        self.is_over = True

    def _read_elements(self) -> None:
        """Read all elements that are complete; an object that is no element of an array too."""
        size, done, self._enough = len(self._rest), 0, 0
        if is_vast(self._rest):
            return self.give_up()
        text = self._rest.decode("utf-8", "replace")
        while (begin := text.find("{", done)) >= 0:
            try:
                event, done = _decoder.raw_decode(text, begin)
            except (ValueError, RecursionError):
                self._enough = 2 * size if size > _LONG_EVENT else 0
                break
            self._read(event)
        self._rest = bytearray(text[done:].encode())

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            marks = self._events.marks
            if line[5:].strip() == b"[DONE]":
                self.is_over = True
            elif marks and not any(mark in line for mark in marks):
                self._begun = self._begun or b'"ping"' not in line
            else:
                self._read_json(line[5:])
        elif len(self._other) < _LONGEST_ERROR:
            self._other += line
            if line.endswith(b"}"):
                self._read_json(self._other)

    def _read_json(self, text: bytes | bytearray) -> None:
        if len(text) > _LONG_EVENT:
            short = shortened(bytes(text))
            if short is None:  # it is not parsed, but it shows something
                self._begun = self.has_event = True
                return
            text = short
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return
        self._read(event[0] if isinstance(event, list) and event else event)

    def _read(self, event: object) -> None:
        if not isinstance(event, dict):
            return
        if self._events.is_error(event):
            self.error, self.is_over = event, True
            return
        self.has_event = self.has_event or event.get("type") != "ping"
        self._begun = self._begun or self._is_job or not self._events.is_preliminary(event)
        if self._events.feed(event):
            self.is_over = True
        self.names = self._events.names


class EndReader(EventReader):
    """Reads the end of a reply in JSON that is too long to be kept: most have their usage there.

    What it names at its beginning is lost: the model of some, stored things, why it ended.
    """

    def __init__(self, read: ReadReply, served_tier: str | None) -> None:
        """Start empty.

        Args:
            read: Returns the usage in the end of a reply.
            served_tier: The service tier that the headers name, if any.
        """
        super().__init__(served_tier=served_tier)
        self._read_reply, self._usage = read, NO_USAGE

    @property
    def usage(self) -> Usage:
        """The tokens, at the end of the body."""
        return with_served_tier(self._usage, self._served_tier)

    def feed(self, data: bytes) -> None:
        """Keep the end."""
        self._rest += data
        if len(self._rest) > 2 * _END:
            del self._rest[:-_END]

    def finish(self) -> None:
        """Read the end: the body is complete."""
        self._usage = self._read_reply(self._rest[-_END:].decode("utf-8", "replace"))[0]
        self._rest.clear()
        self.is_over = True


ReadReply = Callable[[str], tuple[Usage, Sequence[str]]]
_END = 65_536
_LONG_EVENT = 65_536
_LONGEST_ERROR = 65_536
"""No error of a provider's is longer."""
_decoder = json.JSONDecoder()


# Bodies up to a bound ----------------------------------------------------------------------------


async def read_bounded(pieces: Any, most: int = LONGEST_BODY) -> tuple[bytes, Any]:
    """Return the beginning of a body, and what is left of it; None for nothing."""
    read, is_async = bytearray(), hasattr(pieces, "__anext__")
    while (piece := await anext(pieces, None) if is_async else next(pieces, None)) is not None:
        read += piece
        if len(read) > most:
            return bytes(read), pieces
    return bytes(read), None


async def until_enough(pieces: Any) -> bytes:
    """Read as much of an error as is kept."""
    return (await read_bounded(pieces, ENOUGH))[0][:ENOUGH]
