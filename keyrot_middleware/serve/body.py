"""The body of a request: small ones are read whole, large ones share a bounded space."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from starlette.types import Message, Receive

from .access import RequestRefused

MIB = 1_048_576
SMALL = MIB
"""A body of at most so many bytes is read before it takes space."""
LARGEST = 4 * 1024**3
SPACE_MIB = 128
"""For all larger ones. Each takes its length, but not more than is kept of it."""
KEPT_MIB = 32
"""Of a body, for a second attempt; see `clients.bounded.LONGEST_BODY`."""
SPACE_S = 300.0
"""How long a body waits for space."""
IDLE_S = 60.0
"""How long a client may send nothing of its body."""
BODY_S = 300.0
"""How long it may take for a body, and in addition a second for each of `SLOWEST` bytes."""
SLOWEST = 65_536
LINGER_S, LINGER_IDLE_S = 30.0, 5.0
"""How long an answer waits for a client that still sends: in all, and between two pieces."""


class Stopped(BaseException):
    """The client has left, or sends no more.

    No `Exception`: the pool would take it for a failure of the provider's.
    """

    def __init__(self, refused: RequestRefused | None = None) -> None:
        super().__init__()
        self.refused = refused
        """What to answer; None: nobody is there."""


class RequestBody:
    """Reads a body as it comes."""

    def __init__(self, receive: Receive, size: int | None) -> None:
        """Read nothing yet; *size*: None where no header names it."""
        self._receive, self._size = receive, size
        self._waited, self._received = 0.0, 0
        self.ended = asyncio.Event()
        if size == 0:
            self.ended.set()

    @property
    def mib(self) -> int:
        """The space that it takes."""
        return KEPT_MIB if self._size is None else min(KEPT_MIB, -(-self._size // MIB))

    async def begin(self) -> bytes:
        """Return a small body whole, or the beginning of a larger one.

        Raises:
            RequestRefused: It is too long.
            Stopped: The client does not send it.
        """
        if self._size is not None and self._size > LARGEST:
            raise RequestRefused(413, f"a body has at most {LARGEST:,} bytes")
        if self._size is not None and self._size > SMALL:
            return b""
        begin = bytearray()
        while len(begin) <= SMALL and not self.ended.is_set():
            begin += await self._next()
        return bytes(begin)

    async def rest(self, begin: bytes) -> AsyncGenerator[bytes]:
        """Yield *begin* and what comes behind it."""
        if begin:
            yield begin
        while not self.ended.is_set():
            yield await self._next()
            if self._received > LARGEST:
                raise Stopped(RequestRefused(413, f"a body has at most {LARGEST:,} bytes"))

    async def _next(self) -> bytes:
        # Not the time that others take: for space, for a key, or a provider that reads slowly.
        left, began = BODY_S + self._received / SLOWEST - self._waited, monotonic()
        try:
            async with asyncio.timeout(min(IDLE_S, left)):
                message = await self._receive()
        except TimeoutError:
            text = (
                f"nothing came for {IDLE_S:.0f} seconds" if left > IDLE_S else "it came too slowly"
            )
            raise Stopped(RequestRefused(408, f"the body was not sent: {text}")) from None
        self._waited += monotonic() - began
        return self._take(message)

    def _take(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            raise Stopped
        piece: bytes = message.get("body", b"")
        self._received += len(piece)
        if not message.get("more_body"):
            self.ended.set()
        return piece

    async def linger(self) -> None:
        """Read on for a while without use: many clients read an answer only when all is sent.

        A connection that is closed before that is reset, and what was written to it is lost.
        """
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.ended.is_set():
                    async with asyncio.timeout(LINGER_IDLE_S):
                        self._take(await self._receive())
        except (TimeoutError, Stopped):
            pass


class Space:
    """What large bodies share: they are kept until the provider answers, for a second attempt."""

    def __init__(self) -> None:
        """Start empty."""
        self._free, self._turn = asyncio.Semaphore(SPACE_MIB), asyncio.Lock()

    @asynccontextmanager
    async def hold(self, mib: int) -> AsyncIterator[None]:
        """Hold so many MiB, when those that asked before have theirs.

        Raises:
            RequestRefused: There is no space for too long.
        """
        held = 0
        try:
            try:
                async with asyncio.timeout(SPACE_S), self._turn:
                    while held < mib:
                        await self._free.acquire()
                        held += 1
            except TimeoutError:
                text = f"other large bodies take all of the {SPACE_MIB} MiB there is for them"
                raise RequestRefused(503, text, ("retry-after", "60")) from None
            yield
        finally:
            for _ in range(held):
                self._free.release()
