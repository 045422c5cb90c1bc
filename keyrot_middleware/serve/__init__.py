"""`keyrot serve`: one address for programs in any language, whose requests go through the pool.

`/{provider}/…` is that provider's host, and the path behind it goes as it is. Nothing is
translated, cached or logged. Requests are sent by `keyrot_middleware.transport()`: which key is
used, how long a call waits and what is sent again is decided there, and nowhere here.

    access.py        who may call, and what of a request is a key
    body.py          a request's body, and its bounds in time and space
    call_headers.py  what a reply says of its call: key, attempts, wait
    upstream.py      the providers: which paths they have, and what sends to them
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import httpx
from starlette.types import Receive, Scope, Send

from ..clients.errors import connection_cause
from ..core.judgement import AVAILABLE
from ..core.model import POOL_KEY
from ..errors import KeyrotError, handle_internal_error
from ..monitoring.report import PoolReport
from ..providers.base import Provider, Route
from ..runtime import workload
from ..settings import Config
from .access import FORWARDED, NOT_SERVED, DoorAccess, Given, RequestRefused, names_key
from .body import RequestBody, Space, Stopped
from .call_headers import NAMES, CallDetails, details
from .upstream import Upstream, near, sender_to, upstream_of

__all__ = ["Door", "upstream_of"]

_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
    *("proxy-connection", "trailer", "transfer-encoding", "upgrade"),
}
_NOT_UP = _HOP_BY_HOP | {
    *("host", "cookie", "expect", "origin", "referer", "accept-encoding", "x-keyrot-workload"),
}
_NOT_UP_STARTS = ("sec-", *FORWARDED)
_NOT_BACK = {*map(str.encode, _HOP_BY_HOP), *NAMES}
_NOT_BACK |= {b"set-cookie", b"alt-svc", b"date", b"server"}
_ADDRESSES = frozenset({b"x-goog-upload-url", b"location", b"content-location"})
"""Headers of a reply that may have an address of the provider's."""
_takes_gzip = re.compile(rb"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|\Z))").search
_ODD = ("/..", "/./", "//", "\\", "%2e", "%2f", "%5c", "%25", "%0", "#")
"""What no path of an API has, and another server might read as another path."""
# The program's own timeout ends a call sooner; a provider may be silent for an hour at most.
STATUS_S = 10.0
"""How long a look at the pool may take, seconds."""
_TIMEOUT = httpx.Timeout(3_600.0, connect=30.0, write=300.0).as_dict()


class Door:
    """The ASGI app; needs `install()` in this process."""

    def __init__(
        self,
        config: Config,
        access: DoorAccess,
        report: PoolReport,
        *,
        has_details: bool = False,
    ) -> None:
        """Serve the providers that the pool has keys of.

        Args:
            config: Of the pool that is installed.
            access: Decides who may call.
            report: How the pool is.
            has_details: Say in each reply which key was used, and at /status what is left; the pool
                needs a `DetailsObserver`.
        """
        self._access, self._report, self._has_details = access, report, has_details
        self._workloads = {*(config.settings.workloads or ()), *(k.workload for k in config.keys)}
        self._space = Space()
        self.upstream: Mapping[str, Upstream] = upstream_of(config)
        """The providers, by name."""
        self._senders = {name: sender_to(there.origin) for name, there in self.upstream.items()}

    async def aclose(self) -> None:
        """Close the connections to the providers."""
        for sender in self._senders.values():
            await sender.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":
            return await self._refuse_websocket(scope, receive, send)
        exchange = _Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except RequestRefused as refused:
            await exchange.refuse(refused)
        except Stopped as stopped:
            if stopped.refused is not None:
                await exchange.refuse(stopped.refused, lingers=False)
        except httpx.HTTPError as error:
            await exchange.refuse(_no_reply(error))
        except asyncio.CancelledError:
            if not exchange.has_left:  # the server ends; a reply that has begun is cut
                cut = RequestRefused(503, "it was stopped before the provider answered")
                await exchange.refuse(cut, lingers=False)
        except Exception:
            handle_internal_error("serve")
            if exchange.has_begun:
                raise  # the server closes the connection
            await exchange.refuse(RequestRefused(500, "it failed inside; its log has more"))

    async def _refuse_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say why, where the program reads it: clients show the reason of a close, and no body."""
        await receive()
        try:
            self._access.admit(scope, _decoded(scope))
        except RequestRefused as refused:
            if refused.code == NOT_SERVED:
                await send({"type": "websocket.accept"})
                reason = f"keyrot serve: {refused.text}"
                return await send({"type": "websocket.close", "code": 1011, "reason": reason})
        await send({"type": "websocket.close"})  # a 403

    async def _answer(self, exchange: _Exchange) -> None:
        scope, given = exchange.scope, exchange.given
        path = scope["raw_path"].decode("latin-1")
        name, _, rest = path[1:].partition("/")
        if (there := self.upstream.get(name)) is not None:
            exchange.provider = there.provider
        self._access.admit(scope, given)
        if path == "/healthz":
            return await exchange.say(200, {"status": "ok"})
        if path == "/readyz":
            # In a thread: a shared state may be far away.
            if await asyncio.to_thread(_is_ready, self._report):
                return await exchange.say(200, {"status": "ok"})
            raise RequestRefused(503, "no call is served")
        query = scope["query_string"].decode("latin-1")
        self._access.require_key(given, query)
        if path == "/status" and self._has_details and scope["method"] in ("GET", "HEAD"):
            return await exchange.say(200, await self._what_is_left())
        # Google's Java SDK puts the path of its base address before that of an upload's.
        rest = rest.removeprefix(f"{name}/")
        is_odd = any(part in f"/{rest}/".lower() for part in _ODD)
        kept = self._access.without_keys(query) if query else ""
        rest = f"{rest}{'?' if kept else ''}{kept}"
        found = None if there is None or is_odd else there.find(scope["method"], rest)
        if there is None or found is None:
            raise RequestRefused(404, near(self.upstream, scope["method"], path))
        self._set_workload(exchange.headers)
        await self._forward(exchange, there, *found)

    async def _what_is_left(self) -> object:
        """Return what is left of each limit; in a thread, as a shared state may be far away."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._report.what_is_left), STATUS_S)
        except (KeyrotError, TimeoutError):
            raise RequestRefused(503, "the state of the pool cannot be read now") from None

    def _set_workload(self, headers: Mapping[str, str]) -> None:
        """Set the workload of this request's task to the one that its header names."""
        if label := headers.get("x-keyrot-workload", ""):
            if label not in self._workloads:
                known = ", ".join(sorted(filter(None, self._workloads))) or "none"
                raise RequestRefused(400, f"there is no such workload; there is {known}")
            workload.set(label)

    async def _forward(self, exchange: _Exchange, there: Upstream, url: str, route: Route) -> None:
        """Send a request, and what comes back."""
        scope, body = exchange.scope, exchange.body
        begin = await body.begin()
        is_whole = body.ended.is_set()
        name, text = there.provider.key_field(route, POOL_KEY)
        # In bytes, as they came: a header may have any letter.
        given = (pair for pair in _upward(scope["headers"]) if not self._access.is_shown(pair[1]))
        headers = [*given, (name.encode(), text.encode())]
        request = httpx.Request(
            scope["method"],
            url,
            headers=headers,
            content=begin if is_whole else body.rest(begin),
            extensions={"timeout": _TIMEOUT, "keyrot_route": (there.provider, route)},
        )
        scheme = self._access.scheme(scope, exchange.headers)
        here = f"{scheme}://{exchange.headers['host']}/{there.provider.name}/"
        sender = self._senders[there.provider.name]
        if self._has_details:
            exchange.details = CallDetails()
            details.set(exchange.details)
        watcher = asyncio.create_task(exchange.watch(asyncio.current_task()))
        try:
            async with nullcontext() if is_whole else self._space.hold(body.mib):
                response = await sender.handle_async_request(request)
            try:
                await exchange.relay(response, f"{there.origin}/", here)
            finally:
                await response.aclose()
        finally:
            watcher.cancel()


class _Exchange:
    """A request and its reply."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.given = _decoded(scope)
        self.headers = dict(self.given)
        is_chunked = "transfer-encoding" in self.headers
        size = None if is_chunked else int(self.headers.get("content-length", 0))
        self.body = RequestBody(receive, size)
        self.provider: Provider | None = None
        self.details: CallDetails | None = None
        """What the pool has done for it, where the reply is to say that."""
        self.has_left = self.has_begun = False

    async def watch(self, work: asyncio.Task[None] | None) -> None:
        """Cancel *work* when the client leaves."""
        await self.body.ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        if work is not None:
            work.cancel()

    async def relay(self, response: httpx.Response, origin: str, here: str) -> None:
        """Send a reply as it comes; *origin* in the addresses of its head becomes *here*."""
        there = origin.encode(), here.encode("latin-1")
        headers = []
        for raw, value in response.headers.raw:
            name = raw.lower()
            if name not in _NOT_BACK:
                is_address = name in _ADDRESSES and value.startswith(there[0])
                headers.append((name, value.replace(*there, 1) if is_address else value))
        await self._send_head(response.status_code, headers)
        async for piece in response.stream:  # type: ignore[union-attr]  # as it was made
            await self._send_body(piece, more=True)
        await self._end()

    async def refuse(self, refused: RequestRefused, *, lingers: bool = True) -> None:
        """Answer by a sentence, as an error of the provider's; nothing if a reply has begun."""
        text = f"keyrot serve: {refused.text}"
        provider, code = self.provider, refused.code
        body = {"error": text} if provider is None else provider.error_body(code, text)
        await self.say(code, body, refused.headers, lingers=lingers)

    async def say(self, code: int, body: object, more: Given = (), *, lingers: bool = True) -> None:
        """Answer by an object; nothing if a reply has begun."""
        if self.has_begun:
            return
        content = json.dumps(body).encode()
        size = str(len(content)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", size)]
        if not self.body.ended.is_set():
            headers.append((b"connection", b"close"))
        headers += [(name.encode(), value.encode()) for name, value in more]
        await self._send_head(code, headers)
        await self._send_body(content, more=True)
        await self._end(lingers=lingers)

    async def _end(self, *, lingers: bool = True) -> None:
        if lingers and not self.body.ended.is_set():
            await self.body.linger()
        await self._send_body(b"")

    async def _send_head(self, code: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        if self.details is not None:
            headers += self.details.headers()
        await self._send({"type": "http.response.start", "status": code, "headers": headers})

    async def _send_body(self, piece: bytes, *, more: bool = False) -> None:
        """Send a part of the reply, when the client has taken those before."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


def _decoded(scope: Scope) -> Given:
    return [(name.decode("latin-1"), text.decode("latin-1")) for name, text in scope["headers"]]


def _upward(given: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers that go to the provider."""
    named = b",".join(value for name, value in given if name == b"connection").decode("latin-1")
    hop = {name.strip().lower() for name in named.split(",")} | _NOT_UP
    codings = b",".join(value for name, value in given if name == b"accept-encoding")
    yield b"accept-encoding", b"gzip" if _takes_gzip(codings) else b"identity"
    for raw, value in given:
        name = raw.decode("latin-1")
        if not (name in hop or name.startswith(_NOT_UP_STARTS) or names_key(name)):
            yield raw, value


def _no_reply(error: httpx.HTTPError) -> RequestRefused:
    if isinstance(error, httpx.TimeoutException):
        return RequestRefused(504, "the provider did not answer in time")
    cause = connection_cause(error)
    return RequestRefused(502, f"the connection to the provider failed{cause and ': '}{cause}")


def _is_ready(report: PoolReport) -> bool:
    """Return whether calls of a model in use are served; of none yet, if a key is available."""
    seen = report.look(anew=True)
    served = [one.answer not in ("no", "failing") for one in seen.calls]
    return any(served or [row.overall == AVAILABLE for row in seen.rows])
