"""Count the bytecodes of ours that a warm call runs, and one more event of a stream.

    python -m benchmarks.call_path [-v | --json]

Beside them the calls of our functions, the functions, their files, and the changes from one file to
another. It counts in the thread of the caller, with a loopback server in a process of its own and
the state in memory. No clock and no other load moves the counts: the server sends an event when the
one before it has been read. They differ by version of Python and of the libraries. With `-v` it
lists the bytecodes of each function.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import aiohttp
import httpx
import requests
from google import genai

import keyrot_middleware

from .page import Row, table

__all__ = ["BARS", "PYTHON", "ROOM", "Bar", "as_table", "measured", "rows"]


class Bar(NamedTuple):
    """What was measured when it was set, of which `ROOM` is the most that is allowed."""

    bytecodes: float
    changes: float
    """Of file, from one function of ours to the next."""


PYTHON = (3, 11)
"""The version of the bytecodes."""
ROOM = 1.02
"""The most over a bar. The drawn key and the turn of a window make a call up to 2 % longer, so the
least of some runs counts: two such counts differ by 0.5 %."""
BARS = {
    "a call, google-genai": Bar(6_300, 131),
    "a call, google-genai async": Bar(6_500, 160),
    "a call, httpx": Bar(5_950, 125),
    "a call, requests": Bar(5_730, 126),
    "a call, aiohttp": Bar(6_020, 148),
    "an event of Gemini, httpx": Bar(291, 11),
    "an event of Gemini, httpx async": Bar(299, 15),
    "an event of Gemini, requests": Bar(341, 11),
    "an event of Gemini, aiohttp": Bar(303, 15),
    "an event of OpenAI's chat, httpx": Bar(345, 11.2),
    "an event of OpenAI's chat, httpx async": Bar(353, 15.2),
    "an event of OpenAI's chat, requests": Bar(395, 11.2),
    "an event of OpenAI's chat, aiohttp": Bar(357, 15.2),
}

WARM_CALLS = 8
RUNS_OF_A_CALL, RUNS_OF_A_STREAM = 12, 3
FEW, MANY = 10, 110
"""Events of two streams, whose difference is counted."""
KEYS = 8
_ROOT = str(Path(keyrot_middleware.__file__).parent) + os.sep

# The server -------------------------------------------------------------------------------------

_WORDS = ("One", " more", " word", ",", " and", " another", " one", '"', ".", "\n")
_USAGE = {"promptTokenCount": 3, "totalTokenCount": 9}


def _gemini_event(place: int, *, is_last: bool) -> str:
    end = {"finishReason": "STOP"} if is_last else {}
    content = {"parts": [{"text": _WORDS[place % 10]}], "role": "model"}
    body = {
        "candidates": [{"content": content, **end, "index": 0}],
        "usageMetadata": {**_USAGE, "candidatesTokenCount": place + 1},
        "modelVersion": "gemini-3.1-flash-lite",
        "responseId": "a1",
    }
    return f"data: {json.dumps(body)}\r\n\r\n"


def _chat_event(place: int, *, is_last: bool) -> str:
    delta = {"content": _WORDS[place % 10]}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if is_last else None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
    body = {**head, "choices": [choice], "usage": None, "obfuscation": "aB3xYz"[place % 6 :]}
    end = "data: [DONE]\n\n" if is_last else ""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n{end}"


def _handler(read: Connection) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            event = _chat_event if "/chat/" in self.path else _gemini_event
            count = int(self.headers.get("x-events", 0))
            self.send_response(200)
            if not count:
                content = _gemini_event(0, is_last=True).removeprefix("data: ").encode()
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for place in range(count):
                data = event(place, is_last=place == count - 1).encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                read.recv()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _serve(pipe: Connection, read: Connection) -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(read)) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    pipe.send([f"http://127.0.0.1:{server.server_port}" for server in servers])


class Place(NamedTuple):
    """The server: its address for each provider, and how it hears that an event has been read."""

    gemini: str
    openai: str
    read: Connection

    def taken(self, data: bytes) -> None:
        """Let the server go on behind the events in *data*."""
        for _ in range(data.count(b"data: {")):
            self.read.send(None)


@contextmanager
def _server() -> Iterator[Place]:
    context = multiprocessing.get_context("spawn")
    (ours, theirs), (read, send) = context.Pipe(), context.Pipe(duplex=False)
    process: Any = context.Process(target=_serve, args=(theirs, read), daemon=True)
    process.start()
    try:
        yield Place(*ours.recv(), send)
    finally:
        process.terminate()
        process.join(10)


# Counting ---------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """What of ours ran, by function."""

    bytecodes: Counter[CodeType]
    calls: Counter[CodeType]
    changes: int

    def figures(self, over: Counts | None = None, times: int = 1) -> dict[str, float]:
        """Return the sums; what is more than in *over*, for each of so many *times*."""
        bytecodes, calls, changes = self.bytecodes.copy(), self.calls.copy(), self.changes
        if over is not None:
            bytecodes -= over.bytecodes
            calls -= over.calls
            changes -= over.changes
        return {
            "bytecodes": bytecodes.total() / times,
            "calls": calls.total() / times,
            "functions": sum(1 for count in calls.values() if count >= times / 2),
            "files": len({c.co_filename for c, count in calls.items() if count >= times / 2}),
            "changes": changes / times,
        }

    def by_function(self, over: Counts | None = None, times: int = 1) -> Iterator[str]:
        """Yield a line for each function, the longest first."""
        bytecodes = self.bytecodes - (over.bytecodes if over is not None else Counter())
        for code, count in bytecodes.most_common():
            name = code.co_filename.removeprefix(_ROOT)
            yield f"{count / times:9.1f}  {name}:{code.co_firstlineno} {code.co_qualname}"


def _counted(work: Callable[[], object], runs: int) -> Counts:
    """Return what a warm *work* runs of ours, the least of so many *runs*."""
    for _ in range(WARM_CALLS):
        work()
    return min((_traced(work) for _ in range(runs)), key=lambda counts: counts.bytecodes.total())


def _traced(work: Callable[[], object]) -> Counts:
    bytecodes, calls, files = Counter[CodeType](), Counter[CodeType](), [""]

    def trace(frame: Any, event: str, _: object) -> Any:
        code = frame.f_code
        if event == "opcode":
            bytecodes[code] += 1
        elif event == "call":
            if not code.co_filename.startswith(_ROOT):
                return None
            calls[code] += 1
            if code.co_filename != files[-1]:
                files.append(code.co_filename)
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return Counts(bytecodes, calls, len(files) - 2)


# What is counted --------------------------------------------------------------------------------

Calls = dict[str, Callable[[], object]]
Streams = dict[str, Callable[[int], object]]
_MODEL, _PROMPT = "gemini-3.1-flash-lite", "hi"
_BODY = {"contents": [{"role": "user", "parts": [{"text": _PROMPT}]}]}
_CHAT = {"model": "gpt-5", "stream": True, "messages": [{"role": "user", "content": _PROMPT}]}


class Clients:
    """One client of each library, without a key of its own."""

    def __init__(self, place: Place, runner: asyncio.Runner) -> None:
        """Make them; *runner* runs what is async."""
        self._place, self._runner = place, runner
        self._genai = genai.Client(http_options={"base_url": place.gemini})
        self._httpx, self._requests = httpx.Client(), requests.Session()
        self._async_httpx = httpx.AsyncClient()
        self._aiohttp: aiohttp.ClientSession = runner.run(_session())

    def close(self) -> None:
        """Close the async ones; the others go with the process."""
        self._runner.run(self._async_httpx.aclose())
        self._runner.run(self._aiohttp.close())

    def calls(self) -> Calls:
        """Return a call of Gemini by each library."""
        url = f"{self._place.gemini}/v1beta/models/{_MODEL}:generateContent"
        headers = {"x-goog-api-key": keyrot_middleware.POOL_KEY}
        options: Any = {"json": _BODY, "headers": headers}
        models, aio = self._genai.models, self._genai.aio.models
        run = self._runner.run

        async def by_aiohttp() -> None:
            async with self._aiohttp.post(url, **options) as response:
                await response.read()

        return {
            "google-genai": lambda: models.generate_content(model=_MODEL, contents=_PROMPT),
            "google-genai async": lambda: run(aio.generate_content(model=_MODEL, contents=_PROMPT)),
            "httpx": lambda: self._httpx.post(url, **options),
            "requests": lambda: self._requests.post(url, **options),
            "aiohttp": lambda: run(by_aiohttp()),
        }

    def streams(self, url: str, body: object, headers: dict[str, str]) -> Streams:
        """Return what reads a stream of so many events, by each library."""
        taken, run = self._place.taken, self._runner.run

        def options(count: int) -> Any:
            return {"json": body, "headers": {**headers, "x-events": str(count)}}

        def by_httpx(count: int) -> None:
            with self._httpx.stream("POST", url, **options(count)) as response:
                for data in response.iter_raw():
                    taken(data)

        async def by_async_httpx(count: int) -> None:
            async with self._async_httpx.stream("POST", url, **options(count)) as response:
                async for data in response.aiter_raw():
                    taken(data)

        def by_requests(count: int) -> None:
            with self._requests.post(url, stream=True, **options(count)) as response:
                for data in response.iter_content(None):
                    taken(data)

        async def by_aiohttp(count: int) -> None:
            async with self._aiohttp.post(url, **options(count)) as response:
                async for data in response.content.iter_any():
                    taken(data)

        return {
            "httpx": by_httpx,
            "httpx async": lambda count: run(by_async_httpx(count)),
            "requests": by_requests,
            "aiohttp": lambda count: run(by_aiohttp(count)),
        }


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


def _all_counts(place: Place, clients: Clients) -> Iterator[tuple[str, Counts, Counts | None]]:
    """Yield each name with its counts, and those of fewer events."""
    for name, call in clients.calls().items():
        yield f"a call, {name}", _counted(call, RUNS_OF_A_CALL), None
    key = keyrot_middleware.POOL_KEY
    gemini = f"{place.gemini}/v1beta/models/{_MODEL}:streamGenerateContent?alt=sse"
    chat, bearer = f"{place.openai}/v1/chat/completions", {"authorization": f"Bearer {key}"}
    kinds = {
        "Gemini": clients.streams(gemini, _BODY, {"x-goog-api-key": key}),
        "OpenAI's chat": clients.streams(chat, _CHAT, bearer),
    }
    for kind, streams in kinds.items():
        for name, read in streams.items():
            few, many = (
                _counted(lambda: read(count), RUNS_OF_A_STREAM)  # noqa: B023 - now
                for count in (FEW, MANY)
            )
            yield f"an event of {kind}, {name}", many, few


def _measure(*, verbose: bool) -> dict[str, dict[str, float]]:
    """Count all; `install()` must not have been called in this process."""
    for name in [*os.environ]:
        if name.startswith(("KEYROT_", "GEMINI_", "GOOGLE_", "OPENAI_")):
            del os.environ[name]
    found = {}
    with _server() as place, asyncio.Runner() as runner:
        os.environ["GEMINI_API_KEYS"] = ",".join(f"AIzaSyFAKE{n:029}" for n in range(KEYS))
        os.environ["OPENAI_API_KEYS"] = ",".join(f"sk-proj-FAKE{n:044}" for n in range(KEYS))
        hosts = [f"gemini={place.gemini}", f"openai={place.openai}"]
        keyrot_middleware.install(allowed_hosts=hosts, state_url="memory://")
        clients = Clients(place, runner)
        for name, counts, few in _all_counts(place, clients):
            over = (few, MANY - FEW) if few is not None else (None, 1)
            found[name] = counts.figures(*over)
            if verbose:
                print(name, *counts.by_function(*over), sep="\n")
        clients.close()
        keyrot_middleware.uninstall()
    return found


def measured() -> dict[str, dict[str, float]]:
    """Count in a process of its own: figures by their names, by the names of `BARS`."""
    command = [sys.executable, "-m", "benchmarks.call_path", "--json"]
    root = Path(__file__).parent.parent
    done = subprocess.run(  # noqa: S603 - ours
        command, cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def as_table(found: dict[str, dict[str, float]]) -> str:
    """Write the figures beside their bars."""
    lines = []
    for name, bar in BARS.items():
        figures = found[name]
        others = (f"{figures[kind]:,.4g}" for kind in ("calls", "functions", "files"))
        counts = (f"{bar.bytecodes:,}", f"{figures['bytecodes']:,.1f}")
        lines.append((name, *counts, *others, f"{bar.changes}", f"{figures['changes']:.2f}"))
    head = ("bar", "bytecodes", "calls", "functions", "files", "bar", "changes of file")
    return table(("what", *head), lines)


def rows() -> list[Row]:
    """Count for the table."""
    return [
        (f"bytecodes of ours, {name}", f"≤ {BARS[name].bytecodes:,}", f"{one['bytecodes']:,.0f}")
        for name, one in measured().items()
    ]


def main() -> None:
    """Count in this process, and print the figures."""
    found = _measure(verbose="-v" in sys.argv[1:])
    print(json.dumps(found) if "--json" in sys.argv[1:] else as_table(found))


if __name__ == "__main__":
    main()
