"""Real servers that hang or fail over: no call fails. And clusters, sentinels and TLS."""

import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from support.pool import INFO, key
from support.servers import (
    PATIENT,
    Server,
    closed_port,
    cluster_of_three,
    sentinel_of,
    server,
    wait_for,
    watched_pair,
)
from support.states import (
    OK,
    A,
    Callers,
    acquire,
    failed,
    lease_of,
    opened,
    refused,
    settle,
    used,
    warnings_of,
)

from keyrot_middleware.core.model import Limits, RetryPolicy, Scope
from keyrot_middleware.state.redis import RedisState, RedisStateError

OPENSSL = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
ONE = key("a", Limits(rpd=20_000), project="p")


def test_a_server_that_is_stopped(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs and refuses nothing: calls of threads and tasks go on, and are shared again."""
    with opened(valkey.strict_url) as state:
        with Callers(state, ONE, threads=32, tasks=32) as callers:
            callers.until(lambda: min(callers.count("thread"), callers.count("task")) > 50)
            valkey.signal(signal.SIGSTOP)
            kinds = ("thread", "task")
            callers.until(lambda: min(callers.count(kind, alone=True) for kind in kinds) > 50)
            assert state.degraded
            valkey.signal(signal.SIGCONT)
            callers.until(lambda: not state.degraded)
        wait_for(lambda: not state.degraded)
        lease_of(state, A)
    warnings = warnings_of(caplog)  # a busy machine may be slow for 0.2 s once more
    assert all("cannot be used" in text or "is back after" in text for text in warnings)
    assert len(warnings) >= 2


# A cluster, and sentinels ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    with cluster_of_three() as three:
        yield three


def url_of(nodes: list[Server]) -> str:
    return f"redis+cluster://127.0.0.1:{nodes[0].port}?{PATIENT}"


@pytest.mark.parametrize("pool", ["one", "two", "three"])
def test_a_pool_lives_on_whichever_node_has_its_slot(pool: str, nodes: list[Server]) -> None:
    """Acquire, settle, cool down, own, reset and snapshot, from the wrong node or the right one."""
    with closing(RedisState(url_of(nodes), RetryPolicy(), pool=pool)) as state:
        assert state.get_owner(["files/none"]) is None
        settle(state, ONE, used(42), "files/1")
        assert state.get_owner(["files/1"]) == ("a", "p")
        settle(state, ONE, failed(Scope.KEY))
        assert refused(state, ONE) == {"a": "failure"}
        state.reset(ONE)
        settle(state, ONE)
        known = state.snapshot([ONE])["a"]
        assert (known.success_count, known.error_count) == (2, 1)
    homes = [node for node in nodes if any(f"{{{pool}}}" in found for found in node.names())]
    assert len(homes) == 1


def test_after_a_failover_the_new_master_is_found() -> None:
    """Sentinels name the master; when it is killed, the next one serves within seconds."""
    with watched_pair() as (master, replica, sentinel):
        sentinels = f"127.0.0.1:{closed_port()},127.0.0.1:{sentinel.port}"
        with opened(f"redis+sentinel://{sentinels}/main") as state:
            with Callers(state, ONE, threads=8) as callers:
                callers.until(lambda: callers.count() > 50)
                assert master.names()
                master.stop()
                callers.until(lambda: state.degraded)
                callers.until(lambda: replica.execute("ROLE")[0] == b"master")
                callers.until(lambda: not state.degraded)
            wait_for(lambda: not lease_of(state, ONE).degraded, 20)
            assert replica.names()


def test_a_master_that_no_sentinel_knows_is_an_error(valkey: Server) -> None:
    """The error contains the name, so that a typing error is visible."""
    with sentinel_of(valkey) as sentinel:
        state = RedisState(f"redis+sentinel://127.0.0.1:{sentinel.port}/mian", RetryPolicy())
        with pytest.raises(RedisStateError, match="No master found for 'mian'"):
            acquire(state, ONE)


# TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for 127.0.0.1; the private key is in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *where], cwd=directory, check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_text((directory / "cert.pem").read_text() + (directory / "key.pem").read_text())
    return both


@pytest.fixture
def secured(certificate: Path) -> Iterator[Callable[[int], int]]:
    """Start proxies that terminate TLS for servers; return the port of each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(front: socket.socket, behind: int) -> None:
        with suppress(OSError):
            while True:
                plain, _ = front.accept()
                threading.Thread(target=join, args=(plain, behind), daemon=True).start()

    def join(plain: socket.socket, behind: int) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", behind)) as inner,
        ):
            threading.Thread(target=pump, args=(inner, client), daemon=True).start()
            pump(client, inner)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    with ExitStack() as fronts:

        def stand(behind: int) -> int:
            front = fronts.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=serve, args=(front, behind), daemon=True).start()
            return int(front.getsockname()[1])

        yield stand


async def both_ways(url: str) -> None:
    with closing(RedisState(url, RetryPolicy(), pool="tls")) as state:
        settle(state, A)
        lease = await state.do(state.acquire, INFO, ((0, A),), strategy="fill")
        await state.do(state.settle, lease, OK)


@OPENSSL
async def test_a_certificate_is_checked(secured: Callable[[int], int], certificate: Path) -> None:
    """With the certificate authority of the URL calls succeed; else the server is not used."""
    url = f"rediss://127.0.0.1:{secured(server('valkey').port)}/0?{PATIENT}"
    await both_ways(f"{url}&ssl_ca_certs={certificate}")
    with pytest.raises(RedisStateError, match="certificate verify failed"):
        await both_ways(url)
