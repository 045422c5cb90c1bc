"""Several processes with one pool: limits and cooldowns hold for all, leases of the dead expire."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.pool import INFO, key
from support.servers import ENGINES, server, wait_for

from keyrot_middleware.core.model import (
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Verdict,
)
from keyrot_middleware.state.redis import RedisState

_pools = count()


class Worker:
    """A process at the other end of a pipe."""

    def __init__(self) -> None:
        script = Path(__file__).parents[1] / "support" / "redis_worker.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, **command: Any) -> None:
        """Send a command, without waiting for its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """Wait for the result of a command."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def request(self, **command: Any) -> Any:
        """Send a command, and wait for its result."""
        self.send(**command)
        return self.receive()

    def __enter__(self) -> Worker:
        assert self.receive() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def workers() -> Iterator[Callable[[int], list[Worker]]]:
    """Start so many processes; end them after the test."""
    with ExitStack() as running:

        def start(number: int) -> list[Worker]:
            begun = [Worker() for _ in range(number)]
            return [running.enter_context(worker) for worker in begun]

        yield start


def pool() -> dict[str, str]:
    """Name a new pool on the shared server."""
    return {"url": server("valkey").url, "pool": f"processes-{next(_pools)}"}


NOW = 1_700_000_030.0
"""In the middle of a minute: at its end twice the limit may rightly be leased."""


def test_four_processes_send_exactly_the_limit_every_time(
    workers: Callable[[int], list[Worker]],
) -> None:
    """RPM 20 and four processes with thirty acquires each: twenty leases, ten times of ten."""
    four, totals = workers(4), []
    for _ in range(10):
        job = {**pool(), "keys": ["a"], "limits": {"rpm": 20}, "times": 30, "settle": "success"}
        job["now"] = NOW
        for worker in four:
            worker.send(**job)
        totals.append(sum(len(worker.receive()) for worker in four))
    assert totals == [20] * 10


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_processes_use_ten_mixed_limits_to_the_end_and_no_further(
    workers: Callable[[int], list[Worker]], engine: str
) -> None:
    """Ten keys with RPM, TPM or both, requests of three sizes: none over, 95 % of each used."""
    limits: dict[str, dict[str, int]] = {f"rpm{n}": {"rpm": 20 + n} for n in range(4)}
    limits |= {f"tpm{n}": {"tpm": 800 + 50 * n} for n in range(3)}
    limits |= {f"both{n}": {"rpm": 25, "tpm": 300 + 200 * n} for n in range(3)}
    eight = workers(8)
    where = {"url": server(engine.partition("://")[0]).url, "pool": f"processes-{next(_pools)}"}
    job = {"keys": limits, "tokens": [3, 17, 40], "times": 150, "settle": "success", "now": NOW}
    for worker in eight:
        worker.send(**where, **job, spread=True)
    leased = [one for worker in eight for one in worker.receive()]
    for name, most in limits.items():
        sizes = [tokens for key_id, tokens in leased if key_id == name]
        used = {"rpm": len(sizes), "tpm": sum(sizes)}
        shares = [used[window] / limit for window, limit in most.items()]
        assert 0.95 <= max(shares) <= 1, (name, used, most)


def test_a_key_refused_to_one_process_is_not_tried_by_others(
    workers: Callable[[int], list[Worker]],
) -> None:
    """A answers 429 to one process: from then on all of them lease B."""
    first, *others = workers(4)
    job = {**pool(), "keys": ["A", "B"]}
    assert first.request(**job, settle="minute") == ["A"]
    job = {**job, "settle": "success", "times": 5}
    assert [worker.request(**job) for worker in others] == [["B"] * 5] * 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_killed_during_its_probe_delays_others_by_seconds(
    how: signal.Signals, workers: Callable[[int], list[Worker]]
) -> None:
    """Another worker's request is sent a few seconds after the killed worker's probe."""
    (worker,) = workers(1)
    where, one = pool(), key("a")
    state = RedisState(where["url"], RetryPolicy(), pool=where["pool"])
    lease = state.acquire(INFO, ((0, one),), spread=False)
    assert isinstance(lease, Lease)
    verdict = Verdict("capacity", 503, Scope.KEY, time.time() - 1)
    state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))
    assert worker.request(**where, keys=["a"], close=False) == ["a"]
    worker.process.send_signal(how)
    worker.process.wait(10)
    wait_for(lambda: isinstance(state.acquire(INFO, ((0, one),), spread=False), Lease), 15)
    state.close()
