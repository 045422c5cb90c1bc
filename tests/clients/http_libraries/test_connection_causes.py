"""Why there is no connection is said in words, whichever library has tried it."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from support.certificate_authority import CertificateAuthority

from keyrot_middleware.clients.errors import connection_cause, lost_connection


def _of(library: Any) -> Callable[[str], object]:
    return lambda url: library.get(url, timeout=5)


def _of_async(library: Any) -> Callable[[str], object]:
    async def get(url: str) -> object:
        async with library.AsyncClient() as client:
            return await client.get(url)

    return lambda url: asyncio.run(get(url))


async def _aiohttp(url: str) -> object:
    async with aiohttp.ClientSession() as session, session.get(url) as got:
        return got.status


GETS: dict[str, Callable[[str], object]] = {
    "httpx": _of(httpx),
    "httpx-async": _of_async(httpx),
    "httpx2": _of(httpx2),
    "httpx2-async": _of_async(httpx2),
    "requests": _of(requests),
    "aiohttp": lambda url: asyncio.run(_aiohttp(url)),
}
LIBRARIES = pytest.mark.parametrize("get", GETS.values(), ids=GETS)


def failure(get: Callable[[str], object], url: str) -> Exception:
    try:
        get(url)
    except Exception as error:
        return error
    raise AssertionError("it was connected")


@LIBRARIES
def test_a_host_without_an_address(get: Callable[[str], object]) -> None:
    """The names of RFC 6761 that never resolve."""
    facts = lost_connection(failure(get, "http://gateway.invalid/"))
    assert (facts.transport, facts.cause) == ("connect", "the host name is not found (DNS)")


@LIBRARIES
def test_nobody_listens(get: Callable[[str], object]) -> None:
    """At a port that was free a moment ago; by name too, which may have two addresses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        facts = lost_connection(failure(get, f"http://{host}:{port}/"))
        assert (facts.transport, facts.cause) == ("connect", "the connection is refused")


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], object]], str]]:
    """Start a server that meets each connection in its own way; return its address."""
    with ExitStack() as stack:

        def start(meet: Callable[[socket.socket], object]) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection, suppress(OSError):
                        meet(connection)

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"https://localhost:{listener.getsockname()[1]}/"

        yield start


@LIBRARIES
def test_a_certificate_that_is_not_trusted(
    get: Callable[[str], object], listen: Any, tmp_path: Path
) -> None:
    """Such as that of a proxy which reads along."""
    context = CertificateAuthority(tmp_path).context()
    url = listen(lambda connection: context.wrap_socket(connection, server_side=True).close())
    facts = lost_connection(failure(get, url))
    assert (facts.transport, facts.cause) == ("connect", "TLS: the certificate is not trusted")


@LIBRARIES
def test_a_server_that_speaks_no_tls(get: Callable[[str], object], listen: Any) -> None:
    """It answers the first words of TLS in plain text."""

    def meet(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    cause = connection_cause(failure(get, listen(meet)))
    assert cause == "TLS: no connection can be agreed on"


def test_what_lies_below_is_found_in_groups_arguments_and_circles() -> None:
    """And the search ends, whatever refers to what."""
    no_route = OSError(errno.EHOSTUNREACH, "No route to host")
    refused = ExceptionGroup("all attempts", [ValueError(), ConnectionRefusedError()])
    assert connection_cause(ValueError("odd", no_route)) == "no route leads to the host"
    assert connection_cause(refused) == "the connection is refused"
    circle = ValueError("a")
    circle.__cause__ = TypeError("b")
    circle.__cause__.__context__ = circle
    assert connection_cause(circle) == ""
    deep: BaseException = ConnectionRefusedError()
    for _ in range(60):
        deep = ValueError(deep)
    assert connection_cause(deep) == ""


def test_a_time_out_has_no_other_cause() -> None:
    """The program's own deadline ended it, whatever lies below."""
    error = httpx.ConnectTimeout("timed out")
    error.__cause__ = ConnectionRefusedError()
    facts: Any = lost_connection(error)
    assert (facts.transport, facts.cause) == ("timeout", "")
