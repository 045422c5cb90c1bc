"""One key into one request: into the headers that the SDK has just built for it.

The key travels to the SDK's `_build_request` in a context variable that is set for one send, so
nothing shared is changed: not the client, not the program's options, not the client's headers.
There every header that is the client's key again (in another case, or as a bearer token) is
dropped, or two keys would go out. (docs/adr/0003)
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from .facts import Asked, InForce, option

__all__ = ["arguments", "build_request", "foreign_key", "lend", "sending", "under_way"]

KEY_HEADER = "x-goog-api-key"

_RETRIED_BY_SDK = (408, 429, 500, 502, 503, 504)
"""What an empty list means to the SDK (`_RETRY_HTTP_STATUS_CODES`, the same in 1.75 to 3.6)."""

_OURS = frozenset({401, 402, 403, 429})
"""The codes of a key's own failure: another key is the remedy, not the same one again."""


class _Ticket(NamedTuple):
    """What one send wants of the request that the SDK builds for it."""

    value: str | None
    """The key; None leaves the client's own."""
    options: Any
    """The program's own options: ours differ in how often the SDK repeats, in nothing else."""


_ticket: ContextVar[_Ticket | None] = ContextVar("keyrot_ticket", default=None)


class sending:  # noqa: N801 - used as a function; a class costs half of what a generator does
    """Let the request that the SDK builds inside the `with` carry a key."""

    __slots__ = ("_ticket", "_token")

    def __init__(self, value: str | None, asked: Asked) -> None:
        self._ticket = _Ticket(value, asked.http_options)

    def __enter__(self) -> None:
        self._token = _ticket.set(self._ticket)

    def __exit__(self, *_error: object) -> None:
        _ticket.reset(self._token)


def build_request(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
    """Wrap the SDK's `_build_request`: the same request, with the key of this send."""
    ticket = _ticket.get()
    if ticket is None:
        return wrapped(*args, **kwargs)
    asked = Asked(*args, **kwargs)
    request = wrapped(asked.http_method, asked.path, asked.request_dict, ticket.options)
    if ticket.value is not None:
        home = client.api_key
        headers = request.headers.items()
        kept = {name: text for name, text in headers if not _key_again(name, text, home)}
        request.headers = {**kept, KEY_HEADER: ticket.value}
    return request


def arguments(client: Any, asked: Asked, in_force: InForce, *, pinned: bool, aio: bool) -> Asked:
    """Give a fresh copy of *asked* for one send: the SDK changes the body that it is given.

    Args:
        client: The SDK's api client.
        asked: The request as the program made it.
        in_force: The options in force for it.
        pinned: No other key may serve it, so the SDK's own retries stay as they are.
        aio: It is an asyncio call.
    """
    body, options = asked.request_dict, asked.http_options
    if isinstance(body, dict):
        body = copy.deepcopy(body) if in_force.extra_body else dict(body)
    if not pinned and (aio or in_force.retry is not None):
        options = _without_our_retries(client, options, in_force.retry, aio=aio)
    return Asked(asked.http_method, asked.path, body, options)


def foreign_key(headers: Mapping[str, Any] | None, own: tuple[str, ...]) -> bool:
    """Tell whether the caller has set a key header that is not the client's own key."""
    for name, value in headers.items() if headers else ():
        # The length first: of all headers few have it, which is cheaper than lowering each.
        if len(name) == len(KEY_HEADER) and name.lower() == KEY_HEADER and value.strip() not in own:
            return True
    return False


def under_way() -> bool:
    """Tell whether the request that the SDK builds is a send of ours."""
    return _ticket.get() is not None


def lend(request: Any, held: str, value: str | None) -> None:
    """Give a request that is no send of ours *value* as its key, None for none, instead of *held*.

    A key header of the program's own stays.
    """
    kept = {n: text for n, text in request.headers.items() if str(text).split()[-1:] != [held]}
    if value is not None and KEY_HEADER not in map(str.lower, kept):
        kept[KEY_HEADER] = value
    request.headers = kept


def _key_again(name: str, text: Any, home: str | None) -> bool:
    if len(name) == len(KEY_HEADER):
        return name.lower() == KEY_HEADER
    return name.lower() == "authorization" and home is not None and str(text).split()[1:] == [home]


def _without_our_retries(client: Any, options: Any, retry: Any, *, aio: bool) -> Any:
    """Give options in which the SDK does not repeat a key's own failure.

    An empty list of codes means the SDK's defaults, so where none is left the attempts are one.
    With no retry options in force, one attempt also switches off the hidden reconnect of its
    aiohttp path, which would sleep for seconds before we may try again.
    """
    if retry is None:
        return _once(client, options) if aio and client._use_aiohttp() else options
    codes = tuple(option(retry, "http_status_codes") or _RETRIED_BY_SDK)
    left = [code for code in codes if code not in _OURS]
    if len(left) == len(codes):
        return options
    fields = retry if isinstance(retry, dict) else retry.model_dump()
    kept = {**fields, "http_status_codes": left} if left else {"attempts": 1}
    return _with_retry(client, options, kept)


def _once(client: Any, options: Any) -> Any:
    if options is not None:
        return _with_retry(client, options, {"attempts": 1})
    cls = type(client._http_options)
    if cls not in _ONE_ATTEMPT:
        _ONE_ATTEMPT[cls] = _with_retry(client, None, {"attempts": 1})
    return _ONE_ATTEMPT[cls]


_ONE_ATTEMPT: dict[type, Any] = {}


def _with_retry(client: Any, options: Any, fields: Mapping[str, Any]) -> Any:
    cls = type(client._http_options)
    retry = sys.modules[cls.__module__].HttpRetryOptions(**fields)
    if options is None:
        return cls(retry_options=retry)
    if isinstance(options, dict):
        return {**options, "retry_options": retry}
    return options.model_copy(update={"retry_options": retry})
