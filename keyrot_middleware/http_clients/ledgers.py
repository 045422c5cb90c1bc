"""What the bytes of a response report, as they come: tokens, names, and an error under HTTP 200."""

from __future__ import annotations

import json
from typing import Any

from ..core.interactions import ResponseLedger
from ..core.model import NO_USAGE
from ..core.usage import StreamLedger, parse_openai_usage

__all__ = ["Ledger", "NamedLedger"]


class Ledger(ResponseLedger):
    """Reads server-sent events, and the array of JSON that comes without `alt=sse`.

    It reads no more than what a client reads that stops behind the last event: that stream is over.
    """

    __slots__ = ("_begun", "_google", "_is_array", "_is_openai", "_other", "_rest")

    def __init__(self, content_type: str, *, is_openai: bool) -> None:
        """Start empty.

        Args:
            content_type: That of the response.
            is_openai: It is in OpenAI's protocol.
        """
        super().__init__("")
        self._is_openai = is_openai
        self._is_array = "event-stream" not in content_type
        self._google = StreamLedger()
        self._rest = b""
        """The beginning of a line, or of an element, whose end is not here."""
        self._other = bytearray()
        """What is no event: an error behind the events comes as JSON alone."""
        self._begun = False

    @property
    def has_begun(self) -> bool:
        """Return whether the first event is here, not only a part of it."""
        return self._begun or self.is_over

    @property
    def failed_at_once(self) -> bool:
        """Return whether the first event is an error."""
        return self.error is not None and not self._begun

    def feed(self, data: bytes) -> None:
        """Add bytes of the stream."""
        self._rest += data
        if self._is_array:
            # Most elements end with a piece; to search each piece for one would be quadratic.
            if self._rest.rstrip(b" \r\n,]").endswith(b"}"):
                self._read_elements()
        elif b"\n" in data or b"\r" in data:
            *lines, self._rest = self._rest.replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._read_line(line)

    def finish(self) -> None:
        """Read what is left: the body has ended."""
        if self._is_array:
            self._read_elements()
        else:
            self._read_line(self._rest)
            self._read_json(self._other)
        self._rest = b""
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
        self._rest = text.encode()

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            if line[5:].strip() == b"[DONE]":
                self.is_over = True
                return
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
        if "error" in event:
            self.error, self.is_over = event, True
            return
        self._begun = True
        if self._is_openai:
            usage = parse_openai_usage(event)
            before = self.usage if usage.input_tokens is None else NO_USAGE
            self.usage = usage._replace(
                input_tokens=usage.input_tokens or before.input_tokens,
                output_tokens=usage.output_tokens or before.output_tokens,
                finish_reasons=usage.finish_reasons or self.usage.finish_reasons,
            )
            return
        self._google.feed(event)
        self.usage = self._google.usage
        self._names = dict.fromkeys(self._google.names)
        if any(one.get("finishReason") for one in event.get("candidates") or ()):
            self.is_over = True


class NamedLedger(ResponseLedger):
    """Bytes that report nothing, such as those of a file; its project has what was asked for."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("")
        self._names = dict.fromkeys(names)


_LONGEST = 65_536
"""No error of Google's is longer."""
_decoder = json.JSONDecoder()
