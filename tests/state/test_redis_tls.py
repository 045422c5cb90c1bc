"""rediss:// checks certificates, for threads and tasks; a proxy here has the TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from doors import Asked, Awaited
from rig import key
from servers import server

from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.state.redis import RedisState, RedisTrouble

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sign a certificate for 127.0.0.1 by itself; the private key is in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *where], cwd=directory, check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_text((directory / "cert.pem").read_text() + (directory / "key.pem").read_text())
    return both


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    """Stand in front of the shared server, with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as front:
        threading.Thread(target=_serve, args=(front, context), daemon=True).start()
        yield front.getsockname()[1]


def _serve(front: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = front.accept()
        except OSError:
            return
        with suppress(OSError):
            threading.Thread(target=_join, args=(plain, context), daemon=True).start()


def _join(plain: socket.socket, context: ssl.SSLContext) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(plain, server_side=True) as client,
        socket.create_connection(("127.0.0.1", server("valkey").port)) as behind,
    ):
        while question := client.recv(65536):
            behind.sendall(question)
            client.sendall(behind.recv(65536))


async def test_a_trusted_certificate_serves(port: int, certificate: Path) -> None:
    """With the authority that the URL names calls go on, sync and async."""
    url = f"rediss://127.0.0.1:{port}/0?socket_timeout=5&ssl_ca_certs={certificate}"
    state = RedisState(url, RetryPolicy(), pool="tls")
    for door in (Asked(state), Awaited(state)):
        await door.settle(await door.lend(key("a")))
    assert state.snapshot([key("a")])["a"].success_count == 2
    await state.aclose()


async def test_an_unknown_certificate_is_trouble(port: int) -> None:
    """A server that nobody vouches for is not spoken to."""
    state = RedisState(f"rediss://127.0.0.1:{port}/0?socket_timeout=5", RetryPolicy(), pool="tls")
    for door in (Asked(state), Awaited(state)):
        with pytest.raises(RedisTrouble, match="certificate verify failed"):
            await door.lend(key("a"))
