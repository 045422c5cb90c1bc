"""The requests of the client that google-genai 1.x has for Interactions, made by Stainless."""

from __future__ import annotations

import copy
import sys
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any

from ..adapters.key_headers import KEY_HEADER
from ..adapters.patching import Wrapper
from ..core.interactions import collection_of
from ..secrets import Secret
from .call_info import ApiRequest
from .interactions import Call, Interactions
from .key_injection import KeyInjection

__all__ = ["StainlessRequests"]

_CLIENT = "google.genai._interactions._base_client"
_REQUEST = ("cast_to", "options")
_READABLE = "gzip, deflate"
"""Encodings that need no library to be read."""


class StainlessRequests(Interactions):
    """The wrappers of the methods through which these requests go."""

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each method, by its module and name."""
        return {
            (_CLIENT, "SyncAPIClient.request"): self.request,
            (_CLIENT, "AsyncAPIClient.request"): self.request_async,
        }

    def request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the method of that name."""
        call = self.read(self._call, wrapped, client, args, kwargs)
        return wrapped(*args, **kwargs) if call is None else self.run(call)

    async def request_async(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap the method of that name, `request`."""
        call = self.read(self._call, wrapped, client, args, kwargs)
        return await (wrapped(*args, **kwargs) if call is None else self.arun(call))

    def _call(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Call | None:
        given = dict(zip(_REQUEST, args, strict=False)) | kwargs
        options, adapter = given["options"], client.client_adapter
        key, base_url = client.api_key, str(client.base_url)
        own = options.headers if isinstance(options.headers, Mapping) else {}
        if not isinstance(key, str) or (adapter is not None and adapter.is_vertex_ai()):
            return None
        defaults = {k: v for k, v in client.default_headers.items() if isinstance(v, str)}
        if not self._calls.serves(key, base_url, own, defaults):
            return None
        stream = bool(given.get("stream")) or own.get("X-Stainless-Raw-Response") == "stream"

        def send(injection: KeyInjection) -> Any:
            sent = copy.copy(options)
            sent.max_retries = 0
            headers = {k: v for k, v in own.items() if k.lower() != KEY_HEADER}
            if injection.value is not None:
                headers[KEY_HEADER] = injection.mark
            if stream:
                headers = {"Accept-Encoding": _READABLE, **headers}
            sent.headers = headers
            return wrapped(**{**given, "options": sent})

        def make_error(_code: int, body: Any, message: str, response: Any) -> BaseException:
            made: BaseException = client._make_status_error(message, body=body, response=response)
            return made

        body = options.json_data if isinstance(options.json_data, dict) else {}
        extra = options.extra_json if isinstance(options.extra_json, dict) else {}
        asked = ApiRequest(options.method, options.url, {**body, **extra})
        timeout = getattr(options.timeout, "read", options.timeout)
        wait_limit_s = timeout if isinstance(timeout, int | float) else inf
        return Call(
            self.state(asked, key, base_url, stream, wait_limit_s, retries=False),
            Secret(key),
            asked,
            base_url,
            collection_of(options.method, options.url),
            stream,
            send,
            lambda result: getattr(result, "response", getattr(result, "http_response", None)),
            sys.modules.get("httpx"),
            make_error,
        )
