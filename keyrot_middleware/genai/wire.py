"""Write the key of a request as it is sent: which one, where it may go, what comes back.

Nothing else writes a key. A client without a key of its own holds the placeholder, and a request of
a send has a mark; the pool's key takes their place here, in the headers of one request: for model
calls, downloads, uploads, Interactions and Live alike. A request with a key of the pool goes to an
allowed origin and follows no redirect to another one. A key that the server repeats in a head or
in an error is replaced before anything else reads it: the SDK, a log, an error reporter.
(docs/adr/0024, docs/adr/0035, docs/adr/0039)

The methods wrapped are public ones of the HTTP libraries. What other parts of the program send has
neither the placeholder nor the key of a send of ours, and passes through.
"""

from __future__ import annotations

import re
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, Self
from urllib.parse import urljoin

from ..adapters.key_headers import KEY_HEADER, key_header_names, key_headers, raw_key_headers
from ..adapters.no_key import NO_EXPRESS_KEY, NO_KEY, error_body
from ..adapters.patching import Patcher, Wrapper
from ..adapters.redaction import (
    HIDDEN,
    Redact,
    Redacting,
    current_redact,
    redact_key,
    scrub_head,
)
from ..adapters.urls import origin_from_url
from ..core.model import EXPRESS_POOL_KEY, GEMINI_API, POOL_KEY, VERTEX_EXPRESS, Platform
from ..core.text import mask_keys
from ..errors import ConfigError
from ..guard import handle_internal_error
from ..runtime.current import required_project, required_tiers
from ..runtime.pool import Pool
from ..secrets import Secret
from ..settings import AllowedOrigins
from .error_responses import (
    aread_error,
    read_aiohttp_error,
    read_error,
    response_type,
    with_content,
)
from .key_injection import KeyInjection, current_injection, find_marked
from .live import LiveConnection
from .patching import SdkPatcher

__all__ = [
    "Wire",
    "placeholder_guard",
    "restore_placeholder",
    "withdraw_placeholder",
]

_NO_KEY_GIVEN = re.compile("api[ _]key", re.IGNORECASE)
_NOT_FOUND = (
    "keyrot: install() found no Gemini API key: set GEMINI_API_KEYS or GEMINI_API_KEY, or "
    "write a keys.json; keyrot check shows what is found"
)
_KEY_IN_URL = re.compile(r"\?key=[^&]*$")
_MOST_REDIRECTS = 20
_REDIRECTS = (301, 302, 303, 307, 308)


_EXTENSION = "keyrot"
"""Where a request of httpx that was sent has its key, a `Secret`, for when it is sent again."""


class _RequestKey:
    """The key of one request."""

    __slots__ = ("client_key", "from_pool", "placeholder", "platform", "replaced", "value")

    def __init__(
        self,
        value: Secret | None,
        platform: Platform,
        *,
        from_pool: bool,
        placeholder: str | None = None,
        client_key: Secret | None = None,
    ) -> None:
        self.value = value
        """The key to send; None for none."""
        self.platform = platform
        self.from_pool = from_pool
        """It is a key of the pool."""
        self.placeholder = placeholder
        """The placeholder that it replaces."""
        self.client_key = client_key
        """The client's own, of a send."""
        self.replaced: tuple[str, ...] = ()
        """Names of other headers of a request of httpx that go without it."""

    def replaces(self, name: str, text: str) -> bool:
        """Return whether a key header stands for this key, or repeats the client's own.

        That may stand there in another case, or as a bearer token: two keys would go out.
        """
        if _stands_for_key(text):
            return True
        if name.lower() == KEY_HEADER:
            return self.from_pool and self.value is not None
        return bool(self.client_key) and [Secret(one) for one in text.split()[1:]] == [
            self.client_key
        ]

    @property
    def was_written(self) -> bool:
        """The request had the key itself: no placeholder and no mark stood for it."""
        return self.placeholder is None and self.client_key is None

    @property
    def missing(self) -> str | None:
        """What to tell a program whose pool has no key for this request; None if it has one."""
        if self.value is not None or not self.from_pool:
            return None
        return NO_KEY if self.platform == GEMINI_API else NO_EXPRESS_KEY


class Wire:
    """The wrappers of what sends requests."""

    def __init__(
        self,
        pool: Pool | None,
        allowed: AllowedOrigins,
        enabled: Sequence[bool] = (True,),
        is_of_others: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        """Serve a pool.

        Args:
            pool: None where no key was found at all.
            allowed: Where its keys may go.
            enabled: Empty once it is uninstalled: only calls under way are served then.
            is_of_others: Whether another adapter writes the key of a request of httpx.
        """
        self._pool = pool
        self._allowed = allowed
        self._enabled = enabled
        self._is_of_others = is_of_others

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each module's function or method."""
        return {
            ("httpx", "Client.send"): self.send,
            ("httpx2", "Client.send"): self.send,
            ("httpx", "AsyncClient.send"): self.asend,
            ("httpx2", "AsyncClient.send"): self.asend,
            ("httpx", "HTTPTransport.handle_request"): self.handle_request,
            ("httpx2", "HTTPTransport.handle_request"): self.handle_request,
            ("httpx", "AsyncHTTPTransport.handle_async_request"): self.handle_async_request,
            ("httpx2", "AsyncHTTPTransport.handle_async_request"): self.handle_async_request,
            ("aiohttp", "ClientSession.request"): self.request,
            ("aiohttp", "ClientResponse.start"): self.start,
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
            return _error_response(response_type(client), 401, key.missing, request)
        redact, stream = self._redact(key), options.pop("stream", False)
        with _Exchange(client, request, options, key, redact) as exchange:
            while request is not None:
                response = wrapped(request, **options, stream=True)
                request = exchange.next_request(response)
                if not response.is_success:
                    response = read_error(response, redact)
                elif not stream:
                    response = _read_whole(response)
                response = exchange.passed(response, request)
            return response

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
            return _error_response(response_type(client), 401, key.missing, request)
        redact, stream = self._redact(key), options.pop("stream", False)
        with _Exchange(client, request, options, key, redact) as exchange:
            while request is not None:
                response = await wrapped(request, **options, stream=True)
                request = exchange.next_request(response)
                if not response.is_success:
                    response = await aread_error(response, redact)
                elif not stream:
                    response = await _aread_whole(response)
                response = exchange.passed(response, request)
            return response

    def handle_request(
        self, wrapped: Callable[..., Any], _transport: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `HTTPTransport.handle_request`: httpx logs the reason of a response, at INFO."""
        response, redact = wrapped(*args, **kwargs), current_redact.get()
        if redact is not None:
            scrub_head(response, redact)
        return response

    async def handle_async_request(
        self, wrapped: Callable[..., Any], _transport: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `AsyncHTTPTransport.handle_async_request`."""
        response, redact = await wrapped(*args, **kwargs), current_redact.get()
        if redact is not None:
            scrub_head(response, redact)
        return response

    # aiohttp --------------------------------------------------------------------------------------

    def request(self, wrapped: Callable[..., Any], _session: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `ClientSession.request`."""
        arguments = dict(zip(("method", "url"), args, strict=False)) | kwargs
        headers = arguments.get("headers")
        pairs = headers.items() if hasattr(headers, "items") else ()
        key = self._find_key(pairs, str(arguments.get("url")))
        if key is None:
            return wrapped(*args, **kwargs)
        if key.was_written and current_redact.get() is not None:
            # The transport of an httpx client sends by aiohttp: the layer there reads the reply.
            return wrapped(**{**arguments, "allow_redirects": False})
        return _Sending(self._request(wrapped, arguments, key))

    async def _request(
        self, wrapped: Callable[..., Any], arguments: dict[str, Any], key: _RequestKey
    ) -> Any:
        if key.missing:
            _raise_api_error(401, key.missing)
        redact = self._redact(key)
        with Redacting(redact):
            return await _exchange(wrapped, arguments, key, redact)

    async def start(
        self, wrapped: Callable[..., Any], response: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `ClientResponse.start`: tracers and the cookie jar read the head of a response."""
        started, redact = await wrapped(*args, **kwargs), current_redact.get()
        if redact is not None:
            scrub_head(response, redact)
        return started

    # websockets -----------------------------------------------------------------------------------

    def websocket(self, wrapped: Callable[..., Any], _module: Any, args: Any, kwargs: Any) -> Any:
        """Wrap what Live calls to connect.

        Raises:
            ConfigError: The pool's key would go to a host that may not have it.
        """
        uri = args[0] if args else kwargs.pop("uri")
        name = "additional_headers" if "additional_headers" in kwargs else "extra_headers"
        headers = dict(kwargs.get(name) or {})
        send = current_injection.get()
        live = send if isinstance(send, LiveConnection) and not send.dialed else None
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
            kwargs |= _guarded(kwargs, origin_from_url(uri), key.value, self._redact(key), live)
        elif live is not None:
            kwargs |= _guarded(kwargs, None, live.key_sent, live.redact, live)
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
            return self._find_key(list(headers.items()), uri)
        return self._key_of_send(live, uri)

    # ----------------------------------------------------------------------------------------------

    def _httpx_key(self, request: Any) -> _RequestKey | None:
        """Return the key of a request of httpx, which may be sent again as it is."""
        headers = raw_key_headers(request.headers)
        if not headers:
            return None
        if current_injection.get() is None and self._is_of_others(request):
            return None
        before = request.extensions.get(_EXTENSION)
        if before is None or (KEY_HEADER, HIDDEN) not in headers:
            key = self._find_key(headers, request.url)
        else:
            key = self._key_sent_before(before, str(request.url))
        if key is not None:
            key.replaced = tuple(
                name for name, text in headers if name != KEY_HEADER and key.replaces(name, text)
            )
        return key

    def _key_sent_before(self, before: Secret, url: str) -> _RequestKey | None:
        platform = self._platform_of(before)
        if platform is None:
            return _RequestKey(before, GEMINI_API, from_pool=False)
        may_go = self._may_go(platform, url)
        return _RequestKey(before, platform, from_pool=True) if may_go else None

    def _find_key(self, headers: Iterable[tuple[str, Any]], url: Any) -> _RequestKey | None:
        """Return the key that a request must carry; None if the pool has no part in it."""
        found = [(name.lower(), str(text)) for name, text in key_headers(headers)]
        if not found:
            return None
        url = str(url)
        if (send := find_marked(text for _, text in found)) is not None:
            return self._key_of_send(send, url)
        values = [Secret(text) for name, text in found if name == KEY_HEADER]
        placeholder = next((text.split()[-1] for _, text in found if _stands_for_key(text)), None)
        if placeholder is not None:
            if not self._enabled:
                return None  # the next pool replaces it
            express = placeholder == EXPRESS_POOL_KEY or _VERTEX in url
            platform = VERTEX_EXPRESS if express else GEMINI_API
            others = [value for value in values if not _stands_for_key(value.reveal())]
            if others:
                return _RequestKey(others[0], platform, from_pool=False)
            if not self._may_go(platform, url):
                return _RequestKey(None, platform, from_pool=False, placeholder=placeholder)
            home = self._home(platform)
            return _RequestKey(home, platform, from_pool=True, placeholder=placeholder)
        send = current_injection.get()
        if send is not None and send.value is None and send.client_key in values:
            return _RequestKey(send.client_key, GEMINI_API, from_pool=False)
        # A client may hold a key of the pool as its own: the single key of the environment, say.
        for value in values:
            platform_of_own = self._platform_of(value)
            if platform_of_own is not None and self._may_go(platform_of_own, url):
                return _RequestKey(value, platform_of_own, from_pool=True)
        return None

    def _key_of_send(self, send: KeyInjection, url: str) -> _RequestKey:
        """Return the key of a send of ours.

        Raises:
            ConfigError: It may not go there.
        """
        if (origin := origin_from_url(url)) not in send.origins:
            raise ConfigError(
                f"no key of the pool may go to {origin or url}: it is not in KEYROT_ALLOWED_HOSTS"
            )
        send.is_written = True
        platform = (self._platform_of(send.value) if send.value else None) or GEMINI_API
        return _RequestKey(send.value, platform, from_pool=True, client_key=send.client_key)

    def _may_go(self, platform: Platform, url: str) -> bool:
        return origin_from_url(url) in self._allowed[platform]

    def _platform_of(self, value: Secret) -> Platform | None:
        """Return the platform of a key of the pool; None for another key."""
        if self._pool is None or (key_id := self._pool.secrets.key_id_for(value)) is None:
            return None
        key = self._pool.selector.keys.get(key_id)
        return key.platform if key is not None else GEMINI_API

    def _home(self, platform: Platform) -> Secret | None:
        asked = (required_tiers.get(), required_project.get())
        try:
            return self._pool.home_value(platform, *asked) if self._pool else None
        except Exception:
            handle_internal_error("genai")
            return None

    def _redact(self, key: _RequestKey) -> Redact:
        if self._pool is None:
            return mask_keys
        redact = self._pool.secrets.redact
        return redact if key.from_pool else partial(redact, also=key.value)


_VERTEX = "aiplatform"
"""In the address of requests to Vertex AI: of a client that was made before `install()`, which has
the placeholder of the program."""


def _guarded(*args: Any) -> dict[str, Any]:
    from .websocket import guarded  # noqa: PLC0415 - it needs websockets, which is loaded by Live

    return guarded(*args)


def placeholder_guard(allowed: AllowedOrigins) -> Patcher:
    """Return patches that keep the placeholder off the wire while there is no pool."""
    patcher = SdkPatcher()
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
    """Undo `withdraw_placeholder`: a pool is installed again."""
    client._http_options.headers.setdefault(KEY_HEADER, client.api_key)
    for http in _sdk_http_clients(client):
        vars(http).pop("send", None)


def _sdk_http_clients(client: Any) -> Iterator[Any]:
    """Yield the httpx clients that the SDK, not the program, made for this one."""
    options = client._http_options
    for name in ("httpx_client", "httpx_async_client"):
        made = "_httpx_client" if name == "httpx_client" else "_async_httpx_client"
        http = getattr(client, made, None)
        if http is not None and getattr(options, name, None) is None and response_type(http):
            yield http


def _refusing_send(http: Any) -> Callable[..., Any]:
    def refused(request: Any) -> Any:
        if not any(_is_placeholder(text) for _, text in raw_key_headers(request.headers)):
            return None
        return _error_response(response_type(http), 401, NO_KEY, request)

    def send(request: Any, **options: Any) -> Any:
        return refused(request) or type(http).send(http, request, **options)

    async def asend(request: Any, **options: Any) -> Any:
        return refused(request) or await type(http).send(http, request, **options)

    return asend if hasattr(http, "aclose") else send


def _is_placeholder(text: str) -> bool:
    return text.split()[-1:] in ([POOL_KEY], [EXPRESS_POOL_KEY])


def _stands_for_key(text: str) -> bool:
    """Return whether a header has a placeholder, or the mark of a send."""
    return _is_placeholder(text.partition("/")[0])


def _request_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    options = dict(kwargs)
    return (args[0] if args else options.pop("request")), options


class _Sending(Coroutine[Any, Any, Any]):
    """What `ClientSession.request` returns: a coroutine, and a context manager of its response."""

    __slots__ = ("_coroutine", "_response")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception in it, as in a coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End it, as a coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> Any:
        self._response = await self._coroutine
        return await self._response.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._response.__aexit__(*error)


class _Exchange(Redacting):
    """Around a request of httpx: its key is in the headers only while it is being sent.

    The redirects of one with a pool's key are followed here.
    """

    __slots__ = ("_history", "_key", "_left", "_refused", "_request")

    def __init__(
        self, client: Any, request: Any, options: dict[str, Any], key: _RequestKey, redact: Redact
    ) -> None:
        """Send nothing yet; take what it needs out of *options*."""
        super().__init__(redact)
        self._request, self._key = request, key
        self._history: list[Any] = []
        self._refused: str | None = None
        self._left = 0
        if key.from_pool:
            # httpx has a value of its own for "as the client does"; a mock of send() gets no client
            follow = options.pop("follow_redirects", None)
            if follow if isinstance(follow, bool) else getattr(client, "follow_redirects", False):
                self._left = _MOST_REDIRECTS
            options["follow_redirects"] = False

    def __enter__(self) -> Self:
        headers, key = self._request.headers, self._key
        for name in key.replaced:
            headers.pop(name, None)
        if key.value is None:
            headers.pop(KEY_HEADER, None)
        else:
            headers[KEY_HEADER] = key.value.reveal()  # in place of all of that name
        return super().__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        _hide_key(self._request, self._key)

    def next_request(self, response: Any) -> Any:
        """Return the request that a redirect asks for; None if this response is the last."""
        if not self._key.from_pool:
            return None
        response.history = list(self._history)
        request, response.next_request = response.next_request, None
        try:
            if response.request is not self._request:  # else it is hidden at the end
                _hide_key(response.request, self._key)
        except RuntimeError:  # a response that a test has made has no request
            pass
        if request is None or not self._left:
            return None
        self._left -= 1
        origin = origin_from_url(str(self._request.url))
        location = response.headers.get("location", "")
        self._refused = _refused_redirect(origin, str(request.url), location)
        return None if self._refused else request

    def passed(self, response: Any, request: Any) -> Any:
        """Return what the SDK gets for a response, behind which *request* is sent, or None."""
        if self._refused:
            code, request = response.status_code, response.request
            return _error_response(type(response), code, self._refused, request)
        if request is not None:
            self._history.append(response)
        return response


def _read_whole(response: Any) -> Any:
    try:
        response.read()
    except BaseException:
        response.close()
        raise
    return _without_key(response)


async def _aread_whole(response: Any) -> Any:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise
    return _without_key(response)


def _without_key(response: Any) -> Any:
    """Return a successful response whose content has not the key of the send."""
    send = current_injection.get()
    if send is None or not send.parsed_below:
        return response
    content = redact_key(response.content, send.key_sent)
    return response if content == response.content else with_content(response, content)


def _hide_key(request: Any, key: _RequestKey) -> None:
    """Remove the key from a request that was sent; it is restored for another send."""
    if key.placeholder is not None:
        request.headers[KEY_HEADER] = key.placeholder
    else:
        request.headers[KEY_HEADER] = HIDDEN
        request.extensions = {**request.extensions, _EXTENSION: key.value}


async def _exchange(
    wrapped: Callable[..., Any], arguments: dict[str, Any], key: _RequestKey, redact: Redact
) -> Any:
    """Send a request of aiohttp; of a pool's key, the redirects too."""
    arguments = {**arguments, "headers": _with_key(arguments["headers"].items(), key)}
    follow = arguments.pop("allow_redirects", True) if key.from_pool else False
    if key.from_pool:
        arguments["allow_redirects"] = False
    origin = origin_from_url(str(arguments["url"]))
    for left in range(_MOST_REDIRECTS, -1, -1):
        response = await wrapped(**arguments)
        location = response.headers.get("Location")
        if response.status >= 300:
            await read_aiohttp_error(response, redact)
        if response.status not in _REDIRECTS or not location or not follow or not left:
            return response
        url = _redirect_url(str(arguments["url"]), location)
        response.release()
        if refused := _refused_redirect(origin, url, location):
            _raise_api_error(response.status, refused)
        arguments = _redirect_arguments(arguments, url, response.status)


def _with_key(headers: Iterable[tuple[str, Any]], key: _RequestKey) -> dict[str, Any]:
    """Return headers with this key and no other of the pool."""
    kept = dict(headers)
    for name in key_header_names(tuple(kept)):
        if key.replaces(name, str(kept[name])):
            del kept[name]
    if key.from_pool and key.value is not None:
        kept[KEY_HEADER] = key.value.reveal()
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


def _redirect_url(url: str, location: str) -> str:
    """Return where a redirect leads; empty where that is no address."""
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _refused_redirect(origin: str, url: str, location: str) -> str | None:
    """Return why a redirect is not followed; None if it may be."""
    if HIDDEN in location:
        there = "an address that has an API key in it"
    elif (target := origin_from_url(url)) != origin:
        there = f"{target or 'another address'}, where the pool's key may not follow"
    else:
        return None
    return (
        f"{origin} redirects this request to {there}: the request was not sent there, and no key "
        "is penalized"
    )


def _error_response(cls: Any, code: int, text: str, request: Any = None) -> Any:
    """Return an error response in place of the server's; the SDK raises its own error from it."""
    return cls(code, json=error_body(code, text), request=request)


def _raise_api_error(code: int, text: str) -> None:
    """Raise the error of the SDK where no response can stand in for the server's."""
    library = sys.modules.get("httpx2") or sys.modules.get("httpx")
    response = _error_response(library.Response, code, text) if library is not None else None
    sys.modules["google.genai.errors"].APIError.raise_error(code, error_body(code, text), response)
