"""What the bytes of a response report, as they come: tokens, names, and an error under HTTP 200."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..adapters import with_served_tier
from ..core.model import NO_USAGE, Reported, Usage
from ..providers.base import Events


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
    ) -> None:
        """Start empty.

        Args:
            events: Reads each event, in one of the protocols; None: the bytes report nothing.
            is_array: The events are the elements of an array.
            served_tier: The service tier that the headers name, if any.
            estimate: The input tokens, where the server counts none.
        """
        self._events: Any = events
        self._is_array, self._served_tier, self._estimate = is_array, served_tier, estimate
        self._rest = bytearray()
        """The beginning of a line, or of an element, whose end is not here."""
        self._other = bytearray()
        """What is no event: an error behind the events comes as JSON alone."""
        self._begun = False
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
        """Whether the first event is here, not only a part of it."""
        return self._begun or self.is_over or self._events is None

    @property
    def failed_at_once(self) -> bool:
        """Whether the first event is an error."""
        return self.error is not None and not self._begun

    def give_up(self) -> None:
        """Read no further."""
        self._events = None

    def feed(self, data: bytes) -> None:
        """Add bytes of the stream."""
        if self._events is None:
            return
        self._rest += data
        if self._is_array:
            # Most elements end with a piece; to search each piece for one would be quadratic.
            if data.rstrip(b" \r\n,]").endswith(b"}"):
                self._read_elements()
        elif b"\n" in data or b"\r" in data:
            *lines, rest = bytes(self._rest).replace(b"\r", b"\n").split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                self._read_line(line)

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
        text = self._rest.decode("utf-8", "replace")
        while begin := text.find("{") + 1:
            try:
                event, end = _decoder.raw_decode(text, begin - 1)
            except (ValueError, RecursionError):
                break
            self._read(event)
            text = text[end:]
        self._rest = bytearray(text.encode())

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            marks = self._events.marks
            if line[5:].strip() == b"[DONE]":
                self.is_over = True
            elif marks and not any(mark in line for mark in marks):
                self._begun = self._begun or b'"ping"' not in line
            else:
                self._read_json(line[5:])
        elif len(self._other) < _LONGEST:
            self._other += line
            if line.endswith(b"}"):
                self._read_json(self._other)

    def _read_json(self, text: bytes | bytearray) -> None:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return
        self._read(event[0] if isinstance(event, list) and event else event)

    def _read(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if self._events.is_error(event):
            self.error, self.is_over = event, True
            return
        self._begun = True
        if self._events.feed(event):
            self.is_over = True
        self.names = self._events.names


_LONGEST = 65_536
"""No error of a provider's is longer."""
_decoder = json.JSONDecoder()
