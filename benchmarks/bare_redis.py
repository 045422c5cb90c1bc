"""What two questions to Redis cost at the least: an empty script before a call, and one after it.

Sent as the pool sends its own: over one open connection, the first answer waited for, the second
left to be read by the next call. So there is the way to the server and back, and nothing of ours.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

from .calls import MODEL, PROMPT, Ask, AsyncAsk, Variant, client_of
from .server import Place

__all__ = ["bare_scripts"]

_EMPTY = b"return 1"
_EVAL = b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(_EMPTY), _EMPTY)
_ANSWER = b":1\r\n"


def bare_scripts(url: str) -> Variant:
    """Make the plain call with two empty scripts around it.

    Args:
        url: Of the server, `redis://host:port/0`.
    """
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0

    def ask(place: Place) -> Ask:
        client = client_of(place)
        line = socket.create_connection((host, port))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = line.makefile("rb")
        line.sendall(_EVAL)  # the first call, too, finds an answer to read

        def call() -> Any:
            line.sendall(_EVAL)
            assert answers.readline() == answers.readline() == _ANSWER
            response = client.models.generate_content(model=MODEL, contents=PROMPT)
            line.sendall(_EVAL)
            return response

        return call

    def aask(place: Place) -> AsyncAsk:
        client = client_of(place)
        lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def call() -> Any:
            if not lines:
                lines.append(await asyncio.open_connection(host, port))
                lines[0][1].write(_EVAL)
            reader, writer = lines[0]
            writer.write(_EVAL)
            assert await reader.readline() == await reader.readline() == _ANSWER
            response = await client.aio.models.generate_content(model=MODEL, contents=PROMPT)
            writer.write(_EVAL)
            return response

        return call

    return Variant(ask=ask, aask=aask)
