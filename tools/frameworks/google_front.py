"""Google's own address, for programs that know no other: a proxy that leads it to the service.

A program with `HTTPS_PROXY` and `SSL_CERT_FILE` in its environment sends what is for Google to the
service on loopback, over TLS. What is for any other host is refused, so that nothing leaves the
machine.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

__all__ = ["GOOGLE", "proxy_to"]

GOOGLE = "generativelanguage.googleapis.com"


@contextmanager
def proxy_to(port: int, context: ssl.SSLContext) -> Iterator[str]:
    """Run the proxy in front of a port of this machine; give its URL.

    Args:
        port: Of a server without TLS.
        context: With a certificate for Google's address.
    """
    loop, over, ports = asyncio.new_event_loop(), asyncio.Event(), asyncio.Queue[int]()

    async def run() -> None:
        server = await asyncio.start_server(lead, "127.0.0.1", 0)
        ports.put_nowait(server.sockets[0].getsockname()[1])
        await over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def lead(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await client.readuntil(b"\r\n\r\n")
            if not head.startswith(f"CONNECT {GOOGLE}:443 ".encode()):
                back.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            else:
                back.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await back.start_tls(context)
                server, forth = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pass(client, forth), _pass(server, back))
        back.close()

    thread = Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(ports.get(), loop).result(10)}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    finally:
        target.close()
