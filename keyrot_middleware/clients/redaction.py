"""Redact keys in what a server sent, and in the exceptions that are made of it.

Google's own error bodies can echo the whole key, and so can anything else that a server sends:
headers, reasons, frames of a websocket, in many charsets and escapes. This module decides what is
redacted there, for text, bytes, responses and exceptions alike. The exception stays the SDK's own
object: class, code, status, message, details and a readable response; only the key is replaced.

Error reporters show the local variables of each function in a traceback, those of the HTTP
libraries too, which hold the key of the request. So the variables of the functions that ran below
a send are forgotten. (docs/adr/0035)
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from email.message import Message
from itertools import chain
from typing import Any, AnyStr, Self

from ..core.hiding import hide_escaped
from ..errors import handle_internal_error
from ..secrets import Secret

Redact = Callable[[str], str]

HIDDEN = "[redacted]"
MOST = 262_144
"""Characters of an error that are kept; Google's have a few thousand."""
_MOST_BYTES = 131_072
"""Bytes of a body that are kept; escaped as JSON, they stay below `MOST` characters."""
SPARE = 1_024
"""So much more is searched, in which a key at the cut is whole."""
ENOUGH = _MOST_BYTES + SPARE
"""Bytes of the body of an error that are read."""
_MOST_PARTS = 8
"""Objects in an error that hold a response, one in the other."""
_CUT = " … [cut by keyrot: the error is longer than is kept of it]"

_WITH_ZEROS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_SLOW = frozenset({"punycode", "idna"})
"""Charsets of names, not of texts: the first takes seconds for a text as long as `MOST`."""
_KEY_IN_QUERY = re.compile(rb"(?<=[?&])key=[^&#]*&?")
_ESCAPED_LETTER = re.compile(r"\\u00(?:3[0-9]|[46][1-9a-fA-F]|[57][0-9aA])")
"""No JSON encoder escapes these on its own."""


# Text, bytes and values -------------------------------------------------------------------------


def redact_key(sent: AnyStr, key: Secret) -> AnyStr:
    """Redact in text or bytes of a successful response the key that it was sent with.

    All else that looks like a key is the program's: a model may write about keys.
    """
    if isinstance(sent, bytes):
        if b"\\" not in sent and key.reveal().encode() not in sent:
            return sent  # without a copy, which costs as much as to search it
        text = sent.decode("latin-1")  # one character a byte, and the key is ASCII
        hidden = redact_key(text, key)
        return sent if hidden == text else hidden.encode("latin-1")
    if "\\" not in sent or "\\u00" not in sent or _ESCAPED_LETTER.search(sent) is None:
        return key.hide_in(sent)
    return hide_escaped(sent, key.hide_in)


def begun_key(data: bytes, key: Secret) -> int:
    """Return how many bytes at the end of *data* may be the beginning of a key.

    Of a plain one: no JSON encoder escapes letters on its own.
    """
    value = key.reveal()
    tail = data[1 - len(value) :].decode("latin-1") if len(value) > 1 else ""
    if not tail or tail[-1] not in value:
        return 0
    at = tail.find(value[0])
    while at >= 0 and not value.startswith(tail[at:]):
        at = tail.find(value[0], at + 1)
    return len(tail) - at if at >= 0 else 0


def redact_bytes(data: bytes, redact: Redact, kind: str = "") -> bytes:
    """Redact bytes of text, in each charset in which programs may read them.

    Args:
        data: The bytes.
        redact: Takes keys out of a text.
        kind: Their content type, which may name a charset.
    """
    for charset in _charsets(data, kind):
        # Of UTF-8, the charset of nearly all errors, what cannot be read stays as it is.
        unread, text = "surrogateescape" if charset == "utf-8" else "replace", ""
        with suppress(Exception):  # it is not known, or none of text
            text = data.decode(charset, unread)
        if (hidden := redact(text)) != text:
            data = hidden.encode(charset, unread)
    return data


def _charsets(data: bytes, kind: str) -> list[str]:
    """Return the charsets in which programs may read bytes, that of their headers first.

    JSON is in UTF-8, UTF-16 or UTF-32, whatever the headers name; the latter have zeros in them.
    """
    head = Message()
    head["content-type"] = kind
    codings = [head.get_content_charset("utf-8"), json.detect_encoding(data), "utf-8"]
    if b"\0" in data:
        codings += _WITH_ZEROS
    return [name for name in dict.fromkeys(codings) if name not in _SLOW]


def _redact_value(value: Any, redact: Redact) -> Any:
    """Redact a text, bytes, a tuple or headers; return the same object if there is nothing to hide.

    An error that is longer than `MOST` is cut.
    """
    if isinstance(value, str):
        hidden = bounded(value, redact)
        return value if hidden == value else hidden
    if isinstance(value, bytes | bytearray):
        hidden = bounded(value, lambda data: redact_bytes(bytes(data), redact))
        return value if hidden == value else hidden
    if isinstance(value, tuple):
        items = [_redact_value(item, redact) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return _redact_headers(value, redact)
    return value


def redacted_json(value: Any, redact: Redact) -> Any:
    """Return a copy of parsed JSON without keys."""
    return json.loads(redact(json.dumps(value)))


def without_key(url: AnyStr) -> AnyStr:
    """Return a URL without the key in its query."""
    if isinstance(url, str):
        return without_key(url.encode()).decode()
    return _KEY_IN_QUERY.sub(b"", url).rstrip(b"?&") if b"key=" in url else url


def bounded(value: Any, hide: Callable[[Any], Any], most: int = MOST) -> Any:
    """Hide keys in a text or in bytes; keep *most* of a longer one, and say so."""
    if len(value) <= most:
        return hide(value)
    hidden = hide(value[: most + SPARE])
    kept = hidden[: min(most, len(hidden) - SPARE)]
    return kept + (_CUT if isinstance(value, str) else _CUT.encode())


def _redact_headers(headers: Any, redact: Redact) -> Any:
    """Return HTTP headers of any library without keys; the same object if they have none."""
    if hasattr(headers, "raw_items"):
        pairs = list(headers.raw_items())  # websockets
    else:
        pairs = list(getattr(headers, "raw", None) or headers.items())  # httpx, else all others
    hidden = [_header(name, text, redact) for name, text in pairs]
    if hidden == pairs:
        return headers
    kind = type(headers)
    if not hasattr(headers, "getall"):
        return kind(hidden)
    from multidict import CIMultiDict  # noqa: PLC0415 - present wherever aiohttp is in use

    return CIMultiDict(hidden) if kind is CIMultiDict else kind(CIMultiDict(hidden))


def _header(name: Any, text: Any, redact: Redact) -> tuple[Any, Any]:
    lower = (name.decode("latin-1") if isinstance(name, bytes) else str(name)).lower()
    if lower == "x-goog-upload-url":  # it works without the key that it may repeat
        text = without_key(text)

    def hide(text: str) -> str:
        hidden = redact(text)
        if hidden == text:
            return text
        return hidden.replace("…", "...")  # they are ASCII

    return _redact_value(name, hide), _redact_value(text, hide)


def _redact_items(value: Any, redact: Redact) -> None:
    """Redact a dict or list in place, and those in it."""
    boxes, seen = [value], {id(value)}
    for box in boxes:  # which grows meanwhile
        for key in list(box) if isinstance(box, dict) else range(len(box)):
            item = box[key]
            if not isinstance(item, dict | list):
                box[key] = _redact_value(item, redact)
            elif id(item) not in seen:
                seen.add(id(item))
                boxes.append(item)
            if isinstance(key, str) and (name := redact(key)) != key:
                box[name] = box.pop(key)


def kept_error(code: int, body: bytes, redact: Redact, kind: str | None) -> bytes:
    """Return what is kept of a body. Half of a JSON text is none: the SDK reads it as a message.

    Args:
        code: The status of the response.
        body: What it says.
        redact: Takes keys out of a text.
        kind: The content type of the response, if it names one.
    """
    kept: bytes = bounded(body, lambda data: redact_bytes(data, redact, kind or ""), _MOST_BYTES)
    if len(body) <= _MOST_BYTES or body.lstrip()[:1] not in (b"{", b"["):
        return kept
    error = {"code": code, "message": kept.decode("utf-8", "replace")}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


# Responses --------------------------------------------------------------------------------------


def scrub(holder: Any, redact: Redact) -> None:
    """Redact a response of any HTTP library, or an exception, in place, and what it holds.

    The request that it holds keeps its body: it may be sent again, with another key.
    """
    parts = [holder]
    for part in parts:  # which grows meanwhile: error, the SDK's response, that of its library
        for name in ("response", "response_stream", "rcvd", "sent"):
            with suppress(Exception):  # properties of foreign classes
                if (inner := getattr(part, name, None)) is not None and len(parts) < _MOST_PARTS:
                    parts.append(inner)
    for part in parts:
        _scrub_one(part, redact)
        with suppress(Exception):
            for past in getattr(part, "history", None) or ():
                _scrub_one(past, redact)


def _scrub_one(holder: Any, redact: Redact) -> None:
    held = getattr(holder, "__dict__", None)
    if not held:
        return
    for name, value in [*held.items()]:
        with suppress(Exception):
            if isinstance(value, dict | list):
                _redact_items(value, redact)
            elif (hidden := _redact_value(value, redact)) is not value:
                held[name] = hidden
    with suppress(Exception):  # `request` raises where there is none
        request = holder.request
        hidden = _redact_headers(request.headers, redact)
        if hidden is not request.headers:
            request.headers = hidden


def scrub_head(response: Any, redact: Redact) -> Any:
    """Redact the headers and the reason of a response of httpx or aiohttp, whatever its status.

    Returns:
        The headers as pairs of bytes.
    """
    raw: Any = ()
    try:
        if (raw := getattr(response, "raw_headers", None)) is not None:
            reason = (response.reason or "").encode("utf-8", "replace")  # aiohttp
        else:
            raw, reason = response.headers.raw, response.extensions.get("reason_phrase", b"")
        text = b"\n".join((*chain.from_iterable(raw), reason)).decode("latin-1")
        if redact(text) != text:
            scrub(response, redact)
            raw = getattr(response.headers, "raw", raw)
    except Exception:
        handle_internal_error("clients")
    return raw


# Exceptions -------------------------------------------------------------------------------------


def redact_exception(
    error: BaseException,
    redact: Redact,
    handled: BaseException | None = None,
    *,
    frames: bool = True,
) -> None:
    """Redact *error* in place, and what it was raised from; forget the variables below a send.

    Args:
        error: What a send has raised.
        redact: Takes the keys out of a text.
        handled: What the program was handling when it called. Python hangs that behind *error* as
            its context, but it is the program's own, with all that is behind it.
        frames: False for an exception of a send that was not ours: the variables are the program's.
    """
    for link in _chain(error, handled):
        try:
            _redact_link(link, redact)
        except Exception:  # foreign attributes may raise, and must not hide the error
            handle_internal_error("clients")
    if frames:
        _forget_frames(error, handled)


def _forget_frames(error: BaseException, handled: BaseException | None = None) -> None:
    """Forget the local variables of the functions through which *error* came, and its causes.

    Call it where the exception of a send is caught: all of them ran below that.
    """
    for link in _chain(error, handled):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            with suppress(RuntimeError):  # it is still running
                frame.clear()


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    links: list[Any] = [error]
    seen = {id(handled), id(None)}
    for link in links:  # which grows meanwhile
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        links += (link.__cause__, link.__context__)
        links += getattr(link, "exceptions", ()) if isinstance(link, BaseExceptionGroup) else ()
        links += [one for one in vars(link).values() if isinstance(one, BaseException)]


_SAID = ("details", "body", "message", "status")
"""Attributes of exceptions that hold what the server said, or JSON of it."""
_SLOTS = ("object", "strerror")
"""Texts of Python's own exceptions that are not in `vars()`."""


def _redact_link(link: BaseException, redact: Redact) -> None:
    scrub(link, redact)  # first: its arguments may be what it holds, and stay as they are
    held = vars(link)
    link.args = tuple(_said(value, redact) for value in link.args)
    for name in _SAID:
        if name in held:
            held[name] = _said(held[name], redact)
    for name in _SLOTS:
        value = getattr(link, name, None)
        if (hidden := _redact_value(value, redact)) is not value:
            setattr(link, name, hidden)


def _said(value: Any, redact: Redact) -> Any:
    """Return what an exception says without keys; an object that prints one, as what it prints."""
    if isinstance(value, dict | list):
        _redact_items(value, redact)
    elif not isinstance(value, str | bytes | tuple | int | float | BaseException | None):
        text = str(value)  # aiohttp has parsed messages there
        hidden = _redact_value(text, redact)
        return value if hidden == text else hidden
    return _redact_value(value, redact)


# While a request is being sent ------------------------------------------------------------------


current_redact: ContextVar[Redact | None] = ContextVar("keyrot_redact", default=None)
"""Redacts what comes back for the request that is being sent; None where it is not ours."""


_LOGGERS = (
    "httpcore.http11",
    "httpcore.http2",
    "httpcore2.http11",
    "httpcore2.http2",
    "hpack.hpack",
    "hpack.table",
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.util.retry",
)
"""They write the headers of a response at DEBUG; hpack those of a request too, and urllib3 what it
cannot parse, and addresses."""


class _LogFilter(logging.Filter):
    """Redacts what is logged of a request: while it is sent, and later, while a stream is read."""

    redact: Redact | None = None
    """Of the pool."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (redact := current_redact.get() or self.redact) is not None:
            text = record.getMessage()
            if (hidden := redact(text)) != text:
                record.msg, record.args = hidden, ()
            if record.exc_info and (error := record.exc_info[1]) is not None:
                text = "".join(traceback.format_exception(error)).rstrip()
                if (hidden := redact(text)) != text:
                    record.exc_info, record.exc_text = None, hidden
        return True


_log_filter = _LogFilter()


def filter_logs(redact: Redact | None) -> None:
    """Begin to redact what the HTTP libraries log of requests, or end it.

    Args:
        redact: The pool's, for what is logged outside of a send; None to end it.
    """
    _log_filter.redact = redact
    for logger in map(logging.getLogger, _LOGGERS):
        (logger.removeFilter if redact is None else logger.addFilter)(_log_filter)


class Redacting:
    """Around a request: what comes back for it is redacted, and the error if there is one."""

    __slots__ = ("_handled", "_redact", "_token")

    def __init__(self, redact: Redact) -> None:
        self._redact = redact

    def __enter__(self) -> Self:
        self._handled, self._token = sys.exception(), current_redact.set(self._redact)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        current_redact.reset(self._token)
        if error is not None:
            redact_exception(error, self._redact, self._handled)
        self._handled = None
