"""Read errors, whichever library raises them."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..core.failures import FailureFacts
from .redaction import Redact, redact_exception

_TRANSPORT_ERRORS: Mapping[str, Any] = {
    # httpx and httpx2, aiohttp, requests: their names are read, for none may be imported here.
    "ConnectError": "connect",
    "ReadError": "reset",
    "WriteError": "reset",
    "CloseError": "reset",
    "RemoteProtocolError": "reset",
    "TimeoutException": "timeout",
    "ClientConnectorError": "connect",
    "ConnectionTimeoutError": "timeout",
    "ServerTimeoutError": "timeout",
    "ServerDisconnectedError": "reset",
    "ClientOSError": "reset",
    "ClientPayloadError": "reset",
    "ClientConnectionResetError": "reset",
    "ReadTimeout": "timeout",
    "ConnectTimeout": "timeout",
    "ChunkedEncodingError": "reset",
    "ProtocolError": "reset",
    "NewConnectionError": "connect",
    # websockets
    "InvalidMessage": "reset",
    "ConnectionClosed": "reset",
    # what lies below them
    "TimeoutError": "timeout",
    "ConnectionRefusedError": "connect",
    "ConnectionResetError": "reset",
    "BrokenPipeError": "reset",
}


def transport_failure(error: BaseException) -> Any:
    """Classify a transport error by the first of its classes in the table.

    requests has one class for all lost connections; what it was made of is in its arguments.
    """
    for _ in range(_DEEPEST):
        for cls in type(error).__mro__:
            if cls.__name__ in _TRANSPORT_ERRORS:
                return _TRANSPORT_ERRORS[cls.__name__]
        inner = None
        with suppress(Exception):  # attributes of foreign exceptions
            inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, Exception):
            break
        error = inner
    return "other"


_DEEPEST = 5
_MOST_LINKS = 30
_CAUSES = {
    "gaierror": "the host name is not found (DNS)",
    "NameResolutionError": "the host name is not found (DNS)",
    "SSLCertVerificationError": "TLS: the certificate is not trusted",
    "ConnectionRefusedError": "the connection is refused",
    "SSLError": "TLS: no connection can be agreed on",
}
"""By classes that may lie below an exception of an HTTP library; of several, the first."""
_NO_ROUTE = "no route leads to the host"
_NO_ROUTE_CODES = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


def connection_cause(error: BaseException) -> str:
    """Say why there is no connection: DNS, TLS, refused, no route; empty for another reason.

    The libraries keep what the system has said in the causes, arguments or a field of their own.
    """
    links = [error]
    for link in links:  # which grows meanwhile
        more = [link.__cause__, link.__context__, *link.args, *(_get(link, "exceptions") or ())]
        more += [_get(link, name) for name in ("reason", "os_error")]
        known = {id(one) for one in links}
        links += [x for x in more if isinstance(x, BaseException) and id(x) not in known]
        if len(links) > _MOST_LINKS:
            break
    names = {cls.__name__ for link in links for cls in type(link).__mro__}
    if any(isinstance(link, OSError) and link.errno in _NO_ROUTE_CODES for link in links):
        return _NO_ROUTE
    return next((said for name, said in _CAUSES.items() if name in names), "")


def lost_connection(error: BaseException) -> FailureFacts:
    """Return the facts of an error that came in place of a response."""
    kind = transport_failure(error)
    if kind == "timeout":
        return FailureFacts(transport=kind)
    cause = connection_cause(error)
    if kind == "other" and cause and cause != _CAUSES["SSLError"]:  # requests does not say it
        kind = "connect"
    return FailureFacts(transport=kind, cause=cause)


_LONGEST = 65_536
"""No error body of Google's is longer."""
_LEAST_CLOSE, _INTERNAL_ERROR = 1000, 1011
"""Of the codes that close a websocket the least, and Live's, also when a quota is exhausted."""


def facts_from_error(error: BaseException, redact: Redact) -> FailureFacts | None:
    """Return the facts of an HTTP error; None for another error, such as a lost connection.

    Args:
        error: As it was reported.
        redact: Takes the keys out of a body that is put back.
    """
    if (close := _get(error, "rcvd")) is not None:  # websockets' ConnectionClosed: what came
        return _of_close(_get(close, "code"), _get(close, "reason"))
    response = _get(error, "response")
    code = _status(response, "status_code", "status") or _status(
        error, "status_code", "status", "code"
    )
    if code is None:
        code = _get(error, "code")  # google-genai's error of a Live session has that of the close
        is_close = isinstance(code, int) and code >= _LEAST_CLOSE
        return _of_close(code, _get(error, "details")) if is_close else None
    body = (
        _body(error, "details")
        or _body(response, "content", "text", "body")
        or _body(error, "body")
        or _from_urllib(error, redact)
    )
    return FailureFacts(code, body, _retry_after(response) or _retry_after(error))


def facts_from_reported_error(error: Exception, redact: Redact) -> FailureFacts:
    """Return the facts of an error that a program reports, whatever it is; redact keys in it."""
    facts = facts_from_error(error, redact) or lost_connection(error)
    redact_exception(error, redact, frames=False)
    return facts


def _of_close(code: Any, reason: object) -> FailureFacts:
    """Return the facts of the end of a websocket; an exhausted quota has no code of its own."""
    is_quota = code == _INTERNAL_ERROR and "quota" in str(reason).lower()
    return FailureFacts(429 if is_quota else code, reason)


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
