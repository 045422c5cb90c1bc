"""Live: `max_concurrency` counts open sessions; however one ends, its place is free again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors
from support.live import converse, opened, say
from support.servers import BINARIES, Server

import keyrot_middleware
from keyrot_middleware.state.redis.state import LEASE_S
from keyrot_middleware.testing import FakeGemini, Reply, plain_websockets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
Connect = Callable[..., Any]
KEYS, AT_ONCE, SESSIONS = "ABC", 5, 20


@pytest.fixture(autouse=True)
def _no_tls() -> Iterator[None]:
    """Let the SDK ask for no TLS on loopback."""
    with plain_websockets():
        yield


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()


def limited() -> list[dict[str, Any]]:
    """Return entries of three keys with five sessions each."""
    return [{"key_id": key, "max_concurrency": AT_ONCE} for key in KEYS]


@pytest.mark.parametrize("end", ["close", "drop", "cancel"])
def test_no_key_has_more_sessions_than_it_may(
    end: str, gemini: FakeGemini, pool: Any, connect: Connect
) -> None:
    """Of twenty at once fifteen open, five of each key; the others find none, and later do."""
    pool(*limited(), max_wait_s=0)
    if end == "drop":
        gemini.always_any(Reply.dropped(1))  # not before all have met: at the first message
    go = asyncio.Event()
    client = connect()

    async def talk() -> str:
        try:
            async with opened(client) as session:
                await go.wait()
                if end == "drop":
                    await say(session)
                    await session._receive()
                elif end == "cancel":
                    await session._receive()
        except (keyrot_middleware.KeyPoolExhausted, errors.APIError, asyncio.CancelledError) as why:
            return type(why).__name__
        return "closed"

    async def everyone() -> list[str]:
        tasks = [asyncio.create_task(talk()) for _ in range(SESSIONS)]
        while sum(task.done() for task in tasks) < 5:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(gemini.wait_for, 15)
        go.set()
        for task in tasks if end == "cancel" else ():
            task.cancel()
        return await asyncio.gather(*tasks)

    left = {"close": "closed", "drop": "APIError", "cancel": "CancelledError"}[end]
    assert Counter(asyncio.run(everyone())) == {"KeyPoolExhausted": 5, left: 15}
    assert {key: gemini.peak(key) for key in KEYS} == dict.fromkeys(KEYS, AT_ONCE)
    assert pool.ledger.under_way == {}
    assert gemini.wait_idle()
    gemini.always_any(None)
    for _ in range(4):
        assert asyncio.run(converse(connect())).startswith("ok from")


PROGRAM = """
import asyncio, sys, warnings

warnings.simplefilter("ignore")
import keyrot_middleware
from google import genai
from keyrot_middleware.testing import plain_websockets

url, host, file = sys.argv[1:]
keyrot_middleware.install(
    keys_file=file, allowed_hosts=(host,), state_url=url, pool="live", max_wait_s=0
)


async def hold():
    options = {"base_url": f"http://{host}", "async_client_args": {"ssl": False}}
    client = genai.Client(http_options=options)
    async with (
        client.aio.live.connect(model="gemini-2.5-flash"),
        client.aio.live.connect(model="gemini-2.5-flash"),
    ):
        print("open", flush=True)
        await asyncio.sleep(600)


with plain_websockets():
    asyncio.run(hold())
"""


def test_the_sessions_of_a_killed_process_free_their_leases(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two sessions are open, all that the key may have: another process gets one soon after."""
    with FakeGemini() as gemini:
        monkeypatch.setenv("GEMINI_KEY_A", gemini.add_key("A", tier="paid").value)
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps([{"key_id": "A", "max_concurrency": 2}]))
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, str(program), valkey.url, gemini.host, str(keys)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            keyrot_middleware.install(
                keys_file=keys,
                allowed_hosts=(gemini.host,),
                state_url=valkey.url,
                pool="live",
                max_wait_s=0,
            )
            client = genai.Client(http_options=gemini.http_options)
            with pytest.raises(keyrot_middleware.KeyPoolExhausted):
                asyncio.run(converse(client))
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed = time.monotonic()
            while True:
                try:
                    assert asyncio.run(converse(client)) == "ok from A"
                    break
                except keyrot_middleware.KeyPoolExhausted:
                    assert time.monotonic() - killed < LEASE_S + 5
                    time.sleep(0.2)
            client.close()
            assert gemini.wait_idle()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            keyrot_middleware.uninstall()
