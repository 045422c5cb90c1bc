"""A shared state: services beside each other, and a server that fails."""

import logging
import time
from typing import Any

import pytest
from support.modes import MODES, ask
from support.servers import BINARIES, Server, free_port, wait_for
from support.states import Faulty, degrading

import keyrot_middleware
from keyrot_middleware.state.fallback import PAUSE_S


class Shared:
    """An installed pool whose state is shared over a connection that can be cut."""

    def __init__(self, pool: Any, clock: Any) -> None:
        self._pool, self._clock = pool, clock
        self.line: Faulty

    def __call__(self, *keys: Any, seconds: Any = None, **settings: Any) -> Faulty:
        """Install; *seconds* is the breaker's clock."""
        made = self._pool(*keys, **settings)
        self._pool.ledger.checked = False  # leases that cannot be settled there expire
        made.state, self.line = degrading(
            self._clock.time, made.policy, inner=made.state, breaker_clock=seconds
        )
        return self.line

    def is_back(self, mode: str, client: Any) -> None:
        """Restore the connection, let the pause pass, and call until the state is shared again."""
        self.line.restore()

        def again() -> bool:
            self._clock.advance(PAUSE_S)
            ask(mode, client)
            return not degraded()

        wait_for(again)


@pytest.fixture
def shared(pool, clock) -> Shared:
    return Shared(pool, clock)


def degraded() -> bool:
    """Return what a program sees in status()."""
    is_degraded = keyrot_middleware.status()["degraded"]
    assert isinstance(is_degraded, bool)
    return is_degraded


@pytest.mark.parametrize("mode", MODES)
def test_calls_succeed_without_the_shared_state(mode, gemini, shared, connect) -> None:
    """Down from the start, then back: every call is answered, and `status()` reports it."""
    line, client = shared("A", "B"), connect()
    line.cut()
    for _ in range(3):
        ask(mode, client)
    assert degraded()
    shared.is_back(mode, client)
    assert gemini.count(status=200) == gemini.count() > 4


def test_a_server_that_is_not_there_at_install_is_no_error(gemini, pool, connect, caplog) -> None:
    """It is logged at install(), calls are answered, and when it is up it is used."""
    port = free_port()
    pool("A", "B", state_url=f"redis://user:hunter2@127.0.0.1:{port}/0", pool="alone")
    pool.ledger.checked = False
    assert degraded()
    client = connect()
    for mode in ("sync", "sync_stream"):
        ask(mode, client)
    server = Server(BINARIES["valkey"], port=port)
    try:
        server.execute("ACL", "SETUSER", "user", "on", ">hunter2", "~*", "+@all")
        until = time.monotonic() + 60
        while "is back after" not in caplog.text:
            assert time.monotonic() < until
            ask("sync", client)
            time.sleep(0.1)
        ask("async", client)
    finally:
        keyrot_middleware.uninstall()
        server.remove()
    begun, *_ = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"redis://127.0.0.1:{port}" in begun
    assert "hunter2" not in caplog.text
