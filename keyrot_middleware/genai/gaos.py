"""The requests of the client that google-genai has for Interactions since 2.0 (`_gaos`)."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any
from urllib.parse import urlsplit

from ..adapters.key_headers import KEY_HEADER
from ..adapters.patching import Wrapper
from ..adapters.urls import host_from_url
from ..core.interactions import collection_of
from ..core.model import EXPRESS_POOL_KEY
from ..guard import handle_internal_error
from ..secrets import Secret
from .call_info import ApiRequest
from .error_responses import http_library
from .interactions import NOTES, Call, Interactions
from .key_injection import KEY_FAILURES, KeyInjection

__all__ = ["GaosRequests"]

_GAOS = "google.genai._gaos"
_ERRORS = f"{_GAOS}.lib.compat_errors"
_DO_REQUEST = ("hook_ctx", "request", "is_error_status_code", "stream", "retry_config")
_VERTEX = "aiplatform.googleapis.com"
_VERTEX_VERSION = "/v1beta1/"
"""Of Vertex AI alone; it shows a client of Vertex AI that has another host."""
_READABLE = "gzip, deflate"
_UNREADABLE = frozenset({"br", "zstd"})
"""Encodings that need a library to be read. A stream is not asked for in these."""


class GaosRequests(Interactions):
    """The wrappers of the methods through which these requests go."""

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each method, by its module and name."""
        return {
            (f"{_GAOS}.basesdk", "BaseSDK.do_request"): self.do_request,
            (f"{_GAOS}.basesdk", "AsyncBaseSDK.do_request_async"): self.do_request_async,
            (_ERRORS, "wrap_sdk_error"): self.wrap_sdk_error,
        }

    def do_request(self, wrapped: Callable[..., Any], _sdk: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the method of that name."""
        call = self.read(self._call, wrapped, args, kwargs)
        return wrapped(*args, **kwargs) if call is None else self.run(call)

    async def do_request_async(
        self, wrapped: Callable[..., Awaitable[Any]], _sdk: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap the method of that name."""
        call = self.read(self._call, wrapped, args, kwargs)
        return await (wrapped(*args, **kwargs) if call is None else self.arun(call))

    def wrap_sdk_error(
        self, wrapped: Callable[..., Any], _module: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap what turns an error of the generated code into the one that the program sees."""
        error = wrapped(*args, **kwargs)
        try:
            inner = args[0] if args else kwargs["error"]
            notes = list(getattr(inner, "__notes__", ())) if error is not inner else []
            response = getattr(error, "response", None)
            notes += getattr(response, "extensions", {}).pop(NOTES, ())
            for note in notes:
                error.add_note(note)
        except Exception:
            handle_internal_error("genai")
        return error

    def _call(self, wrapped: Callable[..., Any], args: Any, kwargs: Any) -> Call | None:
        given = dict(zip(_DO_REQUEST, args, strict=False)) | kwargs
        request, source = given["request"], given["hook_ctx"].security_source
        key, defaults = getattr(source, "api_key", None), getattr(source, "default_headers", None)
        url = str(request.url)
        if not isinstance(key, str) or _is_vertex(url) or key == EXPRESS_POOL_KEY:
            return None
        if not self._calls.serves(key, url, request.headers, defaults):
            return None
        own = Secret(key)
        stream, retry = bool(given.get("stream")), given.get("retry_config")
        given["retry_config"] = retry = _without_key_failures(retry)

        def send(injection: KeyInjection) -> Any:
            if KEY_HEADER in request.headers:  # hidden, if it was sent before
                request.headers[KEY_HEADER] = own.reveal()
            injection.write_mark(request.headers)
            if stream and _UNREADABLE & set(request.headers.get("accept-encoding", "").split(", ")):
                request.headers["accept-encoding"] = _READABLE
            return wrapped(**given)

        def make_error(code: int, body: Any, message: str, response: Any) -> BaseException:
            made: BaseException = sys.modules[_ERRORS].APIError.generate(
                code, body, message, response
            )
            return made

        asked = ApiRequest(request.method, url, _body_of(request))
        state = self.state(asked, key, url, stream, _timeout_s(request), retries=retry is not None)
        return Call(
            state,
            own,
            asked,
            url,
            collection_of(request.method, url),
            stream,
            send,
            lambda result: result,
            http_library(type(request)),
            make_error,
        )


def _is_vertex(url: str) -> bool:
    return host_from_url(url).endswith(_VERTEX) or urlsplit(url).path.startswith(_VERTEX_VERSION)


def _without_key_failures(retry: Any) -> Any:
    """Return the SDK's retries without those of a key's own failure; None if none is left.

    Args:
        retry: The configuration and the codes to repeat, such as `429` and `5XX`; or None.
    """
    if retry is None:
        return None
    config, codes = retry
    codes = getattr(config, "status_codes_override", None) or codes
    left = [
        code
        for some in codes
        for code in (map(str, range(400, 500)) if some.upper() == "4XX" else (some,))
        if code not in _KEY_CODES
    ]
    config = copy.copy(config)
    config.status_codes_override = None
    return (config, left) if left else None


_KEY_CODES = frozenset(map(str, KEY_FAILURES))


def _body_of(request: Any) -> Mapping[str, Any]:
    """Return the body of a request, if it is a JSON object that is in memory."""
    if "json" not in request.headers.get("content-type", "") or not hasattr(request, "_content"):
        return {}
    body = json.loads(request.content or b"{}")
    return body if isinstance(body, dict) else {}


def _timeout_s(request: Any) -> float:
    seconds = request.extensions.get("timeout", {}).get("read")
    return seconds if isinstance(seconds, int | float) else inf
