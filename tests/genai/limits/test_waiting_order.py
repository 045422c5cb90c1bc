"""First come, first served: waiting calls of a process are served in their order."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from support.modes import ask_async, ask_sync
from support.servers import wait_for

from keyrot_middleware.core import flow
from keyrot_middleware.core import waiting as queue
from keyrot_middleware.runtime.pool import SystemClock

CALLERS = 16
Start = Callable[[Any, str], "Future[str]"]


@pytest.fixture(params=["memory", "redis"])
def state_url(request) -> str:
    """Count in this process alone, or on a server."""
    return "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url


@contextmanager
def starting(client: Any, how: str) -> Iterator[Start]:
    """Give a function that begins a call in a thread, in a task, or in each in turn."""
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    number = iter(range(1_000))

    def start(contents: str) -> Future[str]:
        if how == "async" or (how == "mixed" and next(number) % 2):
            call = ask_async("async", client, contents=contents)
            return asyncio.run_coroutine_threadsafe(call, loop)
        return threads.submit(ask_sync, "sync", client, contents=contents)

    try:
        with ThreadPoolExecutor(CALLERS + 1) as threads:
            yield start  # type: ignore[misc]
    finally:
        for closing in (client.aio.aclose(), loop.shutdown_asyncgens()):
            asyncio.run_coroutine_threadsafe(closing, loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()


def contents(gemini: Any) -> list[str]:
    return [request.body["contents"][0]["parts"][0]["text"] for request in gemini.log]


def delayed_answers(gemini: Any) -> tuple[threading.Event, threading.Event]:
    """Delay every answer until the second event; the first reports that a request has come."""
    came, served = threading.Event(), threading.Event()

    def answer(_body: Any) -> str:
        came.set()
        return "ok" if served.wait(120) else "late"

    gemini.answer(answer)
    return came, served


def waiting(pool: Any) -> int:
    return len(pool.waiting_lines.tickets)


@pytest.fixture
def clock() -> SystemClock:
    """Use the machine's, with a key that serves one request at a time."""
    return SystemClock()


@pytest.mark.parametrize("how", ["async", "mixed"])
def test_calls_are_sent_in_their_order(how, gemini, pool, connect, state_url, monkeypatch) -> None:
    """While one call is served, sixteen more come one by one; they are sent in that order."""
    for module in (flow, queue):  # a busy machine may let the first one sleep for a while
        monkeypatch.setattr(module, "LATE_S", 60.0)
    shared = {"state_url": state_url, "pool": f"order-{how}", "max_wait_s": 120}
    made = pool({"key_id": "A", "max_concurrency": 1}, **shared)
    pool.ledger.checked = state_url == "memory://"
    came, served = delayed_answers(gemini)
    with starting(connect(), how) as start:
        begun = [start("first")]
        assert came.wait(120)
        for number in range(CALLERS):
            begun.append(start(f"call {number}"))
            wait_for(lambda there=number + 1: waiting(made) == there)
        served.set()
        assert [one.result(120) for one in begun] == ["ok"] * (CALLERS + 1)
    assert contents(gemini) == ["first", *(f"call {number}" for number in range(CALLERS))]
    assert waiting(made) == 0
