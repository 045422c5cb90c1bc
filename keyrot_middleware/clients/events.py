"""What the bytes of a reply report, read on their way to the program.

Tokens, stored things, an error, and that the reply is complete: of server-sent events and arrays
of JSON (`EventReader`), and of the end of a reply that is too long to be kept (`EndReader`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..core.model import NO_USAGE, Reported, Usage, service_tier
from ..providers.base import Events
from .bounded import LONGEST_BODY
from .large import is_vast, shortened


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
        if self._rest or self._is_array or not data.endswith(b"\n"):
            self._feed_part(data)
            return
        for line in data.splitlines():
            if line:
                self._read_line(line)

    def _feed_part(self, data: bytes) -> None:
        """Add bytes that are more or less than whole lines."""
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
            line = bytes(self._rest)
            if line.startswith(b"data:"):
                self._read_data(line)  # it is parsed, since it may be cut
            else:
                self._read_line(line)
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
            if self._events.skim(line):
                self._begun = self._begun or b'"ping"' not in line
            else:
                self._read_data(line)
        elif len(self._other) < _LONGEST_ERROR and not line.startswith(_FIELDS):
            self._other += line
            if line.endswith(b"}"):
                self._read_json(self._other)

    def _read_data(self, line: bytes) -> None:
        if line[5:].strip() == b"[DONE]":
            self.is_over = True
        else:
            self._read_json(line[5:])

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
_FIELDS = (b"event:", b"id:", b"retry:", b":")
"""How a line of an event begins that has no data."""
_LONGEST_ERROR = 65_536
"""No error of a provider's is longer."""
_decoder = json.JSONDecoder()
