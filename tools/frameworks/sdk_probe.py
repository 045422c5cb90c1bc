"""Call one program of sdk_programs.py in one way, and print a line: its answers, and the usage.

Started as ``keyrot run sdk_probe.py PROGRAM URL WAY``, in the environment of an SDK.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from typing import Any

import sdk_programs

from keyrot_middleware.core.activity import POOL, ActivityLog
from keyrot_middleware.runtime import current_pool

__all__ = ["CALLS", "MARK"]

CALLS = 20
MARK = "RESULT "


async def calls_of(way: Any) -> list[str]:
    """Return the answers of the calls, or what they raised; nothing suspends in a sync one."""
    found = list[str]()
    for _ in range(CALLS):
        try:
            answer = way()
            found.append(str(await answer if inspect.isawaitable(answer) else answer))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def run(way: Any) -> list[str]:
    """Call a way: an async one in one event loop, a sync one in none."""
    if inspect.iscoroutinefunction(way):
        return asyncio.run(calls_of(way))
    try:
        calls_of(way).send(None)
    except StopIteration as done:
        return list(done.value)
    raise AssertionError("a sync way suspended")


def main(name: str, url: str, place: str) -> None:
    """Make the calls of one way; print the answers and the usage."""
    answers, pool = run(getattr(sdk_programs, name)(url)[int(place)]), current_pool()
    assert pool is not None  # noqa: S101 - keyrot run has installed it
    pool.activity.send()
    log = ActivityLog(pool.state.activity, pool.state.activity_log, pool.activity.zone)
    today = log.view((), time.time()).today[POOL]
    booked = today.input_tokens, today.output_tokens, today.cost_usd, today.estimated_tokens
    print(MARK + json.dumps([answers, booked]))


if __name__ == "__main__":
    main(*sys.argv[1:])
