"""Fail and restore real servers; `tests/support/servers.py` runs them."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import redis
from support.relay import relay_to
from support.servers import (
    BINARIES,
    Server,
    cluster_of_three,
    move_slots,
    pool_on,
    wait_for,
    watched_pair,
)

from keyrot_middleware.core.model import CallInfo, Candidate, Limits, RetryPolicy
from keyrot_middleware.state import open_shared
from keyrot_middleware.state.redis import TIMEOUT_S
from keyrot_middleware.state.sqlite import WAIT_S

from .chaos_worker import POOL

__all__ = ["ENGINES", "FAULTS", "FILE_FAULTS", "Fault"]

ENGINES = tuple(BINARIES)


@dataclass(frozen=True, slots=True)
class Fault:
    """A server for the state, and how it fails and recovers."""

    url: str
    begin: Callable[[], object]
    end: Callable[[], object]
    """Returns when the server, or its successor, is available again."""
    lasts_s: float = 5.0
    is_outage: bool = False
    """Processes cannot use the server meanwhile, and are to notice that."""
    pool: str = POOL
    most_delay_s: float = 2 * TIMEOUT_S + 1.0
    """How long a call may be delayed."""


@contextmanager
def killed(engine: str) -> Iterator[Fault]:
    """SIGKILL; started again it is empty."""
    with _server(engine) as server:
        yield Fault(server.strict_url, server.stop, server.start, is_outage=True)


@contextmanager
def stopped(engine: str) -> Iterator[Fault]:
    """SIGSTOP and SIGCONT: connections stay, nothing is answered, sent commands run later."""
    with _server(engine) as server:
        stop, go_on = (partial(server.signal, one) for one in (signal.SIGSTOP, signal.SIGCONT))
        yield Fault(server.strict_url, stop, go_on, is_outage=True)


@contextmanager
def black_holed(engine: str) -> Iterator[Fault]:
    """The network swallows everything, of old and of new connections; the server is healthy."""
    with _server(engine) as server, relay_to(server.port) as relay:
        yield Fault(relay.url, relay.close, relay.open, is_outage=True)


@contextmanager
def failed_over(engine: str) -> Iterator[Fault]:
    """The master is killed for good; a sentinel promotes its replica."""
    with watched_pair(engine) as (master, replica, sentinel):
        yield Fault(
            f"redis+sentinel://127.0.0.1:{sentinel.port}/main",
            master.stop,
            lambda: wait_for(lambda: replica.execute("ROLE")[0] == b"master", 30),
            is_outage=True,
        )


@contextmanager
def replies_lost(engine: str) -> Iterator[Fault]:
    """One connection in ten is reset after the server has run a request, until the end."""
    with _server(engine) as server, relay_to(server.port) as relay:

        def stop() -> None:
            relay.loses = lambda: False

        yield Fault(relay.url, partial(relay.lose, 0.1, Random(1)), stop, lasts_s=20.0)


@contextmanager
def connections_reset(engine: str) -> Iterator[Fault]:
    """All connections are reset at once, twice in a second."""
    with _server(engine) as server, relay_to(server.port) as relay:

        def reset() -> None:
            for _ in range(30):
                relay.reset_all()
                time.sleep(0.5)

        yield Fault(relay.url, reset, lambda: None, lasts_s=5.0)


@contextmanager
def slow(engine: str) -> Iterator[Fault]:
    """Each reply takes 180 ms, until the end."""
    with _server(engine) as server, relay_to(server.port) as relay:

        def delay(seconds: float) -> None:
            relay.delay_s = seconds

        yield Fault(relay.url, partial(delay, 0.18), partial(delay, 0.0), lasts_s=20.0)


@contextmanager
def restored(engine: str) -> Iterator[Fault]:
    """FLUSHALL; half a second later all records come back as they were three seconds before."""
    with _server(engine) as server:

        def go_back() -> None:
            copy = _copy(server)
            time.sleep(3)
            server.execute("FLUSHALL")
            time.sleep(0.5)
            _restore(server, copy)

        def twice() -> None:
            go_back()
            time.sleep(10)
            go_back()

        yield Fault(server.strict_url, twice, lambda: None, lasts_s=1.0)


@contextmanager
def restarted(engine: str) -> Iterator[Fault]:
    """SIGKILL, and a start with a snapshot that is three seconds old."""
    with _server(engine) as server:

        def restart() -> None:
            server.execute("SAVE")
            time.sleep(3)
            server.stop()
            server.start()

        yield Fault(server.strict_url, restart, lambda: None, lasts_s=1.0)


@contextmanager
def resharded(engine: str) -> Iterator[Fault]:
    """`redis-cli --cluster reshard` moves the slot of the pool to another node, there and back."""
    with cluster_of_three(engine) as nodes:

        def move() -> None:
            for _ in range(4):
                move_slots(nodes[0], nodes[1])
                time.sleep(2)
                move_slots(nodes[1], nodes[0])
                time.sleep(2)

        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        yield Fault(url, move, lambda: None, lasts_s=1.0, pool=pool_on(nodes[0], POOL))


@contextmanager
def file_locked(_engine: str) -> Iterator[Fault]:
    """Another process begins a transaction, and does not end it."""
    with _file() as path:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

        def hold() -> None:
            other.execute("BEGIN IMMEDIATE")

        def let_go() -> None:
            other.execute("ROLLBACK")

        yield _file_fault(path, hold, let_go, is_outage=True)
        other.close()


@contextmanager
def file_broken(_engine: str) -> Iterator[Fault]:
    """Something overwrites the file while it is used."""
    with _file() as path:

        def overwrite() -> None:
            with path.open("r+b") as file:
                file.write(b"\xff" * path.stat().st_size)

        yield _file_fault(path, overwrite, lambda: None)


@contextmanager
def file_deleted(_engine: str) -> Iterator[Fault]:
    """Somebody deletes the file, twice."""
    with _file() as path:

        def delete() -> None:
            path.unlink()
            time.sleep(5)
            path.unlink()

        yield _file_fault(path, delete, lambda: None)


@contextmanager
def disk_full(_engine: str) -> Iterator[Fault]:
    """The disk of the file, a small tmpfs, is full."""
    with _file() as path:
        folder = path.parent / "small"
        folder.mkdir()
        _as_root("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
        filler = folder / "filler"

        def fill() -> None:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        try:
            # The log is 32 kB at least, so that the first writes after that fail.
            yield _file_fault(folder / path.name, fill, filler.unlink, is_outage=True)
        finally:
            _as_root("umount", folder)


@contextmanager
def writers_killed(_engine: str) -> Iterator[Fault]:
    """Twenty other processes write as fast as they can, and are killed by -9."""
    with _file() as path:

        def kill() -> None:
            draw, context = Random(1), multiprocessing.get_context("spawn")
            for _ in range(20):
                writer = context.Process(target=_write, args=(str(path),), daemon=True)
                writer.start()
                time.sleep(draw.uniform(0.4, 0.8))
                writer.kill()
                writer.join()

        yield _file_fault(path, kill, lambda: None, lasts_s=1.0)


def _as_root(*command: str | Path) -> None:
    subprocess.run(command, check=True)  # noqa: S603 - commands of this file


def _write(path: str) -> None:
    state = open_shared(f"sqlite://{path}", RetryPolicy(), time.time, pool=POOL)
    key = Candidate("other", "other", "other", Limits(max_concurrency=10**6))
    while state is not None:
        state.acquire(CallInfo("m", "generateContent"), ((0, key),), spread=False)


@contextmanager
def _file() -> Iterator[Path]:
    with TemporaryDirectory(prefix="keyrot-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "state.sqlite3"


def _file_fault(path: Path, *args: Callable[[], object], **more: Any) -> Fault:
    return Fault(f"sqlite://{path}", *args, most_delay_s=2 * WAIT_S, **more)


FILE_FAULTS: dict[str, Callable[[str], AbstractContextManager[Fault]]] = {
    "locked": file_locked,
    "overwritten": file_broken,
    "deleted, twice": file_deleted,
    "disk full": disk_full,
    "20 writers killed by -9": writers_killed,
}
"""Of a file; filling a disk needs a user who may mount one."""


FAULTS: dict[str, Callable[[str], AbstractContextManager[Fault]]] = {
    "killed, restarted empty": killed,
    "SIGSTOP": stopped,
    "black-holed": black_holed,
    "failed over by Sentinel": failed_over,
    "1 in 10 replies lost": replies_lost,
    "all connections reset, 30 times": connections_reset,
    "180 ms of latency": slow,
    "emptied, then restored 3 s old, twice": restored,
    "restarted from a snapshot 3 s old": restarted,
    "slot of the pool resharded, 8 times": resharded,
}


@contextmanager
def _server(engine: str) -> Iterator[Server]:
    server = Server(BINARIES[engine])
    try:
        yield server
    finally:
        server.remove()


def _copy(server: Server) -> dict[str, Any]:
    """Return all records as they are at one moment."""
    names = server.names()
    with redis.Redis(port=server.port) as client, client.pipeline() as pipeline:
        for name in names:
            pipeline.dump(name)
        return dict(zip(names, pipeline.execute(), strict=True))


def _restore(server: Server, records: dict[str, Any]) -> None:
    with redis.Redis(port=server.port) as client, client.pipeline() as pipeline:
        for name, value in records.items():
            if value is not None:
                pipeline.restore(name, 3_600_000, value, replace=True)
        pipeline.execute()
