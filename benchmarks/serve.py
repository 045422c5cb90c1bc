"""`keyrot serve` beside a proxy of ten lines: `make bench-serve`, and a part of `make bench`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from .page import Row, table

__all__ = ["PROXY", "SERVE", "Program", "host_of_provider", "peak_mb", "rows"]

PROXY = """
import sys, httpx, uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
async def go(request):
    url = f"{sys.argv[1]}{request.url.path}?{request.url.query}"
    up = client.build_request("POST", url, content=await request.body())
    got = await client.send(up, stream=True)
    return StreamingResponse(got.aiter_raw(), got.status_code, got.headers)
app = Starlette(routes=[Route("/{path:path}", go, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[2]), http="h11", log_level="error", access_log=False)
"""
ROUNDS, CALLS, MB = 10, 60, 1 << 20
START_S = 240.0
"""LiteLLM's proxy takes half a minute, on a busy machine more."""
REPLY = b'{"candidates": [{"content": {"parts": [{"text": "%b"}]}}]}' % (b"x" * 200)
EVENT = b"data: %b\r\n\r\n" % REPLY
CALL, UPLOAD = "/v1beta/models/m:", "/upload/v1beta/files?upload_id=1"
STREAM = f"{CALL}streamGenerateContent?alt=sse&n="
CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 200},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 50, "total_tokens": 70},
    }
).encode()
SERVE = (sys.executable, "-m", "keyrot_middleware", "serve", "--port")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a provider: send a reply, or as many events as the address says, ten a second."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
            left = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
            while left:
                left -= len(await reader.read(min(left, MB)))
            events = int(head.split()[1].partition("&n=")[2] or 0)
            reply = CHAT if "/chat/completions" in head.split()[1] else REPLY
            kind, piece = ("text/event-stream", EVENT) if events else ("application/json", reply)
            size = len(piece) * max(events, 1)
            head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n"
            writer.write(head.encode() + piece)
            for _ in range(1, events):
                await asyncio.sleep(0.1)
                writer.write(piece)


class Program:
    """A server in a process of its own; its port is the last argument of its command.

    Attributes:
        port: Of this machine.
        pid: Of its process.
        prefix: What its addresses begin with.
    """

    def __init__(self, stack: ExitStack, *command: str, prefix: str = "", **env: str) -> None:
        """Start it, and end it with *stack*.

        Raises:
            RuntimeError: It ended, or does not listen.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command, env = (*command, str(self.port)), env or {**os.environ}
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        self.pid, self.prefix = process.pid, prefix
        end = time.monotonic() + START_S
        while not self._listens():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not start: {process.poll()}")
            time.sleep(0.1)

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def call(self, path: str, mb: int = 0, to: HTTPConnection | None = None) -> tuple[float, bool]:
        """Return the milliseconds to the first byte, and whether the reply is as it was sent."""
        to, began = to or HTTPConnection("127.0.0.1", self.port), time.perf_counter()
        body: Any = (bytes(MB) for _ in range(mb)) if mb else b"{}"
        headers = {"X-Goog-Upload-Command": "upload, finalize", "Content-Length": str(mb * MB or 2)}
        to.request("POST", self.prefix + path, body, headers)
        got = to.getresponse()
        first, millis = got.read(1), (time.perf_counter() - began) * 1e3
        return millis, first + got.read() == (EVENT * int(path.partition("&n=")[2] or 0) or REPLY)

    def turn(self) -> tuple[float, float]:
        """Return the milliseconds to the first byte of a stream, and of CPU time of a call."""
        to, before = HTTPConnection("127.0.0.1", self.port), self.cpu_ms()
        for _ in range(CALLS):
            self.call(f"{CALL}generateContent", to=to)
        used = (self.cpu_ms() - before) / CALLS
        return median(self.call(f"{STREAM}1", to=to)[0] for _ in range(CALLS)), used

    def cpu_ms(self) -> float:
        """Return the CPU time that its processes have used, by the clock ticks of the kernel."""
        ticks, pids = 0, [str(self.pid)]
        while pids:
            process = Path("/proc") / pids.pop()
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
            pids += (process / "task" / process.name / "children").read_text().split()
        return ticks * 1e3 / os.sysconf("SC_CLK_TCK")

    def at_once(self, calls: int, *call: Any) -> str:
        """Return how many calls at once were served, and the most memory there was so far."""
        with ThreadPoolExecutor(calls) as threads:
            served = sum(one[1] for one in threads.map(lambda _: self.call(*call), range(calls)))
        return f"{served} of {calls}, peak {peak_mb(self.pid)} MB"


def peak_mb(pid: int | str = "self") -> int:
    """Return the most memory that a process had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def host_of_provider(stack: ExitStack) -> str:
    """Start the provider; return its host and port."""
    return f"127.0.0.1:{Program(stack, sys.executable, '-m', 'benchmarks.serve').port}"


def rows() -> list[Row]:
    """Measure a proxy and two doors, in turns."""
    with ExitStack() as stack, TemporaryDirectory() as folder:
        host = host_of_provider(stack)
        env = {
            "PATH": os.environ["PATH"],
            "KEYROT_ALLOWED_HOSTS": host,
            "GEMINI_API_KEYS": "FAKE",
            "KEYROT_POOL": "bench",
        }
        proxy = Program(stack, sys.executable, "-c", PROXY, f"http://{host}")
        in_memory, in_file = "memory://", f"sqlite:///{folder}/state"
        door, shared = (
            Program(stack, *SERVE, prefix="/gemini", **env, KEYROT_STATE_URL=state)
            for state in (in_memory, in_file)
        )
        turns = [[one.turn() for one in (proxy, door, shared)] for _ in range(1 + ROUNDS)][1:]
        first, cpu = ([median(t[one][of] for t in turns) for one in range(3)] for of in (0, 1))
        added = " and ".join(f"{one - first[0]:.2f}" for one in first[1:])
        times = " and ".join(f"{one / cpu[0]:.2f}" for one in cpu[1:])
        streams = "; ".join(door.at_once(200, f"{STREAM}40") for _ in range(3))
        name = "`keyrot serve`, state in memory and in a file, over a proxy of ten lines, p50: "
        return [
            (f"{name}first byte", "≤ 0.4 and 0.8 ms", f"{added} ms (over {first[0]:.2f} ms)"),
            (f"{name}CPU time of a call", "≤ 1.2 and 1.6 ×", f"{times} × {cpu[0]:.2f} ms"),
            ("200 streams at once, their bytes as sent, three times", "memory flat", streams),
            ("50 uploads of 100 MB at once", "50, < 300 MB", door.at_once(50, UPLOAD, 100)),
            ("an upload of 2 GB", "it passes", door.at_once(1, UPLOAD, 2048)),
        ]


if __name__ == "__main__" and len(sys.argv) == 1:
    from . import crowd  # which needs this module

    print(os.getloadavg(), table(("what", "bar", "measured"), rows()), crowd.section(), sep="\n\n")
elif __name__ == "__main__":
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncio.start_server(_answer, port=int(sys.argv[1]), backlog=200)
    )
    loop.run_forever()
