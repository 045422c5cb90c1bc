"""Processes that run a function over a pipe, and end when it is closed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["answer", "crew"]

ANSWER_S = 40.0
"""Timeout of an answer, on a busy machine."""


@contextmanager
def crew(number: int, work: Callable[..., None], *args: Any) -> Iterator[list[Connection]]:
    """Run *number* processes that do `work(pipe, *args)`; yield the other ends of the pipes."""
    context = multiprocessing.get_context("spawn")
    begun: list[tuple[Any, Connection]] = []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process: Any = context.Process(target=work, args=(theirs, *args), daemon=True)
            process.start()
            begun.append((process, ours))
        yield [pipe for _, pipe in begun]
    finally:
        for process, pipe in begun:
            pipe.close()
            process.join(ANSWER_S)


def answer(pipe: Connection) -> Any:
    """Wait for an answer.

    Raises:
        RuntimeError: There is none.
    """
    if not pipe.poll(ANSWER_S):
        raise RuntimeError(f"a worker did not answer within {ANSWER_S:.0f} s")
    return pipe.recv()
