"""Count the machine instructions of a warm call, plain and with a pool, by valgrind's callgrind.

    python -m benchmarks.instructions

No other load moves the count: two runs differ by 0.1 %. It needs valgrind, and takes minutes: the
program runs fifty times slower, four times.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from .page import Row
from .server import Place, server

_FEW, _MANY = 60, 160
_PROGRAM = """
import sys
from google import genai
from google.genai import types
url, host, key, pooled, count = sys.argv[1:]
if pooled == "pool":
    import keyrot_middleware
    keyrot_middleware.install(keys=[key], allowed_hosts=[host], secrets_ttl_s=0)
client = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))
for _ in range(int(count)):
    client.models.generate_content(model="gemini-2.5-flash", contents="hi")
"""


def counted(place: Place, how: str, calls: int) -> int:
    """Return the instructions of a program that makes so many calls."""
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    arguments = [place.url, place.host, place.values[0], how, str(calls)]
    ran = subprocess.run(  # noqa: S603 - our own program
        [*tool, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    assert found is not None, ran.stderr[-500:]
    return int(found[1])


def row() -> Row:
    """Return what a pool adds to the instructions of a call."""
    if shutil.which("valgrind") is None:
        return ("instructions of a call", "≤ + 11 %", "not measured: no valgrind")
    with server(1) as place, ThreadPoolExecutor(2) as threads:
        runs = [(how, calls) for how in ("plain", "pool") for calls in (_FEW, _MANY)]
        found = dict(zip(runs, threads.map(lambda run: counted(place, *run), runs), strict=True))
    plain, pool = (found[how, _MANY] - found[how, _FEW] for how in ("plain", "pool"))
    text = f"{plain / (_MANY - _FEW):,.0f}, with a pool + {pool / plain - 1:.1%}"
    return ("instructions of a call", "≤ + 11 %", text)


if __name__ == "__main__":
    print(row())
