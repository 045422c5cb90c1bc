"""`keyrot serve` with 1, 8 and 64 clients at once, by one worker and by two: `make bench-serve`.

A part of `make bench` too. Beside it, in turns: a proxy of ten lines, and LiteLLM's proxy if
`make bench-peers` has set up its environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from .page import Row, table
from .serve import PROXY, SERVE, Program, host_of_provider

__all__ = ["CHAT", "HEADERS", "KEYS", "REST_S", "ROOT", "litellm", "section"]

ROOT = Path(__file__).parents[1]
CLIENTS = {1: 60, 8: 20, 64: 5}
"""How many chats each of so many clients sends in a turn."""
ROUNDS = 6
REST_S = 0.2
"""LiteLLM logs a call in the background after it has returned."""
MODEL = "gpt-5-mini"
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Say hello." * 20}]})
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer FAKE"}
KEYS = [f"FAKE-{number}" for number in range(3)]


class Turn(NamedTuple):
    """What so many clients got from a server."""

    rate: float
    """Chats per second."""
    firsts: list[float]
    """Milliseconds to the first byte of each reply."""
    cpu: float
    """Milliseconds of CPU of a chat, in all processes of the server."""


def section() -> str:
    """Measure, and write what was done and the table."""
    how = (
        "Chats in OpenAI's protocol over a pool of three keys, each client over a connection of "
        f"its own, in turns, {ROUNDS} times. The first byte is that of the head of the reply. CPU "
        "is that of all processes of the server; those of the clients and of the provider are on "
        "the same cores, and what they take is in the row of the ten lines too. LiteLLM's is its "
        "proxy with its defaults"
    )
    with ExitStack() as stack:
        servers = _servers(stack)
        missing = "" if "LiteLLM" in servers else ", not measured: `make bench-peers` sets it up"
        head = ("who", "clients", "chats/s", "first byte, p50", "p99", "CPU of a chat")
        return f"## Clients at once\n\n{how}{missing}.\n\n{table(head, _rows(servers))}"


def _servers(stack: ExitStack) -> dict[str, Program]:
    folder = Path(stack.enter_context(TemporaryDirectory()))
    origin = f"http://{host_of_provider(stack)}"

    def door(name: str, state: str, *options: str) -> Program:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OPENAI_API_KEYS": ",".join(KEYS),
            "KEYROT_ALLOWED_HOSTS": f"openai={origin}",
            "KEYROT_POOL": name,
            "KEYROT_STATE_URL": state,
        }
        return Program(stack, *SERVE[:-1], *options, SERVE[-1], prefix="/openai", **env)

    servers = {
        "ten lines": Program(stack, sys.executable, "-c", PROXY, origin),
        "memory": door("memory", "memory://"),
        "file": door("one", f"sqlite://{folder}/one"),
        "file, 2 workers": door("two", f"sqlite://{folder}/two", "--workers", "2"),
    }
    python = ROOT / ".venv-bench-proxy" / "bin" / "python"
    if python.exists():
        servers["LiteLLM"] = litellm(stack, python, folder, origin)
    return servers


def litellm(stack: ExitStack, python: Path, folder: Path, origin: str) -> Program:
    """Start LiteLLM's proxy, with what it needs in *folder*."""
    to = {"model": f"openai/{MODEL}", "api_base": f"{origin}/v1"}
    models = [{"model_name": MODEL, "litellm_params": {**to, "api_key": key}} for key in KEYS]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models}))
    return Program(
        stack,
        *(str(python.with_name("litellm")), "--config", str(config)),
        *("--host", "127.0.0.1", "--num_workers", "1", "--port"),
        PATH=os.environ["PATH"],
        HOME=str(folder),
        DISABLE_ADMIN_UI="True",
        LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # otherwise it uses the internet
    )


def _rows(servers: dict[str, Program]) -> list[Row]:
    found: list[Row] = []
    for clients in CLIENTS:
        rounds = [[_turn(one, clients) for one in servers.values()] for _ in range(1 + ROUNDS)]
        for at, name in enumerate(servers):
            turns = [round_[at] for round_ in rounds[1:]]  # the first warms up
            firsts = sorted(first for turn in turns for first in turn.firsts)
            rate, cpu = median(one.rate for one in turns), median(one.cpu for one in turns)
            p50, p99 = (firsts[len(firsts) * of // 100] for of in (50, 99))
            row = f"{rate:.0f}", f"{p50:.2f} ms", f"{p99:.1f} ms", f"{cpu:.2f} ms"
            found.append((name, str(clients), *row))
    return found


def _turn(server: Program, clients: int) -> Turn:
    before, begun = server.cpu_ms(), time.perf_counter()
    firsts = asyncio.run(_crowd(server, clients))
    took = time.perf_counter() - begun
    time.sleep(REST_S)
    return Turn(len(firsts) / took, firsts, (server.cpu_ms() - before) / len(firsts))


async def _crowd(server: Program, clients: int) -> list[float]:
    each = await asyncio.gather(*(_client(server, CLIENTS[clients]) for _ in range(clients)))
    return [first for one in each for first in one]


async def _client(server: Program, chats: int) -> list[float]:
    """Send chats over one connection; return the milliseconds to the first byte of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = {"Host": f"127.0.0.1:{server.port}", **HEADERS, "Content-Length": str(len(CHAT))}
    lines = [f"POST {server.prefix}/v1/chat/completions HTTP/1.1", *map(": ".join, head.items())]
    request, taken = ("\r\n".join(lines) + "\r\n\r\n" + CHAT).encode(), list[float]()
    for _ in range(chats):
        begun = time.perf_counter()
        writer.write(request)
        reply = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        taken.append((time.perf_counter() - begun) * 1e3)
        size = int(reply.partition("content-length:")[2].partition("\r\n")[0])
        body = await reader.readexactly(size)
        if reply.split()[1] != "200" or b"xxx" not in body:
            raise RuntimeError(f"a chat was answered with {reply}{body[:500]!r}")
    writer.close()
    await writer.wait_closed()
    return taken


if __name__ == "__main__":
    print(os.getloadavg(), section(), sep="\n")
