"""Sync calls that wait in the threads of a loop hold up no async call of the pool.

The loop resolves names in these threads, and aiohttp reads .netrc there for each request.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.modes import MODEL, ask_async, ask_sync, run

from keyrot_middleware.runtime.pool import SystemClock
from keyrot_middleware.testing import Reply
from keyrot_middleware.testing.replies import Scripted, quota_body

THREADS = 3
OTHER_MODEL = "gemini-3.1-pro-preview"


@pytest.fixture
def named(gemini) -> dict[str, Any]:
    """Return HTTP options for the fake by its name, which must be resolved."""
    options = dict(gemini.http_options)
    options["base_url"] = options["base_url"].replace("127.0.0.1", "localhost")
    return options


@pytest.fixture
def install(pool, clock, gemini, named) -> Any:
    """Install a pool with the machine's clock: the calls really wait."""
    pool._clock = SystemClock()
    hosts = (gemini.host, urlsplit(named["base_url"]).netloc)
    return lambda *keys, **more: pool(*keys, **{"allowed_hosts": hosts, **more})


@pytest.mark.parametrize(
    ("first", "aiohttp", "loop"),
    [("tasks", True, "asyncio"), ("threads", False, "uvloop"), ("mixed", True, "uvloop")],
)
def test_tasks_and_threads_share_one_place(
    first, aiohttp, loop, gemini, install, named, connect, no_aiohttp
) -> None:
    """Ten calls each share a key with `max_concurrency: 1`, and each of them is served."""
    make_loop = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    if not aiohttp:
        no_aiohttp()
    install({"key_id": "A", "max_concurrency": 1}, max_wait_s=60)
    gemini.always("A", Reply.slow(0.01))
    client = connect(client_options=named)

    async def everyone() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        tasks = [ask_async("async", client) for _ in range(10)]
        threads = [asyncio.to_thread(ask_sync, "sync", client) for _ in range(10)]
        order = {
            "tasks": [*tasks, *threads],
            "threads": [*threads, *tasks],
            "mixed": [call for pair in zip(tasks, threads, strict=True) for call in pair],
        }[first]
        try:
            return await asyncio.gather(*order)
        finally:
            await client.aio.aclose()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert set(runner.run(everyone())) == {"ok from A"}
    assert gemini.peak("A") == 1


def test_a_call_to_a_free_model_is_not_held_up(gemini, install, named, connect) -> None:
    """All threads of the loop wait for the limit of one model; a task calls another model."""
    pool = install("A", max_wait_s=60)
    gemini.script(
        "A", Scripted(429, lambda sent: quota_body(sent, ["rpm"], free=False, retry_s=5.0))
    )
    client = connect(client_options=named)
    answered: list[str] = []

    def waits(calls: int) -> bool:
        return len(pool.waiting_lines.tickets) == calls

    async def everyone() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS))
        with ThreadPoolExecutor(1) as own:  # the one that gets the 429
            waiting = [loop.run_in_executor(own, ask_sync, "sync", client)]
            while not waits(1):  # noqa: ASYNC110 - for threads
                await asyncio.sleep(0.01)
            calls = [asyncio.to_thread(ask_sync, "sync", client) for _ in range(THREADS)]
            waiting += [asyncio.ensure_future(call) for call in calls]
            for call in waiting:
                call.add_done_callback(lambda _: answered.append(MODEL))
            while not waits(THREADS + 1):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            await ask_async("async", client, model=OTHER_MODEL)
            answered.append(OTHER_MODEL)
            await asyncio.gather(*waiting)

    run(client, everyone)
    assert answered == [OTHER_MODEL, *[MODEL] * (THREADS + 1)]
