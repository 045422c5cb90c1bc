"""Count the machine instructions of a warm call and of a decision, by valgrind's callgrind.

    python -m benchmarks.decision

Of the main thread alone: what runs by the clock in threads behind it would be counted fifty times
too often, since a program under valgrind is so much slower. No other load moves the counts: two
runs differ by 0.1 %. It needs valgrind, and takes minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from support.servers import Server

from .page import Row
from .server import server

__all__ = ["rows"]

_FEW, _MANY = 60, 160
_CALLS = """
import sys
from google import genai
from google.genai import types
url, host, key, pooled, count = sys.argv[1:]
if pooled == "pool":
    import keyrot_middleware
    keyrot_middleware.install(keys=[key], allowed_hosts=[host], secrets_ttl_s=0)
client = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))
for _ in range(int(count)):
    client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi")
"""
_PAIRS = """
import sys
from support.work import pairs
url, count = sys.argv[1:]
with pairs(url) as pair:
    for _ in range(int(count)):
        pair()
"""
_BARE = """
import sys, redis
url, count = sys.argv[1:]
with redis.Redis.from_url(url) as client:
    script = client.script_load("return 1")
    for _ in range(2 * int(count)):
        client.evalsha(script, 1, "k", "a")
"""


def rows(redis: Server) -> list[Row]:
    """Count the instructions of a call, and of an acquire and settle in the shared states."""
    call = "instructions of a call"
    pair = "instructions of acquire and settle, 8 keys without limits"
    if shutil.which("valgrind") is None:
        return [(what, "–", "not measured: no valgrind") for what in (call, pair)]
    with TemporaryDirectory(prefix="keyrot-bench-") as folder, server(1) as place:
        address = place.url, place.host, place.values[0]
        programs = {
            "plain": (_CALLS, *address, "plain"),
            "pool": (_CALLS, *address, "pool"),
            "redis": (_PAIRS, redis.strict_url),
            "bare": (_BARE, redis.strict_url),
            "file": (_PAIRS, f"sqlite://{folder}/state.sqlite3"),
        }
        with ThreadPoolExecutor(2) as threads:
            counts = threads.map(lambda program: _each(*program), programs.values())
            found = dict(zip(programs, counts, strict=True))
    plain, pool, both = found["plain"], found["pool"], f"{found['redis'] / found['bare']:.2f}"
    return [
        (call, "≤ + 11 %", f"{plain:,.0f}, with a pool + {pool / plain - 1:.1%}"),
        (f"{pair}, in a file", "≤ 900,000", f"{found['file']:,.0f}"),
        (
            f"{pair}, in Redis",
            "≤ 330,000",
            f"{found['redis']:,.0f}, {both} × two bare EVALSHA",
        ),
    ]


def _each(program: str, *arguments: str) -> float:
    """Return the instructions of one more call of a program whose last argument says how many."""
    few, many = (_counted(program, *arguments, str(calls)) for calls in (_FEW, _MANY))
    return (many - few) / (_MANY - _FEW)


def _counted(program: str, *arguments: str) -> int:
    with TemporaryDirectory(prefix="keyrot-bench-") as folder:
        out = Path(folder) / "out"
        tool = ["valgrind", "--tool=callgrind", "--separate-threads=yes"]
        tool += [f"--callgrind-out-file={out}", sys.executable, "-c", program]
        subprocess.run([*tool, *arguments], capture_output=True, check=True)  # noqa: S603 - ours
        main_thread = Path(f"{out}-01").read_text()
        return sum(map(int, re.findall(r"^totals: (\d+)", main_thread, re.MULTILINE)))
