"""A limit of 20, four processes, thirty calls each: how many requests the service sees."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

from .calls import MODEL
from .crew import answer, crew

__all__ = ["CALLS", "LIMIT", "PROCESSES", "RUNS", "sent_of_limit"]

LIMIT, PROCESSES, CALLS, RUNS = 20, 4, 30, 10
FROM_S, UNTIL_S = 2, 50
"""A run begins in these seconds of a minute, so that it ends in the same minute."""

Run = tuple[int, Counter[str]]
"""The requests that the service got, and the results of the calls."""


def sent_of_limit(state_url: str) -> list[Run]:
    """Return what each of ten runs sent; the service itself enforces no limit.

    A run that crosses the end of a minute is invalid, and is repeated.
    """
    runs: list[Run] = []
    with FakeGemini() as gemini, _workers(gemini, state_url) as pipes:
        for number in range(2 * RUNS):
            _await_minute()
            minute = time.time() // 60
            run = _run(gemini, pipes, f"limit-{number}")
            if time.time() // 60 == minute:
                runs.append(run)
            if len(runs) == RUNS:
                break
    return runs


def _run(gemini: FakeGemini, pipes: list[Connection], pool: str) -> Run:
    gemini.reset_log()
    for step in (pool, "go"):  # all have installed the pool before any of them calls
        for pipe in pipes:
            pipe.send(step)
        answers: list[Counter[str]] = [answer(pipe) for pipe in pipes]
    return gemini.count(), sum(answers, Counter[str]())


def _await_minute() -> None:
    while not FROM_S <= time.time() % 60 < UNTIL_S:
        time.sleep(0.2)


@contextmanager
def _workers(gemini: FakeGemini, state_url: str) -> Iterator[list[Connection]]:
    value = gemini.add_key("shared").value
    with tempfile.TemporaryDirectory(prefix="keyrot-bench-") as directory:
        file = Path(directory) / "keys.json"
        file.write_text(json.dumps([{"key_id": "SHARED", "rpm": LIMIT}]))
        settings = {"keys_file": file, "state_url": state_url, "allowed_hosts": (gemini.host,)}
        with crew(PROCESSES, _work, gemini.url, value, {**settings, "max_wait_s": 0}) as pipes:
            yield pipes


def _work(pipe: Connection, url: str, value: str, settings: dict[str, Any]) -> None:
    from google import genai  # noqa: PLC0415 - as a user's program has it

    os.environ["GEMINI_KEY_SHARED"] = value
    client = genai.Client(api_key=keyrot_middleware.POOL_KEY, http_options={"base_url": url})
    while True:
        try:
            pool = pipe.recv()
        except EOFError:  # the benchmark is done, or its process is gone
            return
        keyrot_middleware.install(pool=pool, **settings)
        pipe.send(Counter[str]())
        pipe.recv()
        results = Counter(_call(client) for _ in range(CALLS))
        keyrot_middleware.uninstall()
        pipe.send(results)


def _call(client: Any) -> str:
    """Make one call; return its result as a word."""
    try:
        client.models.generate_content(model=MODEL, contents="hi")
    except keyrot_middleware.KeyPoolExhausted:
        result = "refused"
    except Exception as error:
        return f"failed with {type(error).__name__}"
    else:
        result = "served"
    lost = keyrot_middleware.status()["degraded"]
    return f"{result} without Redis" if lost else result
