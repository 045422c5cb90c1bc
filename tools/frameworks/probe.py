"""Call one user program several times, and print what its user gets, a JSON line per call.

``keyrot run probe.py APP WAY CALLS`` loads the program unchanged; ``python probe.py APP WAY CALLS
--install`` calls install() before it, as a program may, and without the flag there is no pool.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def failure_of(error: BaseException) -> dict[str, Any]:
    """Describe an exception: its classes, its text, and those of its causes."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return {
        "classes": [[kind.__name__ for kind in type(each).__mro__] for each in causes],
        "texts": [str(each) for each in causes],
        "notes": [getattr(each, "__notes__", []) for each in causes],
    }


async def one_call(program: dict[str, Any], way: str) -> dict[str, Any]:
    """Call the program once; return answer or failure, the seconds, the runs of its tool."""
    before, start = len(program["tool_runs"]), time.perf_counter()
    try:
        found: Any = program[way]()
        result = {"answer": await found if inspect.isawaitable(found) else found}
    except Exception as error:  # whatever the framework raises is the result
        result = {"failure": failure_of(error)}
    seconds = time.perf_counter() - start
    return result | {"seconds": seconds, "tool_runs": len(program["tool_runs"]) - before}


def print_result(call: dict[str, Any]) -> None:
    """Print a call's line, marked, since frameworks print lines of their own."""
    print("PROBE", json.dumps(call), flush=True)


async def all_calls(program: dict[str, Any], way: str, calls: int) -> None:
    """Print one line for each call, in one event loop."""
    for _ in range(calls):
        print_result(await one_call(program, way))


def main(app: str, way: str, calls: str, *flags: str) -> None:
    """Load the program and call it; a sync way is called without a running event loop."""
    if "--install" in flags:
        import keyrot_middleware  # noqa: PLC0415 - not without a pool

        keyrot_middleware.install()
    program = runpy.run_path(str(Path(__file__).with_name(f"{app}_app.py")))
    if inspect.iscoroutinefunction(program[way]):
        asyncio.run(all_calls(program, way, int(calls)))
        return
    for _ in range(int(calls)):
        step = one_call(program, way)
        try:
            step.send(None)
        except StopIteration as done:
            print_result(done.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
