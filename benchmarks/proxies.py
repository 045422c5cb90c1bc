"""LiteLLM's proxy beside `keyrot serve` and a proxy of ten lines: a part of `make bench-peers`.

LiteLLM's has an environment of its own, since its libraries are not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from venvs import built, pins

from .crowd import CHAT, HEADERS, KEYS, REST_S, ROOT, litellm
from .page import Row, table
from .serve import PROXY, SERVE, Program, host_of_provider, peak_mb

__all__ = ["section"]

ROUNDS, CHATS, AT_ONCE = 10, 30, 8


def section() -> str:
    """Measure, and write what was done and the table."""
    python = built(ROOT / ".venv-bench-proxy", pins(ROOT / "requirements" / "bench-proxy.txt"))
    find = "from importlib.metadata import version; print(version('litellm'))"
    number = subprocess.run(  # noqa: S603 - of our own environment
        [str(python), "-c", find], capture_output=True, text=True, check=True
    ).stdout.strip()
    how = (
        f"LiteLLM {number}. The same chats in OpenAI's protocol over a pool of three keys, in "
        f"turns, {ROUNDS} times: {CHATS} over one connection, which show what a chat takes, then "
        f"{CHATS} over each of {AT_ONCE} connections at once, which show the rate. CPU and memory "
        "are those of the proxy. Each is one process with its defaults; the client and the "
        "provider are on the same machine."
    )
    head = ("who", "CPU of a chat", "a chat takes", "chats/s", "memory")
    return f"## Proxies\n\n{how}\n\n{table(head, _rows(python))}"


def _rows(python: Path) -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        origin = f"http://{host_of_provider(stack)}"
        env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        servers = {
            "a proxy of ten lines": Program(stack, sys.executable, "-c", PROXY, origin),
            "`keyrot serve`": Program(
                stack,
                *SERVE,
                prefix="/openai",
                **env,
                OPENAI_API_KEYS=",".join(KEYS),
                KEYROT_ALLOWED_HOSTS=f"openai={origin}",
                KEYROT_STATE_URL="memory://",
            ),
            "LiteLLM's proxy": litellm(stack, python, folder, origin),
        }
        rounds = [[_turn(server) for server in servers.values()] for _ in range(1 + ROUNDS)]
        rows: list[Row] = []
        for at, (name, server) in enumerate(servers.items()):
            turns = [round_[at] for round_ in rounds[1:]]  # the first warms up
            cpu, alone, rate = (median(values) for values in zip(*turns, strict=True))
            memory = f"{peak_mb(server.pid)} MB"
            rows.append((name, f"{cpu:.2f} ms", f"{alone:.1f} ms", f"{rate:.0f}", memory))
        return rows


def _turn(server: Program) -> tuple[float, float, float]:
    """Return the CPU time of a chat and what one takes, in milliseconds, and chats per second."""
    before = server.cpu_ms()
    alone = median(_chat(server))
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(_chat, [server] * AT_ONCE))
    rate = AT_ONCE * CHATS / (time.perf_counter() - begun)
    time.sleep(REST_S)
    return (server.cpu_ms() - before) / (CHATS * (1 + AT_ONCE)), alone, rate


def _chat(server: Program) -> list[float]:
    """Send chats over one connection; return the milliseconds of each."""
    to, taken = HTTPConnection("127.0.0.1", server.port, timeout=60), list[float]()
    for _ in range(CHATS):
        begun = time.perf_counter()
        to.request("POST", f"{server.prefix}/v1/chat/completions", CHAT, HEADERS)
        reply = to.getresponse()
        body = reply.read()
        taken.append((time.perf_counter() - begun) * 1e3)
        if reply.status != 200 or b"xxx" not in body:
            raise RuntimeError(f"a chat was answered with {reply.status}: {body[:500]!r}")
    to.close()
    return taken
