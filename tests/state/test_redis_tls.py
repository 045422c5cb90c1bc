"""rediss:// checks certificates, for threads and tasks; a proxy in the test terminates TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redis.sentinel import Sentinel
from support.pool import key
from support.servers import Server, sentinel_of, server
from support.sync_async import AsyncClient, SyncClient

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state.redis import RedisState, RedisStateError

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for 127.0.0.1; the private key is in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *where], cwd=directory, check=True, capture_output=True)
    setup = directory / "both.pem"
    setup.write_text((directory / "cert.pem").read_text() + (directory / "key.pem").read_text())
    return setup


@pytest.fixture
def secured(certificate: Path) -> Iterator[Callable[[int], int]]:
    """Start TLS proxies for servers; return the port of each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ExitStack() as fronts:

        def stand(behind: int) -> int:
            front = fronts.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=_serve, args=(front, context, behind), daemon=True).start()
            return int(front.getsockname()[1])

        yield stand


@pytest.fixture
def port(secured: Callable[[int], int]) -> int:
    """Start a TLS proxy for the shared server."""
    return secured(server("valkey").port)


def _serve(front: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    while True:
        try:
            plain, _ = front.accept()
        except OSError:
            return
        with suppress(OSError):
            threading.Thread(target=_join, args=(plain, context, behind), daemon=True).start()


def _join(plain: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(plain, server_side=True) as client,
        socket.create_connection(("127.0.0.1", behind)) as inner,
    ):
        threading.Thread(target=_pump, args=(inner, client), daemon=True).start()
        _pump(client, inner)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


async def test_a_trusted_certificate_serves(port: int, certificate: Path) -> None:
    """With the certificate authority of the URL calls succeed, sync and async."""
    url = f"rediss://127.0.0.1:{port}/0?socket_timeout=5&ssl_ca_certs={certificate}"
    state = RedisState(url, RetryPolicy(), pool="tls")
    for client in (SyncClient(state), AsyncClient(state)):
        await client.settle(await client.acquire_lease(key("a")))
    assert state.snapshot([key("a")])["a"].success_count == 2
    state.close()


async def test_an_untrusted_certificate_is_an_error(port: int) -> None:
    """A server with an untrusted certificate is not used."""
    state = RedisState(f"rediss://127.0.0.1:{port}/0?socket_timeout=5", RetryPolicy(), pool="tls")
    for client in (SyncClient(state), AsyncClient(state)):
        with pytest.raises(RedisStateError, match="certificate verify failed"):
            await client.acquire_lease(key("a"))


async def test_sentinels_use_the_same_certificates(
    secured: Callable[[int], int],
    certificate: Path,
    valkey: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A private authority signs for sentinels and servers alike, sync and async."""
    at, find = ("127.0.0.1", secured(valkey.port)), Sentinel.discover_master

    def found(self: Sentinel, name: str) -> tuple[str, int]:
        find(self, name)
        return at  # the sentinel does not know the proxy

    monkeypatch.setattr(Sentinel, "discover_master", found)
    with sentinel_of(valkey) as sentinel:
        url = f"rediss+sentinel://127.0.0.1:{secured(sentinel.port)}/main/0?socket_timeout=5"
        for kind in (SyncClient, AsyncClient):
            state = RedisState(f"{url}&ssl_ca_certs={certificate}", RetryPolicy(), pool="tls")
            client = kind(state)
            await client.settle(await client.acquire_lease(key("a")))
            state.close()
