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
from keyrot_middleware.testing.replies import Scripted, quota_body

THREADS = 3
OTHER_MODEL = "gemini-2.5-pro"


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
