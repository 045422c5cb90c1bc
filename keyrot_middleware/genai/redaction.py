"""Redact keys in exceptions: in texts, bodies, responses and request headers.

Google's own error bodies can echo the whole key, and an httpx response keeps the request with
its headers (GEMINI.md 0.7, SURFACES.md 1). The exception stays the SDK's own object: class, code,
status, message, details and a readable response; only the key's characters are replaced.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..guard import handle_internal_error

__all__ = ["Redact", "clear_frames", "redact_exception", "scrub"]

Redact = Callable[[str], str]

_HIDDEN = "[redacted]"
_SECRET_HEADERS = ("x-goog-api-key", "authorization")
_READERS = ("google", "json", "tenacity", "ijson")
"""Whose local variables hold what the server sent."""


def redact_exception(
    error: BaseException, redact: Redact, handled: BaseException | None = None
) -> None:
    """Replace every key in *error*, in place, and in what it was raised from.

    Args:
        error: What a send has raised.
        redact: Takes the keys out of a text.
        handled: What the program was handling when it called. Python hangs that behind *error* as
            its context, but it is the program's own, with all that is behind it.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = {id(handled)}
    found = False
    for link in chain:  # which grows meanwhile
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        try:
            found = _redact_link(link, redact) or found
        except Exception:  # foreign attributes may raise, and must not hide the error
            handle_internal_error("genai")
        chain += (link.__cause__, link.__context__)
    if found:  # and so the functions that read it have it too
        for link in chain:
            if link is not None and link is not handled:
                clear_frames(link, _READERS)


def clear_frames(error: BaseException, packages: tuple[str, ...]) -> None:
    """Forget the local variables of finished functions of *packages*; reporters show them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
            with suppress(RuntimeError):  # it is still running
                frame.clear()


def _redact_link(link: BaseException, redact: Redact) -> bool:
    """Redact one exception; return whether its own text held a key."""
    before = f"{link.args}{link.__dict__.get('doc')}"
    link.args = tuple(_value(arg, redact) for arg in link.args)
    for name in ("message", "status", "details", "reason", "body", "doc"):
        if isinstance(link.__dict__.get(name), str | dict | list):
            link.__dict__[name] = _value(link.__dict__[name], redact)
    for name in ("rcvd", "sent"):  # websockets' frames that closed a connection
        if isinstance(reason := getattr(getattr(link, name, None), "reason", None), str):
            getattr(link, name).reason = redact(reason)
    if hasattr(link, "request_info"):  # aiohttp's own errors, also in their args
        link.request_info = _request_info(link.request_info, redact)
    for holder in (getattr(link, "response", None), link):
        scrub(holder, redact)
    return redact(before) != before


def _value(value: Any, redact: Redact) -> Any:
    """Take every key out of a value, in place: frames of the SDK hold the same dict or list."""
    if isinstance(value, str):
        return redact(value)
    if hasattr(value, "real_url"):
        return _request_info(value, redact)
    seen: set[int] = set()
    boxes: list[Any] = [value]
    for box in boxes:  # which grows meanwhile
        if id(box) in seen:
            continue
        seen.add(id(box))
        if isinstance(box, dict):
            for name, item in [*box.items()]:
                box[name] = redact(item) if isinstance(item, str) else item
                if isinstance(name, str) and (cleaned := redact(name)) != name:
                    box[cleaned] = box.pop(name)
            boxes += box.values()
        elif isinstance(box, list):
            box[:] = [redact(item) if isinstance(item, str) else item for item in box]
            boxes += box
    return value


def scrub(holder: Any, redact: Redact) -> None:
    """Take every key out of a response, or out of an exception that holds a request."""
    if holder is None:
        return
    below = getattr(holder, "response_stream", None)  # the SDK's own wrapper around one
    if below is not None and not isinstance(below, list):
        scrub(below, redact)
    for past in getattr(holder, "history", None) or ():
        scrub(past, redact)
    with suppress(Exception):  # `request` raises where there is none
        _headers(holder.request, redact)
    _aiohttp(holder, redact)
    for name in ("_content", "_body", "body"):
        body = holder.__dict__.get(name) if hasattr(holder, "__dict__") else None
        if isinstance(body, bytes | bytearray):
            _bytes(holder, name, body, redact)


def _headers(request: Any, redact: Redact) -> None:
    for name in _secret(request.headers, redact):
        request.headers[name] = _HIDDEN


def _secret(headers: Any, redact: Redact) -> list[str]:
    """Return the names of headers that hold a key; tokens of other services stay."""
    return [n for n in _SECRET_HEADERS if n in headers and redact(headers[n]) != headers[n]]


def _aiohttp(response: Any, redact: Redact) -> None:
    if (info := getattr(response, "_request_info", None)) is not None:
        response._request_info = _request_info(info, redact)
        getattr(response, "_cache", {}).pop("request_info", None)  # as its property keeps it


def _request_info(info: Any, redact: Redact) -> Any:
    """Return aiohttp's record of a request, which is read-only, without the key."""
    secret = _secret(info.headers, redact) if info is not None else []
    if not secret:
        return info
    kept = [(k, v) for k, v in info.headers.items() if k.lower() not in secret]
    return info._replace(headers=type(info.headers)(make_multidict(kept)))


def make_multidict(pairs: list[tuple[str, str]]) -> Any:
    """Build the mapping that aiohttp's headers view wants; aiohttp brings multidict."""
    from multidict import CIMultiDict  # noqa: PLC0415 - present wherever aiohttp is in use

    return CIMultiDict(pairs)


def _bytes(holder: Any, name: str, body: bytes | bytearray, redact: Redact) -> None:
    text = body.decode("utf-8", "surrogateescape")
    cleaned = redact(text)
    if cleaned != text:
        setattr(holder, name, cleaned.encode("utf-8", "surrogateescape"))
        holder.__dict__.pop("_text", None)
