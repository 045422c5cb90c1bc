"""A program with a pool, in a process of its own: threads and tasks that call without a pause."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import keyrot_middleware

from .calls import MODEL
from .crew import answer, crew

__all__ = [
    "CALLERS",
    "FIRST",
    "POOL",
    "PROCESSES",
    "THEN",
    "WorkerReport",
    "request_report",
    "workers",
]

PROCESSES, CALLERS = 2, 16
"""So many threads in each process, and as many tasks: 64 callers."""
POOL, FIRST, THEN = "chaos", "FIRST", "THEN"
PAUSE_S = 1.0
"""Pause of a caller between two calls, on average."""


class WorkerReport(NamedTuple):
    """What one process has measured since its last report."""

    calls: int
    longest_s: float
    failures: list[str]
    degraded: bool
    """Whether it uses in-process limits now."""
    late_s: float
    """How late the machine woke a sleeping thread, at most."""


@contextmanager
def workers(
    url: str, values: dict[str, str], state_url: str, pool: str, limit: int
) -> Iterator[list[Connection]]:
    """Run the processes.

    Args:
        url: Address of the service.
        values: The keys, by id.
        state_url: Address of the state.
        pool: Its name there.
        limit: Of the first key, requests a day; the other has none.
    """
    with tempfile.TemporaryDirectory(prefix="keyrot-chaos-") as directory:
        file = Path(directory) / "keys.json"
        file.write_text(json.dumps([{"key_id": FIRST, "rpd": limit}, {"key_id": THEN}]))
        settings = {"keys_file": file, "state_url": state_url, "pool": pool, "strategy": "fill"}
        with crew(PROCESSES, _work, url, values, settings) as pipes:
            yield pipes


def request_report(pipe: Connection) -> WorkerReport:
    """Return the report of a worker.

    Raises:
        RuntimeError: It does not answer.
    """
    pipe.send(None)
    report: WorkerReport = answer(pipe)
    return report


class _Seen:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls, self._longest_s, self._failures = 0, 0.0, list[str]()
        self._late_s = 0.0
        self.over = False

    @contextmanager
    def call(self) -> Iterator[None]:
        begun = time.perf_counter()
        failed = []
        try:
            yield
        except Exception as error:
            failed = [f"{type(error).__name__}: {error}"]
        took_s = time.perf_counter() - begun  # without the wait for the lock
        with self._lock:
            self._calls += 1
            self._longest_s = max(self._longest_s, took_s)
            self._failures += failed

    def report(self) -> WorkerReport:
        degraded = bool(keyrot_middleware.status()["degraded"])  # asks the state: it takes a while
        with self._lock:
            report = WorkerReport(
                self._calls, self._longest_s, self._failures, degraded, self._late_s
            )
            self._calls, self._longest_s, self._failures, self._late_s = 0, 0.0, [], 0.0
            return report

    def watch_machine(self) -> None:
        """Measure how late a sleeping thread wakes, until the end."""
        while not self.over:
            begun = time.perf_counter()
            time.sleep(0.01)
            late_s = time.perf_counter() - begun - 0.01
            with self._lock:
                self._late_s = max(self._late_s, late_s)


def _work(pipe: Connection, url: str, values: dict[str, str], settings: dict[str, Any]) -> None:
    from google import genai  # noqa: PLC0415 - as a user's program has it

    logging.basicConfig(format="%(asctime)s process %(process)d, %(message)s")
    os.environ.update({f"GEMINI_KEY_{key_id}": value for key_id, value in values.items()})
    keyrot_middleware.install(**settings, allowed_hosts=(url.partition("://")[2],))
    client = genai.Client(http_options={"base_url": url})
    seen = _Seen()
    threads = [threading.Thread(target=_call, args=(client, seen)) for _ in range(CALLERS)]
    threads.append(threading.Thread(target=lambda: asyncio.run(_tasks(client, seen))))
    threads.append(threading.Thread(target=seen.watch_machine))
    for thread in threads:
        thread.start()
    try:
        while True:
            pipe.recv()
            pipe.send(seen.report())
    except EOFError:  # the benchmark is done
        pass
    finally:
        seen.over = True
        for thread in threads:
            thread.join()
        keyrot_middleware.uninstall()


def _call(client: Any, seen: _Seen) -> None:
    while not seen.over:
        time.sleep(random.uniform(0, 2 * PAUSE_S))
        with seen.call():
            client.models.generate_content(model=MODEL, contents="hi")


async def _tasks(client: Any, seen: _Seen) -> None:
    async def one() -> None:
        while not seen.over:
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))
            with seen.call():
                await client.aio.models.generate_content(model=MODEL, contents="hi")

    await asyncio.gather(*(one() for _ in range(CALLERS)))
    await client.aio.aclose()
