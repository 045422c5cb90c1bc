"""Which key a send goes with, and what stands for it in the request until it leaves.

A request of a send has a mark in place of the key. wire.py, and nothing else, replaces a mark by
the key, as the request is sent; so whatever the SDK, a hook or a log has of the request shows no
key. The mark reaches the SDK's `_build_request` in a context variable that is set for one send, so
nothing shared is changed: not the client, not the program's options, not the client's headers.
(docs/adr/0039)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar, Token
from secrets import token_urlsafe
from typing import Any, Self
from weakref import WeakValueDictionary

from ..adapters.key_headers import KEY_HEADER, key_header_names
from ..adapters.patching import Patcher
from ..adapters.redaction import Forgetting, Redact
from ..core.commands import Failed
from ..core.failures import FailureFacts
from ..core.model import POOL_KEY
from ..errors import ConfigError
from ..secrets.base import PlainText, Secret
from .call_info import ApiRequest, failed_from_error, get_alias, option

__all__ = [
    "KEY_FAILURES",
    "ApiInjection",
    "KeyInjection",
    "async_request_once",
    "build_request",
    "current_injection",
    "find_marked",
    "request_once",
    "without_key_retries",
]

_RETRIED_BY_SDK = (408, 429, 500, 502, 503, 504)
"""What an empty list means to the SDK (`_RETRY_HTTP_STATUS_CODES`, the same in 1.65 to 3.6)."""

KEY_FAILURES = frozenset({401, 402, 403, 429})
"""Codes of a key's own failure: another key may help, the same one does not."""


current_injection: ContextVar[KeyInjection | None] = ContextVar("keyrot_sending", default=None)
"""The send of ours that is being made; None where it is not ours."""

_marked: WeakValueDictionary[str, KeyInjection] = WeakValueDictionary()
"""The sends that are being made, by their marks. A request may be sent in another context, and the
task of a send may be collected with its closed loop."""


class KeyInjection:
    """The key of one send, which is being made inside the `with`."""

    __slots__ = (
        "__weakref__",
        "_forgetting",
        "_patcher",
        "_token",
        "client_key",
        "is_written",
        "mark",
        "origins",
        "parsed_below",
        "value",
    )
    _token: Token[KeyInjection | None]

    def __init__(
        self,
        value: Secret | None,
        client_key: Secret,
        origins: Collection[str],
        patcher: Patcher,
        *,
        parsed_below: bool = False,
    ) -> None:
        self.value = value
        """The key; None leaves the client's own."""
        self.client_key = client_key
        """The client's own key, or the placeholder; an empty one for none."""
        self.origins = origins
        """Where the key may go."""
        self.parsed_below = parsed_below
        """The response is parsed before our wrapper has it: the key in it is hidden on receipt."""
        self.mark = f"{POOL_KEY}/{token_urlsafe(12)}"
        """What stands for the key; nobody can guess that of another send."""
        self.is_written = False
        """The key was put in place of the mark."""
        self._forgetting = Forgetting()
        self._patcher = patcher
        """Keeps its patches in place until the send has ended."""

    @property
    def key_sent(self) -> Secret:
        """The key that the request goes with."""
        return self.client_key if self.value is None else self.value

    def __enter__(self) -> Self:
        self._patcher.acquire(self)
        _marked[self.mark] = self
        self._token = current_injection.set(self)
        self._forgetting.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _marked.pop(self.mark, None)
        self._patcher.release(self)
        current_injection.reset(self._token)
        self._forgetting.__exit__(kind, error, trace)

    def write_mark(self, headers: Any) -> None:
        """Put the mark into headers; what is left of the client's key there shows no value.

        A send with the client's own key leaves that as it is.
        """
        for name in key_header_names(tuple(headers)):
            headers[name] = PlainText(headers[name])
        if self.value is not None:
            headers[KEY_HEADER] = self.mark

    def failed(self, error: Exception, redact: Redact, handled: BaseException | None) -> Failed:
        """Read the failure of this send; arguments as for `failed_from_error`."""
        return self.lost(error) or failed_from_error(error, redact, handled)

    def lost(self, error: Exception | None = None) -> Failed | None:
        """Return the failure of a send whose mark was answered; None if its key was sent.

        Our layer on the HTTP library was removed. It is put back, and the request is sent again.

        Args:
            error: What the SDK has made of a response; None: there is a response.
        """
        if self.value is None or self.is_written:
            return None
        codes = getattr(error, "code", None), getattr(error, "status_code", None)
        if error is not None and not any(isinstance(code, int) for code in codes):
            return None
        self._patcher.repair()
        why = ConfigError(
            "a request was sent without its key: the HTTP client does not send by the public "
            "method of its library, Client.send or ClientSession.request, or something has "
            "replaced that; no key is penalized"
        )
        return Failed(FailureFacts(transport="connect"), why)


def find_marked(texts: Iterable[str]) -> KeyInjection | None:
    """Return the send whose mark is among the key headers of a request."""
    return next(filter(None, map(_marked.get, texts)), None)


class ApiInjection(KeyInjection):
    """The key of a send of the api client's.

    Only of that request: an event hook that runs meanwhile may make calls of its own.
    """

    __slots__ = (
        "body",
        "client",
        "no_sdk_retry",
        "options",
        "options_sent",
        "request",
        "response",
    )

    def __init__(
        self,
        value: Secret | None,
        client: Any,
        request: ApiRequest,
        origins: Collection[str],
        patcher: Patcher,
        *,
        no_sdk_retry: bool,
    ) -> None:
        super().__init__(value, Secret(client.api_key or ""), origins, patcher)
        self.client = client
        self.body: Any = None
        """What the SDK was given for this send: the body, or the path of a download. No other
        request has the same object."""
        self.request: Any = None
        """What the SDK has made of it; None once the send has ended: timers of an event loop keep
        the context of a send, and this with it."""
        self.options = request.http_options
        """The program's own: ours differ in how often the SDK repeats, in nothing else."""
        self.options_sent: Any = None
        """As the SDK was given them for this send."""
        self.no_sdk_retry = no_sdk_retry
        """The SDK would not retry, so its retry code is skipped."""
        self.response: Any = None
        """The SDK's response of a stream, once it is there."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.request = None
        super().__exit__(kind, error, trace)


def build_request(  # noqa: PLR0917 - the arguments are those of the SDK
    send: ApiInjection,
    wrapped: Callable[..., Any],
    client: Any,
    http_method: str,
    path: str,
    request_dict: Any,
    http_options: Any = None,  # ours, where we had to change them
) -> Any:
    """Wrap the SDK's `_build_request`: the same request, with the mark of this send."""
    request = wrapped(http_method, path, request_dict, send.options)
    request.headers = dict(request.headers)
    send.write_mark(request.headers)
    send.request = request
    return request


def request_once(
    client: Any, http_request: Any, http_options: Any = None, stream: bool = False
) -> Any:
    """Do what the SDK's `_request` does where no retry options are in force: send it once.

    Its retry code is skipped: it would do nothing, and cost more than the pool.
    """
    return client._request_once(http_request, stream)


def async_request_once(
    client: Any, http_request: Any, http_options: Any = None, stream: bool = False
) -> Any:
    """Do what `_async_request` does, without its hidden reconnect, which sleeps for seconds.

    The SDK's aiohttp path has that where no retry options are in force, since 2.x unless switched
    off; in 1.75 it cannot be. We may try again ourselves, at once and with another key.
    """
    send = client._async_request_once
    if "implicit_retry" in (getattr(send, "__kwdefaults__", None) or ()):
        return send(http_request, stream, implicit_retry=False)
    return send(http_request, stream)


def without_key_retries(client: Any, options: Any, retry: Any) -> Any:
    """Return *options* with which the SDK does not retry a failure of the key.

    Args:
        client: The SDK's api client.
        options: The program's own for this request.
        retry: The retry options in force.
    """
    return options if retry is None else _without_key_failures(client, options, retry)


def _without_key_failures(client: Any, options: Any, retry: Any) -> Any:
    """Return options with which the SDK does not retry a failure of the key.

    An empty list of codes means the SDK's defaults, so where none is left the attempts are one.
    """
    codes = tuple(option(retry, "http_status_codes") or _RETRIED_BY_SDK)
    left = [code for code in codes if code not in KEY_FAILURES]
    if len(left) == len(codes):
        return options
    fields = retry if isinstance(retry, dict) else retry.model_dump()
    kept = _with(fields, "http_status_codes", left) if left else {"attempts": 1}
    return _with_retry(client, options, kept)


def _with_retry(client: Any, options: Any, fields: Mapping[str, Any]) -> Any:
    cls = type(client._http_options)
    retry = sys.modules[cls.__module__].HttpRetryOptions(**fields)
    if options is None:
        return cls(retry_options=retry)
    if isinstance(options, dict):
        return _with(options, "retry_options", retry)
    return options.model_copy(update={"retry_options": retry})


def _with(options: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return the options with one of them set, under one spelling only."""
    kept = {k: v for k, v in options.items() if k != get_alias(name)}
    return {**kept, name: value}
