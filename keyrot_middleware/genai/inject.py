"""One key into one request: its headers only, nothing shared is changed.

A header set in another case would go out beside ours, so variants are dropped first; the ones
that stand on the client itself are taken off it once (they carry nothing but the client's own
key) and are put back by `restore`.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from .facts import Asked, option, retries_by_sdk

__all__ = ["KEY_HEADER", "Injector", "foreign_key"]

KEY_HEADER = "x-goog-api-key"

_RETRIED_BY_SDK = (408, 429, 500, 502, 503, 504)
"""What an empty list means to the SDK (`_RETRY_HTTP_STATUS_CODES`, the same in 1.75 to 3.6)."""

_OURS = frozenset({401, 402, 403, 429})
"""The codes of a key's own failure: another key is the remedy, not the same one again."""


def foreign_key(headers: Mapping[str, Any] | None, own: tuple[str, ...]) -> bool:
    """Tell whether the caller has set a key header that is not the client's own key."""
    for name, value in (headers or {}).items():
        if len(name) == len(KEY_HEADER) and name.lower() == KEY_HEADER:
            return str(value).strip() not in own
    return False


class Injector:
    """Make the arguments of a request that goes with a given key."""

    def __init__(self) -> None:
        self._taken: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()

    def arguments(self, api_client: Any, asked: Asked, *, value: str | None, pinned: bool) -> Asked:
        """Give a fresh copy of *asked* with *value* as its key.

        Args:
            api_client: The SDK's api client.
            asked: The request as the program made it.
            value: The key; None leaves the client's own in place.
            pinned: No other key may serve it, so the SDK's own retries stay as they are.
        """
        self._tidy(api_client)
        body = asked.request_dict
        if isinstance(body, dict):
            deep = option(asked.http_options, "extra_body") or option(
                api_client._http_options, "extra_body"
            )
            body = copy.deepcopy(body) if deep else dict(body)
        if value is None:
            return asked._replace(request_dict=body)
        options = self._options(api_client, asked.http_options, value, pinned=pinned)
        return asked._replace(request_dict=body, http_options=options)

    def restore(self) -> None:
        """Put the header variants back that were taken off clients."""
        for api_client, headers in list(self._taken.items()):
            api_client._http_options.headers.update(headers)
        self._taken.clear()

    def _options(self, api_client: Any, given: Any, value: str, *, pinned: bool) -> Any:
        cls = type(api_client._http_options)
        if isinstance(given, dict):
            given = cls.model_validate(given)
        options = cls.model_construct() if given is None else given.model_copy()
        home = api_client.api_key
        options.headers = {
            name: text
            for name, text in (options.headers or {}).items()
            if not _is_key_again(name, text, home)
        }
        options.headers[KEY_HEADER] = value
        retry = None if pinned else _retry_options(api_client, given)
        if retry is not None:
            options.retry_options = retry
        return options

    def _tidy(self, api_client: Any) -> None:
        headers = option(api_client._http_options, "headers")
        if not headers or len(headers) < 2:
            return
        home = api_client.api_key
        twins = {n: t for n, t in headers.items() if n != KEY_HEADER and _is_key_again(n, t, home)}
        if twins:
            self._taken.setdefault(api_client, {}).update(twins)
            for name in twins:
                del headers[name]


def _is_key_again(name: str, text: Any, home: str | None) -> bool:
    """Tell whether a header is the key, in whatever case, or as a bearer token."""
    if len(name) not in (len(KEY_HEADER), len("authorization")):
        return False
    lower = name.lower()
    if lower == KEY_HEADER:
        return True
    return lower == "authorization" and home is not None and str(text).split()[1:] == [home]


def _retry_options(api_client: Any, options: Any) -> Any:
    """Give the retry options in force without the codes of a key's own failure.

    An empty list of codes means the SDK's defaults, so where none is left the attempts are one.
    With none in force, one attempt also switches off the hidden reconnect of its aiohttp path,
    which would sleep for seconds before another key is tried.
    """
    retry = retries_by_sdk(api_client, options)
    if retry is None:
        return _no_retry(api_client)
    codes = tuple(option(retry, "http_status_codes") or _RETRIED_BY_SDK)
    left = [code for code in codes if code not in _OURS]
    if len(left) == len(codes):
        return None
    cls = _retry_class()
    fields = retry if isinstance(retry, dict) else retry.model_dump()
    kept = {**fields, "http_status_codes": left} if left else {"attempts": 1}
    return cls(**kept)


def _no_retry(api_client: Any) -> Any:
    uses_aiohttp = getattr(api_client, "_use_aiohttp", None)
    if uses_aiohttp is None or not uses_aiohttp():
        return None
    return _retry_class()(attempts=1)


def _retry_class() -> Any:
    return sys.modules["google.genai.types"].HttpRetryOptions
