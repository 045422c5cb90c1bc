"""The transport: an asyncio HTTP server on loopback, in its own thread and event loop."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from itertools import chain, repeat
from types import TracebackType
from typing import Self

from keyrot_middleware.errors import MissingExtraError
from keyrot_middleware.runtime.pool import SystemClock
from keyrot_middleware.testing.keys import Clock, FakeKey, KeyRegistry
from keyrot_middleware.testing.live import LiveSession, WebSocket
from keyrot_middleware.testing.replies import Scripted, Scripts, Then
from keyrot_middleware.testing.request import LoggedRequest, RequestLog

try:
    import h11
except ImportError:
    raise MissingExtraError(
        wanted_by="keyrot_middleware.testing", package="h11", extra="testing"
    ) from None

_BACKLOG = 1024
_KEEP_ALIVE = b": keep-alive\n\n"
# The headers that Google's front end adds to every reply (docs/gemini-api.md#headers).
_FRONT_END = (
    ("Vary", "Origin"),
    ("Vary", "X-Origin"),
    ("Vary", "Referer"),
    ("Server", "scaffolding on HTTPServer2"),
    ("X-XSS-Protection", "0"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("X-Content-Type-Options", "nosniff"),
    ("Server-Timing", "gfet4t7; dur=42"),
)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One complete request.

    Attributes:
        method: In upper case.
        target: The path with its query, as sent.
        headers: Pairs in the order and case received.
        body: All of it.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """Return every value of a header; the name is case-insensitive."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def value(self, name: str) -> str:
        """Return the first value of a header, or an empty string."""
        return next(iter(self.values(name)), "")

    @property
    def is_websocket(self) -> bool:
        """Whether it asks for a websocket."""
        return self.value("upgrade").lower() == "websocket"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response.

    Attributes:
        status: The HTTP status.
        content_type: The header of that name.
        now: The time of the header `Date`, epoch seconds.
        length: Of the whole body, bytes; None: the body comes in chunks.
        headers: More headers.
        front_end: Those of the service's front end.
    """

    status: int
    content_type: str
    now: float
    length: int | None
    headers: tuple[tuple[str, str], ...] = ()
    front_end: tuple[tuple[str, str], ...] = _FRONT_END

    def response(self) -> h11.Response:
        """Return it as h11 sends it."""
        framing = ("Transfer-Encoding", "chunked")
        if self.length is not None:
            framing = ("Content-Length", str(self.length))
        date = formatdate(int(self.now), usegmt=True)
        fixed = (("Content-Type", self.content_type), ("Date", date), *self.front_end)
        return h11.Response(
            status_code=self.status,
            headers=[*fixed, *self.headers, framing],
            reason=_reason(self.status),
        )


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """The bytes sent for one request, and when.

    Attributes:
        head: Of the response; None: nothing is sent.
        pieces: The body, one write each; the first is sent with the head.
        on_done: Called once, when the last byte was sent or the peer disconnected.
        delay_s: Seconds before the first write.
        gap_s: Seconds before each of the others, and before the end of a chunked body.
        then: What happens to the connection afterwards; only `end` completes a chunked body.
        keep_alive_s: A chunked body has its head at once, and comments for `delay_s`, this often.
    """

    head: Head | None
    pieces: tuple[bytes, ...]
    on_done: Callable[[], None]
    delay_s: float = 0.0
    gap_s: float = 0.0
    then: Then = "end"
    keep_alive_s: float = 0.0


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Unknown"


Handler = Callable[[HttpRequest], ResponsePlan]
Upgrade = Callable[[HttpRequest], LiveSession | ResponsePlan]
"""Returns what answers a websocket, or the response that refuses it."""


class _Connection(asyncio.Protocol):
    """One client's connection: requests in order, one at a time."""

    _transport: asyncio.Transport

    def __init__(
        self, handler: Handler, upgrade: Upgrade, connections: set[_Connection | WebSocket]
    ) -> None:
        self._handler = handler
        self._upgrade = upgrade
        self._connections = connections
        self._handshake: bytes | None = b""
        """What came so far of the first request, which may ask for a websocket."""
        self._http = h11.Connection(h11.SERVER)
        self._request = HttpRequest("", "", ())
        self._body: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the response being sent."""
        self._connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer the complete requests."""
        if self._handshake is not None:
            self._handshake += data
        self._http.receive_data(data)
        self._serve()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def _serve(self) -> None:
        try:
            while self._task is None and (request := self._next()) is not None:
                handshake, self._handshake = self._handshake, None
                if handshake is not None:
                    reply = self._upgrade(request)
                    if not isinstance(reply, ResponsePlan):
                        return self._open(reply, handshake)
                    self._answer(reply)
                else:
                    self._answer(self._handler(request))
        except h11.RemoteProtocolError:
            self._transport.close()

    def _open(self, peer: LiveSession, handshake: bytes) -> None:
        """Hand the connection over to a websocket."""
        socket = WebSocket(peer, lambda: self._connections.discard(socket))
        self._connections.discard(self)
        self._connections.add(socket)
        self._transport.set_protocol(socket)
        socket.connection_made(self._transport)
        socket.data_received(handshake)

    def _next(self) -> HttpRequest | None:
        """Return the next complete request; None until more bytes, or the end of a reply, arrive.

        Raises:
            h11.RemoteProtocolError: The peer does not speak HTTP/1.1.
        """
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._body = []
                self._request = HttpRequest(
                    event.method.decode(), event.target.decode("latin-1"), _pairs(event)
                )
                if self._handshake is not None and not self._request.is_websocket:
                    self._handshake = None
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return replace(self._request, body=b"".join(self._body))
            else:
                return None

    def _answer(self, plan: ResponsePlan) -> None:
        if plan.delay_s or plan.gap_s:
            self._task = asyncio.get_running_loop().create_task(self._send_slowly(plan))
            self._task.add_done_callback(partial(self._on_sent, plan))
            return
        self._transport.write(b"".join(self._writes(plan)))
        self._end(plan)

    def _writes(self, plan: ResponsePlan) -> Iterable[bytes]:
        """Yield the bytes of a response, write by write."""
        if plan.head is None:
            return
        head = self._http.send(plan.head.response()) or b""
        first, *others = plan.pieces or (b"",)
        yield head + (self._http.send(h11.Data(first)) or b"")
        for piece in others:
            yield self._http.send(h11.Data(piece)) or b""
        if plan.then == "end":
            yield self._http.send(h11.EndOfMessage()) or b""

    async def _send_slowly(self, plan: ResponsePlan) -> None:
        gaps, comments = chain((plan.delay_s,), repeat(plan.gap_s)), 0
        if plan.keep_alive_s and plan.head is not None and plan.head.length is None:
            comments = max(int(plan.delay_s / plan.keep_alive_s), 1)
            gaps = chain((0.0,), repeat(plan.keep_alive_s, comments), repeat(plan.gap_s))
            plan = replace(plan, pieces=(_KEEP_ALIVE,) * comments + plan.pieces)
        await asyncio.sleep(next(gaps))
        for number, data in enumerate(self._writes(plan)):
            gap = next(gaps) if number else 0.0
            if gap and data:
                await asyncio.sleep(gap)
            self._transport.write(data)

    def _on_sent(self, plan: ResponsePlan, task: asyncio.Task[None]) -> None:
        # Here and not in _play: a task that is cancelled before its first step runs no `finally`.
        self._task = None
        self._end(plan)
        if not task.cancelled() and not self._transport.is_closing():
            self._serve()

    def _end(self, plan: ResponsePlan) -> None:
        plan.on_done()
        if plan.then == "reset":
            self._reset()
        elif plan.then == "close" or self._http.our_state is not h11.DONE:
            self._transport.close()  # requested by the plan or the client
        else:
            self._http.start_next_cycle()

    def _reset(self) -> None:
        # A linger of zero makes close() send RST instead of FIN.
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _pairs(event: h11.Request) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name.decode("latin-1"), text.decode("latin-1")) for name, text in event.headers.raw_items()
    )


class LoopbackServer:
    """Serves requests and websockets on a port of 127.0.0.1, in a thread of its own."""

    def __init__(self, handler: Handler, upgrade: Upgrade) -> None:
        self._handler = handler
        self._upgrade = upgrade
        self._connections: set[_Connection | WebSocket] = set()
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None
        self.port = 0

    def start(self, port: int = 0) -> None:
        """Open a port; it accepts requests when this returns.

        Args:
            port: 0: any free one.

        Raises:
            OSError: The port is in use.
            RuntimeError: If it is running.
        """
        if self._thread is not None:
            raise RuntimeError("the server is already running")
        listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)),
            name="fake-server",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Close every connection and the port, and end the thread. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop()
            thread.join()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        self._stop = partial(loop.call_soon_threadsafe, stopping.set)
        server = await loop.create_server(self._connection, sock=listener)
        ready.set()
        await stopping.wait()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        # Let connection_lost cancel the responses being sent; asyncio.run() ends the rest.
        await asyncio.sleep(0)

    def _connection(self) -> _Connection:
        return _Connection(self._handler, self._upgrade, self._connections)


class FakeServer:
    """A fake: how it is started and stopped, its keys, its scripted replies, and its log."""

    _server: LoopbackServer

    def __init__(self, clock: Clock | None, keep_log: int | None) -> None:
        """Open no port yet."""
        self.clock: Clock = clock or SystemClock()
        self._keys, self._log, self._scripts = KeyRegistry(), RequestLog(keep_log), Scripts()

    def key(self, label: str) -> FakeKey:
        """Return the key with that label.

        Raises:
            KeyError: If there is no such key.
        """
        return self._keys.get(label)

    def remove_key(self, label: str) -> None:
        """Delete a key; it is invalid from now on."""
        self._keys.remove(label)

    def script(self, label: str, *replies: Scripted) -> None:
        """Answer the next requests of a key with these, in order; then as usual.

        Raises:
            KeyError: If there is no such key.
        """
        self._scripts.next[self.key(label).label].extend(replies)

    def always(self, label: str, reply: Scripted | None) -> None:
        """Answer every request of a key with this until changed; None ends it.

        Raises:
            KeyError: If there is no such key.
        """
        self._scripts.set_default(self.key(label).label, reply)

    @property
    def log(self) -> list[LoggedRequest]:
        """Every request so far, oldest first; a copy."""
        return self._log.all()

    def sent(self, label: str | None) -> int:
        """Return how many requests came with a key; None: with no known one.

        Raises:
            KeyError: If there is no such key.
        """
        return self._log.sent(None if label is None else self.key(label).label)

    def count(self, label: str | None = None, **equal: object) -> int:
        """Return how many requests came in all, or with a key, and with these field values.

        Examples:
            >>> gemini.count(status=429), gemini.count("free-1", verb="countTokens")

        Raises:
            AttributeError: If `LoggedRequest` has no such field.
        """
        if label is None and not equal:
            return self._log.total()
        wanted = equal if label is None else {"key": label, **equal}
        requests = self._log.all()
        return sum(all(getattr(r, name) == v for name, v in wanted.items()) for r in requests)

    def wait_for(self, count: int, timeout: float = 60.0) -> bool:
        """Wait until `count` requests came in all; return False if `timeout` seconds passed."""
        return self._log.wait_for(count, timeout)

    def start(self, port: int = 0) -> Self:
        """Open the port.

        Args:
            port: Of 127.0.0.1; 0: any free one.

        Raises:
            OSError: If the port is in use.
            RuntimeError: If it is open already.
        """
        self._server.start(port)
        return self

    def stop(self) -> None:
        """Close the port and every connection, and end the thread. Idempotent."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, as for KEYROT_ALLOWED_HOSTS.

        Raises:
            RuntimeError: If the server was never started.
        """
        if not self._server.port:
            name = type(self).__name__
            raise RuntimeError(f"{name} has no port yet: use `with {name}()` or start()")
        return f"127.0.0.1:{self._server.port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, as for `HttpOptions(base_url=…)`."""
        return f"http://{self.host}"

    @property
    def base_url(self) -> str:
        """As the SDK of the provider takes it."""
        return self.url
