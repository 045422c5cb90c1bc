"""Real servers that hang, fail over or are down: no call fails."""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import suppress

import pytest
from support.concurrent_callers import Tasks, Threads, check_callers
from support.faulty_state import warnings_of
from support.pool import INFO, key
from support.redis_state import POLICY, A, acquire_lease, opened
from support.servers import Server, free_port, watched_pair
from support.sync_async import OK

from keyrot_middleware.core.model import Lease, Limits
from keyrot_middleware.state import open_shared, open_state
from keyrot_middleware.state.circuit_breaker import PAUSE_S
from keyrot_middleware.state.redis import RedisStateError

pytestmark = pytest.mark.usefixtures("within_a_minute")


def test_stopped_for_five_seconds(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs and refuses nothing: one probe per pause, and shared within 5 s of its return."""
    one = key("s", Limits(rpd=20_000))
    with opened(valkey.strict_url, PAUSE_S) as state:
        with Threads(state, one, number=32) as threads, Tasks(state, one, number=32) as tasks:
            threads.until(lambda: threads.leases["s"] > 50 and tasks.leases["s"] > 50)
            valkey.signal(signal.SIGSTOP)
            time.sleep(5)
            assert state.degraded
            valkey.signal(signal.SIGCONT)
            threads.until(lambda: not state.degraded)
        for callers in (threads, tasks):
            check_callers(callers)
            assert callers.alone["s"] > 50
        acquire_lease(state)
        known = state.snapshot([one])["s"].used[0].requests_day
        assert known >= threads.leases["s"] + tasks.leases["s"]
    warnings = warnings_of(caplog)  # a busy machine may be slow for 0.2 s once more
    assert all("the shared state cannot be used" in begun for begun in warnings[::2])
    assert all("is back after" in ended for ended in warnings[1::2])
    assert len(warnings) >= 2


def test_failed_over_by_a_sentinel() -> None:
    """The master is killed under 64 callers: they continue, and the new one knows the requests."""
    one = key("s", Limits(rpd=20_000))
    with watched_pair() as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        with opened(url) as state:
            with Threads(state, one, number=32) as threads, Tasks(state, one, number=32) as tasks:
                threads.until(lambda: threads.leases["s"] > 50 and tasks.leases["s"] > 50)
                master.stop()
                threads.until(lambda: state.degraded)
                threads.until(lambda: replica.execute("ROLE")[0] == b"master")
                threads.until(lambda: not state.degraded)
            for callers in (threads, tasks):
                check_callers(callers)
            acquire_lease(state)
            known = state.snapshot([one])["s"].used[0].requests_day
            # Replication lags: the last grant of each caller may be lost with the master.
            assert known >= threads.leases["s"] + tasks.leases["s"] - 64


def test_a_black_hole() -> None:
    """A server that accepts connections and never answers costs one call its time limit."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hole,
        opened(f"redis://127.0.0.1:{hole.getsockname()[1]}/0", PAUSE_S) as state,
    ):
        with Threads(state, A) as callers:
            callers.until(lambda: callers.leases["a"] > 500)
        check_callers(callers)
        assert callers.alone["a"] == callers.leases["a"]


def test_a_server_that_is_down_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Opening a state is no error: the outage is logged at once, and ends when the server is up."""
    port = free_port()
    state = open_state(f"redis://user:hunter2@127.0.0.1:{port}/0", POLICY, time.time)
    try:
        assert state.degraded
        (text,) = warnings_of(caplog)
        assert f"redis://127.0.0.1:{port}" in text
        assert "hunter2" not in text
    finally:
        state.close()


def test_closing_does_not_wait_for_a_server_that_hangs(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many connections with a pending reply, one waits for its time limit; it is logged once."""
    shared = open_shared(f"{valkey.strict_url}?socket_timeout=1", POLICY, time.time)
    assert shared is not None
    together = threading.Barrier(16)

    def call() -> None:
        lease = shared.acquire(INFO, ((0, A),), spread=False)
        together.wait(60)
        assert isinstance(lease, Lease)
        shared.settle(lease, OK)  # leaves each thread's connection with a pending reply
        together.wait(60)
        valkey.signal(signal.SIGSTOP)
        together.wait(60)
        with suppress(RedisStateError):
            shared.settle(lease, OK)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    began = time.monotonic()
    shared.close()
    valkey.signal(signal.SIGCONT)
    assert time.monotonic() - began < 12, "sixteen limits of 1 s would be 16 s"
    assert len(warnings_of(caplog)) <= 1
