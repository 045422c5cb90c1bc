"""Which share of the possible requests a pool gets served, counting clock minutes.

`make goodput` runs it twice: callers, pool and service in simulated time
(tests/support/simulation.py), and for three real minutes the unchanged SDK in threads, over
a pool in memory, against FakeGemini.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from support.simulation import TOKENS, Goodput, possible, simulate

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini
from keyrot_middleware.testing.keys import Limits

from .calls import MODEL
from .crew import crew
from .page import Row, page

__all__ = ["main"]

KEYS, CALLERS, SECONDS = 5, 8, 180.0
LATENCY_S = 0.3
BEGIN_S = (10.0, 45.0)
"""A real run begins between these seconds of a minute: not where two minutes meet."""
LIMITS = {"10 requests": Limits(rpm=10), "3,000 tokens": Limits(tpm=3_000)}
BAR = 1.0
BUSY = 0.95
"""In real time, on a machine that does other things too."""


class Case(NamedTuple):
    """The parameters of a measurement."""

    limit: str
    known: bool

    def row(self, kind: str, found: Goodput, bar: float) -> Row:
        """Format the row.

        Raises:
            AssertionError: A call failed, or too little was served.
        """
        assert found.failed == 0, (kind, self, found)
        assert found.share >= bar, (kind, self, found)
        assert not self.known or not any(found.refused.values()), found
        refused = [found.refused.get(f"key_{n}", 0) for n in range(KEYS)]
        return (
            kind,
            f"{self.limit} a minute, {'configured' if self.known else 'learned'}",
            str(found.possible),
            str(found.served),
            f"{found.share:.1%} (≥ {bar:.0%})",
            f"{sum(refused) / KEYS:.1f}, at most {max(refused)}",
            str(found.failed),
            f"{found.longest_s:.0f} s",
        )


CASES = [Case(limit, known) for limit, known in product(LIMITS, (True, False))]


def simulated() -> list[Row]:
    """Run all cases in simulated time, beginning at :40."""
    return [
        case.row(
            "simulated",
            simulate(
                LIMITS[case.limit],
                known=case.known,
                keys=KEYS,
                callers=CALLERS,
                start_s=10.0,
                seconds=SECONDS,
            ),
            BAR,
        )
        for case in CASES
    ]


def real() -> list[Row]:
    """Run all cases at once, each in a process of its own, for three minutes."""
    with crew(len(CASES), _work) as pipes:
        for pipe in pipes:
            _expect(pipe)
        while not BEGIN_S[0] <= time.time() % 60 <= BEGIN_S[1]:
            time.sleep(0.2)
        for case, pipe in zip(CASES, pipes, strict=True):
            pipe.send(tuple(case))
        return [
            case.row("real time", Goodput(*_expect(pipe)), BUSY)
            for case, pipe in zip(CASES, pipes, strict=True)
        ]


def _expect(pipe: Connection) -> Any:
    if not pipe.poll(SECONDS + 150):
        raise RuntimeError("a worker does not answer")
    return pipe.recv()


def _work(pipe: Connection) -> None:
    from google import genai  # noqa: PLC0415 - as a user's program has it

    pipe.send("ready")
    try:
        case = Case(*pipe.recv())
    except EOFError:  # the benchmark is done, or its process is gone
        return
    limits = LIMITS[case.limit]
    with tempfile.TemporaryDirectory() as directory, FakeGemini() as gemini:
        gemini.tokens(lambda _body: TOKENS)
        gemini.delay(LATENCY_S)
        ids = [f"key_{number}" for number in range(KEYS)]
        for key_id in ids:
            key = gemini.add_key(key_id, rpm=limits.rpm, tpm=limits.tpm)
            os.environ[f"GEMINI_KEY_{key_id}"] = key.value
        configured = {"rpm": limits.rpm, "tpm": limits.tpm} if case.known else {}
        file = Path(directory) / "keys.json"
        file.write_text(json.dumps([{"key_id": key_id, **configured} for key_id in ids]))
        keyrot_middleware.install(
            keys_file=file, allowed_hosts=(f"http://{gemini.host}",), state_url="memory://"
        )
        client = genai.Client(api_key=keyrot_middleware.POOL_KEY, http_options=gemini.http_options)
        pipe.send(tuple(_measure(client, gemini, limits, ids)))
        keyrot_middleware.uninstall()


def _measure(client: Any, gemini: FakeGemini, limits: Limits, ids: list[str]) -> Goodput:
    begun = time.time()
    failures: list[str] = []
    longest: list[float] = []
    text = "a" * 4 * TOKENS

    def caller() -> None:
        while (started := time.time()) < begun + SECONDS:
            try:
                client.models.generate_content(model=MODEL, contents=text)
            except Exception as error:
                failures.append(type(error).__name__)
            longest.append(time.time() - started)

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 120)
    log = [entry for entry in gemini.log if entry.at < begun + SECONDS]
    refused = Counter(entry.key for entry in log if entry.status == 429)
    return Goodput(
        KEYS * possible(limits, begun, SECONDS),
        sum(entry.status == 200 for entry in log),
        {key_id: refused[key_id] for key_id in ids},
        len(failures),
        max(longest, default=0.0),
    )


def main() -> int:
    """Run all, print and write the page."""
    head = (
        "run",
        "limit of each key",
        "possible",
        "served",
        "of what is possible",
        "429s per key",
        "failed calls",
        "longest call",
    )
    how = (
        f"{CALLERS} callers without pause for three minutes over {KEYS} keys; the pool "
        "counts clock minutes. `possible` is what a caller that knows the limits "
        "gets served, the start of the first window included."
    )
    text = page("Goodput", "make goodput", how, head, simulated() + real())
    print(text)
    Path(__file__).with_name("GOODPUT.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
