"""Errors of any library, such as those that programs report which choose keys by hand.

They are recognized by their attributes, since no library may be imported here: httpx, requests
and their like have a `response`, urllib's error is the response itself, aiohttp's has a `status`,
google-genai's a `code` and `details`, those of API clients (openai, its Interactions) a
`status_code` and a `body`. Nothing here raises, even if an attribute does.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

from ..core.failures import FailureFacts
from .reading import transport_failure
from .redaction import Redact, redact_exception

_LONGEST = 65_536
"""No error body of Google's is longer."""
_INTERNAL_ERROR = 1011
"""The code with which Live closes a websocket, also when a quota is exhausted."""


def facts_from_error(error: BaseException, redact: Redact) -> FailureFacts | None:
    """Return the facts of an HTTP error; None for another error, such as a lost connection.

    Args:
        error: As it was reported.
        redact: Takes the keys out of a body that is put back.
    """
    response = _get(error, "response")
    code = _status(response, "status_code", "status") or _status(
        error, "status_code", "status", "code"
    )
    if code is None:
        return _from_websocket_close(error)
    body = (
        _body(error, "details")
        or _body(response, "content", "text", "body")
        or _body(error, "body")
        or _from_urllib(error, redact)
    )
    return FailureFacts(code, body, _retry_after(response) or _retry_after(error))


def facts_from_reported_error(error: Exception, redact: Redact) -> FailureFacts:
    """Return the facts of an error that a program reports, whatever it is; redact keys in it."""
    facts = facts_from_error(error, redact)
    redact_exception(error, redact, frames=False)
    return facts or FailureFacts(transport=transport_failure(error))


def _is_quota_close(code: object, reason: object) -> bool:
    """Return whether a websocket was closed because of a quota, which has no code of its own."""
    return code == _INTERNAL_ERROR and "quota" in str(reason).lower()


def facts_from_close(code: object, reason: object) -> FailureFacts:
    """Return the facts of a close frame of the server's."""
    if _is_quota_close(code, reason):
        return FailureFacts(429, reason)
    return FailureFacts(code if isinstance(code, int) else None, reason)


def _from_websocket_close(error: BaseException) -> FailureFacts | None:
    close = _get(error, "rcvd")  # websockets' ConnectionClosed: the frame that came
    reason = _get(close, "reason")
    if _is_quota_close(_get(close, "code"), reason):
        return FailureFacts(429, reason)
    code = _get(error, "code")  # google-genai's error of a Live session
    is_close = isinstance(code, int) and code >= 1000
    return facts_from_close(code, _get(error, "details")) if is_close else None


def _get(holder: object, name: str) -> Any:
    """Read an attribute; None if it raises."""
    with suppress(Exception):
        return getattr(holder, name, None)
    return None


def _status(holder: object, *names: str) -> int | None:
    for value in (_get(holder, name) for name in names):
        if isinstance(value, int) and 400 <= value < 600:
            return int(value)
    return None


def _body(holder: object, *names: str) -> Any:
    """Return the first attribute that is a body; None if the response was not read."""
    for value in (_get(holder, name) for name in names):
        if isinstance(value, bytes | bytearray) and value:
            return value[:_LONGEST].decode("utf-8", "replace")
        if isinstance(value, str) and value:
            return value[:_LONGEST]
        if isinstance(value, dict | list) and value:
            return value
    return None


def _retry_after(holder: object) -> str | None:
    headers = _get(holder, "headers")
    for name in ("retry-after", "Retry-After"):
        with suppress(Exception):
            if isinstance(value := headers.get(name), str):
                return value
    return None


def _from_urllib(error: Any, redact: Redact) -> str | None:
    """Read the body of urllib's error, and put it back: it can be read only once."""
    with suppress(Exception):
        if error.fp is None:
            return None
        body: bytes = error.read(_LONGEST)
        text = redact(body.decode("utf-8", "surrogateescape"))
        again = io.BytesIO(text.encode("utf-8", "surrogateescape"))
        for name in [name for name in vars(error) if hasattr(again, name)]:
            delattr(error, name)  # methods of the old file that were looked up before
        error.fp = error.file = again
        return text or None
    return None
