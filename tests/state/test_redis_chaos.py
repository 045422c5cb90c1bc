"""Real servers that hang, fail over or are down: no call fails."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from support.concurrent_callers import Tasks, Threads, check_callers
from support.faulty_state import warnings_of
from support.pool import key
from support.redis_state import POLICY, A, acquire_lease, opened
from support.servers import Server, free_port, wait_for

from keyrot_middleware.core.model import Limits
from keyrot_middleware.state import open_state

pytestmark = pytest.mark.usefixtures("within_a_minute")


def test_stopped_for_five_seconds(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs and refuses nothing: one probe per pause, and shared within 5 s of its return."""
    one = key("s", Limits(rpd=20_000))
    with opened(valkey.strict_url) as state:
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
        wait_for(lambda: not state.degraded)
        acquire_lease(state)
    warnings = warnings_of(caplog)  # a busy machine may be slow for 0.2 s once more
    assert all("cannot be used" in text or "is back after" in text for text in warnings)
    assert len(warnings) >= 2


def test_a_black_hole() -> None:
    """A server that accepts connections and never answers costs one call its time limit."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hole,
        opened(f"redis://127.0.0.1:{hole.getsockname()[1]}/0") as state,
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
