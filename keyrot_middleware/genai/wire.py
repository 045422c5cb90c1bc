"""Patch the HTTP libraries: which key a request carries, where it may go, what comes back.

A client without a key of its own never holds one of the pool's. It holds the placeholder, and the
pool's key takes the placeholder's place here, in the headers of one request: for model calls,
downloads, uploads, Interactions and Live alike. A request with a key of the pool goes to an
allowed origin and follows no redirect to another one. A key that the server repeats in an error
is replaced before the SDK reads it. (docs/adr/0024)

The methods wrapped are public ones of the HTTP libraries. What other parts of the program send has
neither the placeholder nor the key of a send of ours, and passes through.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urljoin

from ..core.model import EXPRESS_POOL_KEY, GEMINI_API, POOL_KEY, VERTEX_EXPRESS, Platform
from ..errors import ConfigError
from ..guard import handle_internal_error
from ..runtime.pool import Pool
from ..settings import AllowedOrigins
from .call_info import origin_from_url, required_tiers
from .key_injection import KEY_HEADER, RedactedHeader, current_injection, key_headers
from .live import LiveConnection, current_connection
from .patching import Patcher, Wrapper
from .pool_exhausted import NO_EXPRESS_KEY, NO_KEY, error_body
from .redaction import Redact, clear_frames, redact_exception, scrub

__all__ = [
    "Wire",
    "carry_key",
    "forget_key",
    "placeholder_guard",
    "restore_placeholder",
    "withdraw_placeholder",
]

_NO_KEY_GIVEN = re.compile("api[ _]key", re.IGNORECASE)
_NOT_FOUND = (
    "keyrot: install() found no Gemini API key: set GEMINI_API_KEYS or GEMINI_API_KEY, or "
    "write a keys.json; keyrot check shows what is found"
)
_HIDDEN = "[redacted]"
_KEY_IN_URL = re.compile(r"\?key=[^&]*$")
_MOST_REDIRECTS = 20
_REDIRECTS = (301, 302, 303, 307, 308)


_EXTENSION = "keyrot"
"""Where a request of httpx remembers its key, which shows itself in no repr."""


class _RequestKey(NamedTuple):
    """The key of one request."""

    value: str | None
    """The key to send; None for none."""
    from_pool: bool
    """It is a key of the pool."""
    platform: Platform
    placeholder: str | None = None
    """The placeholder that it replaces."""
    client_key: str | None = None
    """The client's own, which a bearer header may repeat."""

    @property
    def missing(self) -> str | None:
        """What to tell a program whose pool has no key for this request; None if it has one."""
        if self.value is not None or not self.from_pool:
            return None
        return NO_KEY if self.platform == GEMINI_API else NO_EXPRESS_KEY

    def __repr__(self) -> str:
        return "<key>"


class Wire:
    """The wrappers of what sends requests."""

    def __init__(
        self, pool: Pool | None, allowed: AllowedOrigins, enabled: Sequence[bool] = (True,)
    ) -> None:
        """Serve a pool.

        Args:
            pool: None where no key was found at all.
            allowed: Where its keys may go.
            enabled: Empty once it is uninstalled: only calls under way are served then.
        """
        self._pool = pool
        self._allowed = allowed
        self._enabled = enabled

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each module's function or method."""
        return {
            ("httpx", "Client.send"): self.send,
            ("httpx2", "Client.send"): self.send,
            ("httpx", "AsyncClient.send"): self.asend,
            ("httpx2", "AsyncClient.send"): self.asend,
            ("aiohttp", "ClientSession.request"): self.request,
            ("google.genai.live", "ws_connect"): self.websocket,
            ("google.genai.live_music", "connect"): self.websocket,
            ("google.genai._interactions_websocket", "ws_connect"): self.websocket,
        }

    # httpx and httpx2 -----------------------------------------------------------------------------

    def send(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `Client.send`."""
        request, options = _request_of(args, kwargs)
        key = self._httpx_key(request)
        if key is None:
            return wrapped(*args, **kwargs)
        if key.missing:
            return _error_response(_response_type(client), 401, key.missing, request)
        follow, redact = _follow_redirects(client, options), self._redact(key)
        with _key_in_headers(request, key, redact):
            if not key.from_pool:
                return wrapped(request, **options)
            origin, history = origin_from_url(str(request.url)), list[Any]()
            while True:
                response = wrapped(request, **options, follow_redirects=False)
                response.history = list(history)
                if response.status_code >= 400:
                    response.read()
                redirect = _redact_response(response, key, redact)
                if redirect is None or not follow or len(history) >= _MOST_REDIRECTS:
                    return response
                if origin_from_url(str(redirect.url)) != origin:
                    response.close()
                    text = _redirect_text(origin, str(redirect.url))
                    return _error_response(type(response), response.status_code, text, request)
                response.read()
                history.append(response)
                request = redirect

    def asend(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `AsyncClient.send`."""
        request, options = _request_of(args, kwargs)
        key = self._httpx_key(request)
        if key is None:
            return wrapped(*args, **kwargs)
        return self._asend(wrapped, client, request, options, key)

    async def _asend(
        self,
        wrapped: Callable[..., Awaitable[Any]],
        client: Any,
        request: Any,
        options: dict[str, Any],
        key: _RequestKey,
    ) -> Any:
        if key.missing:
            return _error_response(_response_type(client), 401, key.missing, request)
        follow, redact = _follow_redirects(client, options), self._redact(key)
        with _key_in_headers(request, key, redact):
            if not key.from_pool:
                return await wrapped(request, **options)
            origin, history = origin_from_url(str(request.url)), list[Any]()
            while True:
                response = await wrapped(request, **options, follow_redirects=False)
                response.history = list(history)
                if response.status_code >= 400:
                    await response.aread()
                redirect = _redact_response(response, key, redact)
                if redirect is None or not follow or len(history) >= _MOST_REDIRECTS:
                    return response
                if origin_from_url(str(redirect.url)) != origin:
                    await response.aclose()
                    text = _redirect_text(origin, str(redirect.url))
                    return _error_response(type(response), response.status_code, text, request)
                await response.aread()
                history.append(response)
                request = redirect

    # aiohttp --------------------------------------------------------------------------------------

    def request(self, wrapped: Callable[..., Any], _session: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `ClientSession.request`."""
        arguments = dict(zip(("method", "url"), args, strict=False)) | kwargs
        headers = arguments.get("headers")
        pairs = headers.items() if hasattr(headers, "items") else ()
        key = self._find_key(pairs, str(arguments.get("url")))
        return wrapped(*args, **kwargs) if key is None else self._request(wrapped, arguments, key)

    async def _request(
        self, wrapped: Callable[..., Any], arguments: dict[str, Any], key: _RequestKey
    ) -> Any:
        arguments["headers"] = _with_key(arguments["headers"].items(), key)
        if key.missing:
            _raise_api_error(401, key.missing)
        redact = self._redact(key)
        handled = sys.exception()
        try:
            if not key.from_pool:
                return await wrapped(**arguments)
            follow = arguments.pop("allow_redirects", True)
            origin = origin_from_url(str(arguments["url"]))
            for left in range(_MOST_REDIRECTS, -1, -1):
                response = await wrapped(**arguments, allow_redirects=False)
                if response.status >= 400:
                    await response.read()
                    scrub(response, redact)
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or not location or not follow or not left:
                    return response
                url = urljoin(str(arguments["url"]), location)
                response.release()
                if origin_from_url(url) != origin:
                    _raise_api_error(response.status, _redirect_text(origin, url))
                arguments = _redirect_arguments(arguments, url, response.status)
        except Exception as error:
            _redact_error(error, redact, handled)
            raise

    # websockets -----------------------------------------------------------------------------------

    def websocket(self, wrapped: Callable[..., Any], _module: Any, args: Any, kwargs: Any) -> Any:
        """Wrap what Live calls to connect.

        Raises:
            ConfigError: The pool's key would go to a host that may not have it.
        """
        uri = args[0] if args else kwargs.pop("uri")
        name = "additional_headers" if "additional_headers" in kwargs else "extra_headers"
        headers = dict(kwargs.get(name) or {})
        live = current_connection.get()
        if live is not None and live.dialed:
            live = None
        key = self._session_key(live, headers, uri)
        if key is not None:
            if key.missing:
                _raise_api_error(401, key.missing)
            if key.value is None:
                raise ConfigError(
                    f"the pool's key may not go to {origin_from_url(uri) or uri}: give the client "
                    "an api_key of its own, or add the host to KEYROT_ALLOWED_HOSTS"
                )
            kwargs[name] = _with_key(headers.items(), key)
        # SDK 1.x names the key in the address as well, where logs and errors would show it.
        if key is not None and key.from_pool:
            uri = _KEY_IN_URL.sub("", uri)
            kwargs |= _guarded(kwargs, origin_from_url(uri), self._redact(key), live)
        elif live is not None:
            kwargs |= _guarded(kwargs, None, live.redact, live)
        if live is not None:
            live.dialed = True
        return wrapped(uri, *args[1:], **kwargs)

    def _session_key(
        self, live: LiveConnection | None, headers: Mapping[str, Any], uri: str
    ) -> _RequestKey | None:
        """Return the key of a websocket: that of the session's lease, if it has one.

        Raises:
            ConfigError: The leased key may not go there.
        """
        if live is None or live.value is None:
            return self._find_key(headers.items(), uri)
        if not self._may_go(GEMINI_API, uri):
            raise ConfigError(
                f"no key of the pool may go to {origin_from_url(uri) or uri}: it is not in "
                "KEYROT_ALLOWED_HOSTS"
            )
        return _RequestKey(live.value, from_pool=True, platform=GEMINI_API)

    # ----------------------------------------------------------------------------------------------

    def _httpx_key(self, request: Any) -> _RequestKey | None:
        """Return the key of a request of httpx, which may be sent again as it is."""
        url = str(request.url)
        before = request.extensions.get(_EXTENSION)
        if isinstance(before, _RequestKey) and self._may_go(before.platform, url):
            return before
        return self._find_key(request.headers.multi_items(), url)

    def _find_key(self, headers: Iterable[tuple[str, Any]], url: str) -> _RequestKey | None:
        """Return the key that a request must carry; None if the pool has no part in it."""
        found = [(name.lower(), str(text)) for name, text in key_headers(headers)]
        if not found:
            return None
        send = current_injection.get()
        if send is not None and send.value and (KEY_HEADER, send.value) in found:
            platform = self._platform_of(send.value) or GEMINI_API
            own_key = getattr(send.client, "api_key", None)
            return _RequestKey(send.value, from_pool=True, platform=platform, client_key=own_key)
        placeholder = next((text.split()[-1] for _, text in found if _is_placeholder(text)), None)
        if placeholder is not None:
            if not self._enabled:
                return None  # the next pool replaces it
            own_keys = [
                text for name, text in found if name == KEY_HEADER and not _is_placeholder(text)
            ]
            express = placeholder == EXPRESS_POOL_KEY or _VERTEX in url
            platform = VERTEX_EXPRESS if express else GEMINI_API
            if own_keys:
                return _RequestKey(own_keys[0], from_pool=False, platform=platform)
            if not self._may_go(platform, url):
                return _RequestKey(None, False, platform, placeholder)
            return _RequestKey(self._home(platform), True, platform, placeholder)
        # A client may hold a key of the pool as its own: the single key of the environment, say.
        for name, text in found:
            own = self._platform_of(text) if name == KEY_HEADER else None
            if own is not None and self._may_go(own, url):
                return _RequestKey(text, from_pool=True, platform=own)
        return None

    def _may_go(self, platform: Platform, url: str) -> bool:
        return origin_from_url(url) in self._allowed[platform]

    def _platform_of(self, value: str) -> Platform | None:
        """Return the platform of a key of the pool; None for another key."""
        if self._pool is None or (key_id := self._pool.secrets.key_id_for(value)) is None:
            return None
        key = self._pool.selector.keys.get(key_id)
        return key.platform if key is not None else GEMINI_API

    def _home(self, platform: Platform) -> str | None:
        try:
            return self._pool.home_value(platform, required_tiers.get()) if self._pool else None
        except Exception:
            handle_internal_error("genai")
            return None

    def _redact(self, key: _RequestKey) -> Redact:
        pool, value = self._pool, key.value if key.from_pool else None

        def redact(text: str) -> str:
            text = pool.secrets.redact(text) if pool is not None else text
            return text.replace(value, _HIDDEN) if value else text

        return redact


_VERTEX = "aiplatform"
"""In the address of requests to Vertex AI: of a client that was made before `install()`, which has
the placeholder of the program."""


def _guarded(*args: Any) -> dict[str, Any]:
    from .websocket import guarded  # noqa: PLC0415 - it needs websockets, which is loaded by Live

    return guarded(*args)


def placeholder_guard(allowed: AllowedOrigins) -> Patcher:
    """Return patches that keep the placeholder off the wire while there is no pool."""
    patcher = Patcher()
    patcher.add_client_methods({"__init__": explain_missing_key})
    patcher.add_functions(Wire(None, allowed).table, sends=True)
    return patcher


def explain_missing_key(wrapped: Callable[..., Any], _client: Any, args: Any, kwargs: Any) -> Any:
    """Wrap the api client's constructor: add a note to the SDK's error about the missing key."""
    try:
        return wrapped(*args, **kwargs)
    except ValueError as error:
        if _NO_KEY_GIVEN.search(str(error)):
            error.add_note(_NOT_FOUND)
        raise


def withdraw_placeholder(client: Any) -> None:
    """Keep the placeholder of a client that outlives the pool off the wire."""
    headers = client._http_options.headers or {}
    for name in [name for name, text in key_headers(headers.items()) if _is_placeholder(str(text))]:
        del headers[name]
    for http in _sdk_http_clients(client):
        # Interactions copies the key where it cannot be taken back; this client is ours.
        http.send = _refusing_send(http)


def restore_placeholder(client: Any) -> None:
    """Undo `mute`: a pool is there again."""
    client._http_options.headers.setdefault(KEY_HEADER, client.api_key)
    for http in _sdk_http_clients(client):
        vars(http).pop("send", None)


def _sdk_http_clients(client: Any) -> Iterator[Any]:
    """Yield the httpx clients that the SDK, not the program, made for this one."""
    options = client._http_options
    for name in ("httpx_client", "httpx_async_client"):
        made = "_httpx_client" if name == "httpx_client" else "_async_httpx_client"
        http = getattr(client, made, None)
        if http is not None and getattr(options, name, None) is None and _response_type(http):
            yield http


def _refusing_send(http: Any) -> Callable[..., Any]:
    sent = type(http).send

    def refused(request: Any) -> Any:
        if not any(_is_placeholder(text) for _, text in key_headers(request.headers.multi_items())):
            return None
        return _error_response(_response_type(http), 401, NO_KEY, request)

    def send(request: Any, **options: Any) -> Any:
        return refused(request) or sent(http, request, **options)

    async def asend(request: Any, **options: Any) -> Any:
        return refused(request) or await sent(http, request, **options)

    return asend if hasattr(http, "aclose") else send


def _is_placeholder(text: str) -> bool:
    return text.split()[-1:] in ([POOL_KEY], [EXPRESS_POOL_KEY])


def _repeats(text: str, key: str | None) -> bool:
    """Return whether a header such as `Bearer …` has the client's own key."""
    return key is not None and text.split()[1:] == [key]


def _request_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    options = dict(kwargs)
    return (args[0] if args else options.pop("request")), options


def _follow_redirects(client: Any, options: dict[str, Any]) -> bool:
    # httpx has a value of its own for "as the client does"
    value = options.pop("follow_redirects", None)
    return bool(value if isinstance(value, bool) else client.follow_redirects)


@contextmanager
def _key_in_headers(request: Any, key: _RequestKey, redact: Redact) -> Iterator[None]:
    """Keep the key in the headers only while the request is being sent."""
    handled = sys.exception()
    for name, text in key_headers(request.headers.multi_items()):
        if name.lower() == KEY_HEADER or _is_placeholder(text) or _repeats(text, key.client_key):
            request.headers.pop(name, None)
    if key.value is not None:
        request.headers[KEY_HEADER] = key.value
    try:
        yield
    except Exception as error:
        _redact_error(error, redact, handled)
        raise
    finally:
        _hide_key(request, key)


def _hide_key(request: Any, key: _RequestKey) -> None:
    """Remove a pool's key from a request that was sent; it is restored for another send."""
    if key.placeholder is not None:
        request.headers[KEY_HEADER] = key.placeholder
    elif key.from_pool:
        request.headers[KEY_HEADER] = _HIDDEN
        request.extensions = {**request.extensions, _EXTENSION: key}  # for when it is sent again


def carry_key(request: Any, value: str, client_key: str) -> None:
    """Put a key of the pool into the headers of a request, which print without it.

    The SDK logs the headers of Interactions, where GOOGLE_GENAI_DEBUG is set. The key cannot wait
    for the HTTP library's `send`: a client of the program's may have one of its own.
    """
    key = _RequestKey(value, from_pool=True, platform=GEMINI_API, client_key=client_key)
    request.headers[KEY_HEADER] = value
    headers_type: Any = type(request.headers)
    request.headers = _unprinted(headers_type)(request.headers)
    request.extensions = {**request.extensions, _EXTENSION: key}


@cache
def _unprinted(headers_type: Any) -> Any:
    """Return a type of headers that prints without a key."""
    if hasattr(headers_type, "keyrot_shown"):
        return headers_type

    class Headers(headers_type):  # type: ignore[misc]  # the class is the HTTP library's
        """Headers with a key."""

        keyrot_shown = headers_type

        def __repr__(self) -> str:
            shown = headers_type(self)
            if KEY_HEADER in shown:
                shown[KEY_HEADER] = _HIDDEN
            return repr(shown)

    return Headers


def forget_key(request: Any) -> None:
    """Remove the key of the last send from a request that is sent again with another one."""
    if _EXTENSION in request.extensions:
        request.extensions = {k: v for k, v in request.extensions.items() if k != _EXTENSION}
        request.headers.pop(KEY_HEADER, None)


def _redact_response(response: Any, key: _RequestKey, redact: Redact) -> Any:
    """Redact the response; return the request that a redirect asks for."""
    redirect = response.next_request
    response.next_request = None
    _hide_key(response.request, key)
    if response.status_code >= 400:
        scrub(response, redact)
    return redirect


def _redact_error(error: Exception, redact: Redact, handled: BaseException | None) -> None:
    redact_exception(error, redact, handled)
    clear_frames(error, _HTTP_LIBRARIES)


_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "h2", "aiohttp", "websockets")
"""What holds the headers of a request in local variables while it is sent."""


def _with_key(headers: Iterable[tuple[str, Any]], key: _RequestKey) -> dict[str, Any]:
    """Return headers with this key and no other of the pool."""
    kept = {name: text for name, text in headers if not _is_placeholder(str(text))}
    if key.from_pool and key.value is not None:
        kept = {name: text for name, text in kept.items() if name.lower() != KEY_HEADER}
        kept[KEY_HEADER] = RedactedHeader(key.value)
    return kept


def _redirect_arguments(arguments: dict[str, Any], url: str, status: int) -> dict[str, Any]:
    """Return the arguments of the request that a redirect asks for, as browsers send it."""
    arguments = {**arguments, "url": url}
    method = str(arguments.get("method", "")).upper()
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        arguments["method"] = "GET"
        for name in ("data", "json"):
            arguments.pop(name, None)
    return arguments


def _redirect_text(origin: str, url: str) -> str:
    return (
        f"{origin} redirects this request to {origin_from_url(url) or 'another address'}, where "
        "the pool's key may not follow: the request was not sent there, and no key is penalized"
    )


def _http_library(cls: type) -> str | None:
    roots = (base.__module__.partition(".")[0] for base in cls.__mro__)
    return next((root for root in roots if root in ("httpx", "httpx2")), None)


def _response_type(http: Any) -> Any:
    """Return the `Response` class of a client's library."""
    root = _http_library(type(http))
    return getattr(sys.modules.get(root), "Response", None) if root else None


def _error_response(response_type: Any, code: int, text: str, request: Any = None) -> Any:
    """Return an error response in place of the server's; the SDK raises its own error from it."""
    return response_type(code, json=error_body(code, text), request=request)


def _raise_api_error(code: int, text: str) -> None:
    """Raise the error of the SDK where no response can stand in for the server's."""
    library = sys.modules.get("httpx2") or sys.modules.get("httpx")
    response = _error_response(library.Response, code, text) if library is not None else None
    sys.modules["google.genai.errors"].APIError.raise_error(code, error_body(code, text), response)
