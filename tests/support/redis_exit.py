"""A program that ends while its server hangs: `redis_exit.py URL sync|async`.

It makes a call, waits for SIGUSR1, begins another one that nothing waits for, settles the first
one, and ends.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time

from keyrot_middleware.core.model import (
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
)
from keyrot_middleware.state import State, open_state

INFO = CallInfo("gemini-2.5-flash", "generateContent", 10, 10)
OFFER = ((0, Candidate("a", "a", "a")),)
OK = Outcome(LeaseOutcome.SUCCESS)


def say(what: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def acquire(state: State) -> Lease:
    """Acquire a lease of the shared state."""
    lease = state.acquire(INFO, OFFER, spread=False)
    assert isinstance(lease, Lease)
    assert not lease.degraded
    return lease


async def cancel_one(state: State) -> None:
    """Begin a call, and cancel it: its thread waits for the server."""
    task = asyncio.create_task(state.aacquire(INFO, OFFER, spread=False))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def main() -> None:
    """Run it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    state = open_state(sys.argv[1], RetryPolicy(), time.time)
    lease = acquire(state)
    say("called")
    signal.sigwait({signal.SIGUSR1})
    if sys.argv[2] == "async":
        asyncio.run(cancel_one(state))
    else:
        threading.Thread(target=acquire, args=(state,), daemon=True).start()
        time.sleep(0.2)
    state.settle(lease, OK)
    say("ends")


if __name__ == "__main__":
    main()
