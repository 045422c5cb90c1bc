"""A FakeGemini in a process of its own, so that its work is not counted as the client's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from keyrot_middleware.testing import FakeGemini


class Place(NamedTuple):
    """Where the server is, and the values of the keys that it accepts."""

    url: str
    host: str
    values: list[str]


def _serve(keys: int, pipe: Connection) -> None:
    with FakeGemini(keep_log=10) as gemini:
        values = [gemini.add_key(f"key-{number}").value for number in range(keys)]
        pipe.send(Place(gemini.url, gemini.host, values))
        pipe.recv()  # until the benchmark is done, or its process is gone


@contextmanager
def server(keys: int) -> Iterator[Place]:
    """Run a server with *keys* keys."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process: Any = context.Process(target=_serve, args=(keys, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(10)
