"""Ctrl-C and cancellation during a call: raised unchanged, the lease settled once."""

import asyncio
import signal
import threading

import pytest
from support.modes import ask, ask_async, run

from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

ASYNC = ("async", "async_stream")
PATIENCE_S = 60.0
"""How long a request may take to arrive on a busy machine, and an answer that never comes."""


@pytest.fixture
def ctrl_c(gemini):
    """Press Ctrl-C in the main thread as soon as so many requests have arrived."""
    threads = []

    def press_after(requests: int) -> None:
        def wait_and_press() -> None:
            if gemini.wait_for(requests, PATIENCE_S):
                _press()

        threads.append(threading.Thread(target=wait_and_press, daemon=True))
        threads[-1].start()

    yield press_after
    for thread in threads:
        thread.join(60)


def _press() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("mode", ["sync", "sync_stream"])
def test_ctrl_c_while_a_request_is_in_flight(mode, gemini, pool, connect, ctrl_c) -> None:
    """KeyboardInterrupt is raised at once, nothing is sent again, and the pool still works."""
    pool("A", "B", strategy="fill")
    client = connect()
    gemini.script("A", Reply.OK.delayed(PATIENCE_S))
    ctrl_c(1)
    with pytest.raises(KeyboardInterrupt):
        ask(mode, client)
    assert (gemini.count(), pool.ledger.kinds) == (1, [LeaseOutcome.ABANDONED])
    assert pool.ledger.under_way == {}
    assert ask(mode, client) == "ok from A"


@pytest.mark.parametrize("mode", ASYNC)
def test_a_cancelled_task_settles_its_lease(mode, gemini, pool, connect) -> None:
    """CancelledError is raised by the call, once; other tasks continue."""
    pool("A", "B", strategy="fill")
    client = connect()
    gemini.script("A", Reply.OK.delayed(PATIENCE_S))

    async def cancel() -> None:
        task = asyncio.create_task(ask_async(mode, client))
        assert await asyncio.to_thread(gemini.wait_for, 1, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.ledger.kinds == [LeaseOutcome.ABANDONED]
        assert pool.ledger.under_way == {}
        assert await ask_async(mode, client) == "ok from A"

    run(client, cancel)
    assert gemini.count() == 2
