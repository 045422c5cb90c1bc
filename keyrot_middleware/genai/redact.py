"""No key leaves in an exception: texts, bodies, responses and request headers are cleaned.

Google's own error bodies can echo the whole key, and an httpx response keeps the request with
its headers (GEMINI.md 0.7, SURFACES.md 1). The exception stays the SDK's own object: class, code,
status, message, details and a readable response; only the key's characters are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..drive.guard import fault

__all__ = ["clean"]

Redact = Callable[[str], str]

_HIDDEN = "[redacted]"
_SECRET_HEADERS = ("x-goog-api-key", "authorization")
_DEPTH = 12


def clean(error: BaseException, redact: Redact, handled: BaseException | None = None) -> None:
    """Replace every key in *error*, in place, and in what it was raised from.

    Args:
        error: What a send has raised.
        redact: Takes the keys out of a text.
        handled: What the program was handling when it called. Python hangs that behind *error* as
            its context, but it is the program's own, with all that is behind it.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = {id(handled)}
    for link in chain:  # which grows meanwhile
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        try:
            _link(link, redact)
        except Exception:  # what others have hung in may be odd, and must not hide the error
            fault("genai")
        chain += (link.__cause__, link.__context__)


def _link(link: BaseException, redact: Redact) -> None:
    link.args = tuple(_value(arg, redact, 0) for arg in link.args)
    for name in ("message", "status", "details", "reason", "body"):
        if isinstance(link.__dict__.get(name), str | dict | list):
            link.__dict__[name] = _value(link.__dict__[name], redact, 0)
    if hasattr(link, "request_info"):  # aiohttp's own errors, also in their args
        link.request_info = _request_info(link.request_info, redact)
    for holder in (getattr(link, "response", None), link):
        _response(holder, redact)


def _value(value: Any, redact: Redact, depth: int) -> Any:
    if isinstance(value, str):
        return redact(value)
    if depth > _DEPTH:
        return value
    if isinstance(value, dict):
        return {
            _value(k, redact, depth + 1): _value(v, redact, depth + 1) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_value(item, redact, depth + 1) for item in value]
    return _request_info(value, redact) if hasattr(value, "real_url") else value


def _response(holder: Any, redact: Redact) -> None:
    """Clean a response of httpx, httpx2 or aiohttp, or an exception that holds a request."""
    if holder is None:
        return
    below = getattr(holder, "response_stream", None)  # the SDK's own wrapper around one
    if below is not None and not isinstance(below, list):
        _response(below, redact)
    with suppress(Exception):  # `request` raises where there is none
        _headers(holder.request, redact)
    _aiohttp(holder, redact)
    for name in ("_content", "_body"):
        body = holder.__dict__.get(name) if hasattr(holder, "__dict__") else None
        if isinstance(body, bytes):
            _bytes(holder, name, body, redact)


def _headers(request: Any, redact: Redact) -> None:
    for name in _secret(request.headers, redact):
        request.headers[name] = _HIDDEN


def _secret(headers: Any, redact: Redact) -> list[str]:
    """Name the headers that hold a key; another service's token is none of our business."""
    return [n for n in _SECRET_HEADERS if n in headers and redact(headers[n]) != headers[n]]


def _aiohttp(response: Any, redact: Redact) -> None:
    if (info := getattr(response, "_request_info", None)) is not None:
        response._request_info = _request_info(info, redact)
        getattr(response, "_cache", {}).pop("request_info", None)  # as its property keeps it


def _request_info(info: Any, redact: Redact) -> Any:
    """Give aiohttp's record of a request, which is read-only, without the key."""
    secret = _secret(info.headers, redact) if info is not None else []
    if not secret:
        return info
    kept = [(k, v) for k, v in info.headers.items() if k.lower() not in secret]
    return info._replace(headers=type(info.headers)(type_of_multidict(kept)))


def type_of_multidict(pairs: list[tuple[str, str]]) -> Any:
    """Build the mapping that aiohttp's headers view wants; aiohttp brings multidict."""
    from multidict import CIMultiDict  # noqa: PLC0415 - present wherever aiohttp is in use

    return CIMultiDict(pairs)


def _bytes(holder: Any, name: str, body: bytes, redact: Redact) -> None:
    text = body.decode("utf-8", "surrogateescape")
    cleaned = redact(text)
    if cleaned != text:
        setattr(holder, name, cleaned.encode("utf-8", "surrogateescape"))
        holder.__dict__.pop("_text", None)
