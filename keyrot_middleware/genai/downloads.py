"""The wrappers of the api client's two download methods, which bypass its request methods.

A download is a GET of a stored file, so it goes with a key of the project that owns the file. The
SDK builds its request with `_build_request` like any other, and the key goes in there.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..adapters.patching import Patcher
from ..adapters.pool_exhausted import exhausted_call
from ..adapters.pooled_calls import PooledCalls
from ..adapters.urls import host_from_url
from ..core.commands import Done, Failed, StreamEnd
from ..core.flow import CallState
from ..core.model import GEMINI_API, Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..runtime.runner import NoKey
from .call_info import (
    ApiRequest,
    call_info,
    effective_options,
    option,
    timeout_s,
)
from .error_responses import response_type_of
from .key_injection import ApiInjection

__all__ = ["DownloadWrappers"]


class _Destination:
    """A stream of the program that the SDK writes to, and whether anything was written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.written = False

    def write(self, data: bytes) -> Any:
        """Write *data*; the result is the stream's own, an awaitable for an async one."""
        self.written = True
        return self._stream.write(data)


class _Download(NamedTuple):
    """A download that goes through the pool."""

    client: Any
    request: ApiRequest
    kwargs: dict[str, Any]
    """The program's other arguments."""
    destination: _Destination | None
    call: CallState

    def done(self, data: Any) -> Done:
        """Return the reply of a send; the project of its key has the file."""
        return Done(data, names=self.call.info.resources)

    def failed(self, failed: Failed) -> Failed | StreamEnd:
        """Return the reply of a send that failed: what a stream was given cannot be taken back."""
        written = self.destination is not None and self.destination.written
        return StreamEnd(failed=failed) if written else failed


class DownloadWrappers:
    """The wrappers of `download_file` and `async_download_file`."""

    def __init__(self, calls: PooledCalls, keep_patches: Patcher) -> None:
        """Serve a pool.

        Args:
            calls: The pool.
            keep_patches: Keeps the patches of a send in place until it has ended.
        """
        self._calls = calls
        self._patcher = keep_patches

    def download_file(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `download_file`."""
        download = self._download(client, args, kwargs)
        if download is None:
            return wrapped(*args, **kwargs)
        redact = self._calls.redact(client.api_key or "")

        def send(lease: Lease) -> Done | Failed | StreamEnd:
            handled, injection = sys.exception(), self._injection(lease, download)
            try:
                with injection:
                    return download.done(wrapped(download.request.path, **download.kwargs))
            except Exception as error:
                return download.failed(injection.failed(error, redact, handled))

        observer = self._calls.observe(download.call.info)
        no_key = self._no_key(client)
        return runner.run(self._calls.pool, download.call, send, no_key, observer)

    async def async_download_file(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `async_download_file`."""
        download = self._download(client, args, kwargs)
        if download is None:
            return await wrapped(*args, **kwargs)
        redact = self._calls.redact(client.api_key or "")

        async def send(lease: Lease) -> Done | Failed | StreamEnd:
            handled, injection = sys.exception(), self._injection(lease, download)
            try:
                with injection:
                    return download.done(await wrapped(download.request.path, **download.kwargs))
            except Exception as error:
                return download.failed(injection.failed(error, redact, handled))

        observer = self._calls.observe(download.call.info)
        no_key = self._no_key(client)
        return await runner.arun(self._calls.pool, download.call, send, no_key, observer)

    def _no_key(self, client: Any) -> NoKey:
        return lambda no_key: exhausted_call(self._calls, no_key, response_type_of(client))

    def _download(self, client: Any, args: Any, kwargs: Any) -> _Download | None:
        """Return a download for the pool; None if it passes through."""
        try:
            return None if client.vertexai else self._read(client, *args, **kwargs)
        except Exception:
            handle_internal_error("genai")
            return None

    def _read(self, client: Any, path: str, **kwargs: Any) -> _Download | None:
        key, options = client.api_key or "", kwargs.get("http_options")
        base_url, _, _ = effective_options(client, options)
        own_headers = option(options, "headers") if options is not None else None
        if not self._calls.serves(key, base_url, client._http_options.headers, own_headers):
            return None
        request = ApiRequest("get", path, {}, options)
        info = call_info(
            request,
            None,
            None,  # the SDK repeats no download
            stream=False,
            host=host_from_url(base_url),
            scale=self._calls.pool.token_scale,
            sticky=False,
        )
        destination = None
        if hasattr(kwargs.get("destination"), "write"):
            destination = kwargs["destination"] = _Destination(kwargs["destination"])
        call = self._calls.call_state(info, key, timeout_s(client, options))
        return _Download(client, request, kwargs, destination, call)

    def _injection(self, lease: Lease, download: _Download) -> ApiInjection:
        """Return the key injection of a send: into the request of this path."""
        value = self._calls.value(lease)
        injection = ApiInjection(
            value,
            download.client,
            download.request,
            self._calls.allowed[GEMINI_API],
            self._patcher,
            no_sdk_retry=False,
        )
        injection.body = download.request.path
        return injection
