"""`keyrot serve`: one address for programs in any language, whose requests go through the pool.

`/{provider}/…` is that provider's host, and the path behind it goes as it is. Nothing is
translated, cached or logged. Requests are sent by httpx, which `install()` has patched: which key
is used, how long a call waits and what is sent again is decided there, and nowhere here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
from starlette.types import Message, Receive, Scope, Send

from .. import providers
from ..core.judgement import AVAILABLE
from ..core.model import POOL_KEY
from ..errors import handle_internal_error
from ..hosts import origin_from_url
from ..monitoring.report import PoolReport
from ..providers.base import Provider
from ..providers.gemini import VERTEX_EXPRESS
from ..runtime import workload
from ..settings import Config
from .access import Access, Given, Refused

LARGE = 1_048_576
"""A body above this many bytes, or of unknown size, is large."""
LARGE_AT_ONCE = 4
"""Large bodies that are read at once; up to 32 MiB of each are kept, for a second attempt."""
LARGEST = 4 * 1024**3
IDLE_S = 300.0
"""How long a client may send nothing of its body, or take nothing of the reply."""
_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
    *("proxy-connection", "trailer", "transfer-encoding", "upgrade"),
}
_NOT_UP = _HOP_BY_HOP | {
    *("host", "cookie", "expect", "origin", "referer", "accept-encoding", "forwarded", "via"),
    *("x-keyrot-workload", "x-real-ip"),
}
_NOT_UP_STARTS = ("sec-", "x-forwarded-")
_NOT_BACK = _HOP_BY_HOP | {"set-cookie", "alt-svc", "date", "server"}
_ADDRESSES = frozenset({"x-goog-upload-url", "location", "content-location"})
"""Headers of a reply that may have an address of the provider's."""
_ODD = ("/../", "/./", "//", "\\", "%2e", "%2f", "%5c", "#")
"""What no path of an API has, and another server might read as another path."""


class Door:
    """The ASGI app; needs `install()` in this process."""

    def __init__(
        self, config: Config, access: Access, client: httpx.AsyncClient, report: PoolReport
    ) -> None:
        """Serve the providers that the pool has keys of.

        Args:
            config: Of the pool that is installed.
            access: Decides who may call.
            client: What sends.
            report: How the pool is.
        """
        self._access, self._client, self._report = access, client, report
        self._workloads = {*(config.settings.workloads or ()), *(k.workload for k in config.keys)}
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self.upstream = upstream_of(config)
        """The providers and the origins of their requests, by name."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange = _Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except Refused as refused:
            await exchange.say(refused.code, f"keyrot serve: {refused.text}")
        except httpx.TimeoutException:
            await exchange.say(504, "keyrot serve: the provider did not answer in time")
        except httpx.HTTPError:
            await exchange.say(502, "keyrot serve: the connection to the provider failed")
        except TimeoutError:
            await exchange.say(408, f"keyrot serve: nothing came for {IDLE_S:.0f} seconds")
        except _Left:
            pass  # nobody is there to answer
        except asyncio.CancelledError:
            if not exchange.has_left:
                raise
        except Exception:
            handle_internal_error("serve")
            await exchange.say(500, "keyrot serve: it failed inside; its log has more")

    async def _answer(self, exchange: _Exchange) -> None:
        scope, given, headers = exchange.scope, exchange.given, exchange.headers
        path, method = scope["raw_path"].decode("latin-1"), scope["method"]
        self._access.admit(scope, given)
        if path in ("/healthz", "/readyz"):
            # In a thread: a shared state may be far away.
            is_ready = path == "/healthz" or await asyncio.to_thread(_is_ready, self._report)
            return await exchange.say(*((200, "ok") if is_ready else (503, "no call is served")))
        name, _, rest = path[1:].partition("/")
        if name not in self.upstream:
            known = ", ".join(f"/{one}/" for one in self.upstream)
            raise Refused(404, f"nothing is at this address; there is {known}")
        provider, origin = self.upstream[name]
        exchange.provider = provider
        query = scope["query_string"].decode("latin-1")
        self._access.require_key(provider, given, query)
        kept = "&".join(one for one in query.split("&") if not one.startswith("key="))
        url = f"{origin}/{rest}{'?' if kept else ''}{kept}"
        is_odd = any(part in f"/{rest}/".lower() for part in _ODD)
        route = None if is_odd else provider.route(method, url)
        if route is None:
            raise Refused(404, f"the table of {provider.title} has no such path")
        if label := headers.get("x-keyrot-workload", ""):
            if label not in self._workloads:
                known = ", ".join(sorted(filter(None, self._workloads))) or "none"
                raise Refused(400, f"there is no such workload; there is {known}")
            workload.set(label)  # of this request's own task
        body = await exchange.body(self._large)
        upward = [*_upward(given, provider), provider.key_field(route, POOL_KEY)]
        # Not built by the client: it would add the cookies that other callers' replies have set.
        request = httpx.Request(method, url, headers=upward, content=body)
        here = f"{scope['scheme']}://{headers['host']}/{name}/"
        watcher = asyncio.create_task(exchange.watch(asyncio.current_task()))
        try:
            response = await self._client.send(request, stream=True)
            async with contextlib.aclosing(response):
                await exchange.begin(response, f"{origin}/", here)
                async for piece in response.aiter_raw():
                    await exchange.send_body(piece, more=True)
                await exchange.send_body(b"")
        finally:
            watcher.cancel()


class _Left(Exception):  # noqa: N818 - what a client does
    """The client closed the connection."""


class _Exchange:
    """A request and its reply."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.given = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        self.headers = dict(self.given)
        self.provider: Provider | None = None
        self.has_left = self._has_begun = False
        self._body_ended = asyncio.Event()

    async def body(self, large: asyncio.Semaphore) -> bytes | AsyncGenerator[bytes]:
        """Return a small body whole, and a large one as it comes.

        Raises:
            Refused: It is too long.
        """
        size = int(self.headers.get("content-length", 0))
        if size > LARGEST:
            raise Refused(413, f"a body has at most {LARGEST:,} bytes")
        if size > LARGE or "transfer-encoding" in self.headers:
            return self._pieces(large)
        return b"".join([piece async for piece in self._pieces(contextlib.nullcontext())])

    async def _pieces(self, room: Any) -> AsyncGenerator[bytes]:
        async with room:
            message: Message = {"more_body": True}
            while message.get("more_body"):
                async with asyncio.timeout(IDLE_S):
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise _Left
                yield message.get("body", b"")
        self._body_ended.set()

    async def watch(self, work: Any) -> None:
        """Cancel *work* when the client leaves."""
        await self._body_ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        work.cancel()

    async def begin(self, response: httpx.Response, origin: str, here: str) -> None:
        """Send the head of a reply; *origin* in its addresses becomes *here*."""
        headers = []
        for raw, value in response.headers.raw:
            name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
            if name in _ADDRESSES and text.startswith(origin):
                text = here + text.removeprefix(origin)
            if name not in _NOT_BACK:
                headers.append((name, text))
        await self._send_head(response.status_code, headers)

    async def _send_head(self, code: int, headers: Given) -> None:
        self._has_begun = True
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers]
        await self._send({"type": "http.response.start", "status": code, "headers": raw})

    async def send_body(self, piece: bytes, *, more: bool = False) -> None:
        """Send a part of the reply, when the client has taken those before."""
        async with asyncio.timeout(IDLE_S):
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def say(self, code: int, text: str) -> None:
        """Answer by a sentence, as an error of the provider's; nothing if a reply has begun."""
        if self._has_begun:
            return
        body = {"error": text} if code >= 400 else {"status": text}
        if self.provider is not None:
            body = self.provider.error_body(code, text)
        content = json.dumps(body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
        # The body may not have been read: this connection has no next request.
        await self._send_head(code, [*headers, ("connection", "close")])
        await self.send_body(content)


def _upward(given: Given, provider: Provider) -> Iterator[tuple[str, str]]:
    """Yield the headers that go to the provider."""
    named = ",".join(value for name, value in given if name == "connection")
    hop = {name.strip().lower() for name in named.split(",")} | _NOT_UP | {*provider.key_headers}
    codings = " ".join(value for name, value in given if name == "accept-encoding")
    yield "accept-encoding", "gzip" if "gzip" in codings else "identity"
    for name, value in given:
        if name not in hop and not name.startswith(_NOT_UP_STARTS):
            yield name, value


def upstream_of(config: Config) -> dict[str, tuple[Provider, str]]:
    """Return the providers that the pool has keys of, and the origin of each one's requests.

    That is a host that `KEYROT_ALLOWED_HOSTS` names for it, or else the provider's own.
    """
    found: dict[str, tuple[Provider, str]] = {}
    for platform in dict.fromkeys(key.service for key in config.keys):
        provider, allowed = providers.of(platform), config.allowed[platform]
        if platform == VERTEX_EXPRESS or not allowed:
            continue
        own = {origin_from_url(f"https://{host}") for host in provider.hosts}
        origin = min(allowed - own or allowed)
        found[provider.name] = provider, origin.removesuffix(":443")
    return found


def _is_ready(report: PoolReport) -> bool:
    """Return whether calls of a model in use are served; of none yet, if a key is available."""
    seen = report.look(anew=True)
    served = [one.answer not in ("no", "failing") for one in seen.calls]
    return any(served or [row.overall == AVAILABLE for row in seen.rows])
