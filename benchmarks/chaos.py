"""Servers that fail under 64 callers: `make chaos` writes CHAOS.md.

Two processes make calls with the SDK, by threads and by tasks, against a loopback service, over one
pool in a real Valkey or Redis, which fails in one of many ways. A bar does not hold where a call
failed, or was delayed for too long, or where limits are not shared again in time. What is counted
around an outage is advice (ADR 0010): it is not compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from keyrot_middleware.state.redis import TIMEOUT_S
from keyrot_middleware.state.sqlite import WAIT_S
from keyrot_middleware.testing import FakeGemini

from .chaos_faults import ENGINES, FAULTS, FILE_FAULTS, Fault
from .chaos_worker import CALLERS, FIRST, PROCESSES, THEN, WorkerReport, request_report, workers
from .page import Row, page

__all__ = ["Measured", "main", "measure"]

CALM_S, WHOLE_S = 6.0, 30.0
SHARED_AGAIN_S = 5.0
FILE = "file"
LIMIT = 1_000
"""Requests a day with the first key: exhausted after about 16 s, before the last faults end."""


class Measured(NamedTuple):
    """The measurements of half a minute with a fault."""

    calls: int
    failures: list[str]
    longest_s: float
    """The longest call since the fault began."""
    calm_s: float
    """The longest call before it."""
    late_s: float
    """How late the machine woke a sleeping thread meanwhile, at most."""
    is_outage: bool
    alone: int
    """Processes that used in-process limits during the fault, or afterwards."""
    shared_again_s: float
    """From when the server was available again until both processes used it."""
    sent: int
    """Requests with the limited key."""
    most_delay_s: float

    def wrong(self) -> list[str]:
        """List the bars that do not hold."""
        delay_s = self.longest_s - max(self.calm_s, self.late_s)
        return [
            text
            for text, holds in (
                (f"{len(self.failures)} calls failed: {self.failures[:1]}", not self.failures),
                (
                    f"only {self.alone} processes noticed",
                    not self.is_outage or self.alone == PROCESSES,
                ),
                (f"a call was delayed by {delay_s:.2f} s", delay_s <= self.most_delay_s),
                ("it was not shared again in time", self.shared_again_s <= SHARED_AGAIN_S),
            )
            if not holds
        ]


def measure(failing: Callable[[], AbstractContextManager[Fault]]) -> Measured:
    """Call for half a minute, with a fault in it."""
    with FakeGemini() as gemini, failing() as fault:
        values = {name: gemini.add_key(name, tier="paid").value for name in (FIRST, THEN)}
        with workers(gemini.url, values, fault.url, fault.pool, LIMIT) as pipes:
            _begin(pipes, gemini)
            begun = time.monotonic()
            time.sleep(CALM_S)
            calm = _reports(pipes)
            fault.begin()
            alone, disturbed = _watch(pipes, fault.lasts_s)
            fault.end()
            took_s, after = _until_shared(pipes)
            later, rest = _watch(pipes, begun + WHOLE_S - time.monotonic())
            disturbed += after + rest
        return Measured(
            calls=sum(report.calls for report in calm + disturbed),
            failures=[text for report in calm + disturbed for text in report.failures],
            longest_s=max(report.longest_s for report in disturbed),
            calm_s=max(report.longest_s for report in calm),
            late_s=max(report.late_s for report in disturbed),
            is_outage=fault.is_outage,
            alone=max(alone, later),
            shared_again_s=took_s,
            sent=gemini.count(FIRST),
            most_delay_s=fault.most_delay_s,
        )


def _begin(pipes: list[Connection], gemini: FakeGemini) -> None:
    """Wait until all call; the first calls open connections, and are not measured."""
    until = time.monotonic() + 60
    while gemini.count() < 3 * PROCESSES * CALLERS:
        if time.monotonic() > until:
            raise RuntimeError("the workers do not call")
        time.sleep(0.1)
    _reports(pipes)


def _reports(pipes: list[Connection]) -> list[WorkerReport]:
    return [request_report(pipe) for pipe in pipes]


def _watch(pipes: list[Connection], seconds: float) -> tuple[int, list[WorkerReport]]:
    """Count how many processes use in-process limits at any time of the next seconds."""
    until, seen, alone = time.monotonic() + seconds, list[WorkerReport](), set[int]()
    while not seen or time.monotonic() < until:
        now = _reports(pipes)
        seen += now
        alone |= {number for number, report in enumerate(now) if report.degraded}
        time.sleep(0.1)
    return len(alone), seen


def _until_shared(pipes: list[Connection]) -> tuple[float, list[WorkerReport]]:
    begun, seen = time.monotonic(), list[WorkerReport]()
    while (waited_s := time.monotonic() - begun) < 2 * SHARED_AGAIN_S:
        now = _reports(pipes)
        seen += now
        if not any(report.degraded for report in now):
            break
        time.sleep(0.05)
    return waited_s, seen


def _row(what: str, engine: str, measured: Measured) -> Row:
    wrong = measured.wrong()
    return (
        what,
        engine,
        f"{measured.calls:,}",
        str(len(measured.failures)),
        f"{measured.longest_s:.2f} s",
        f"{max(measured.calm_s, measured.late_s):.2f} s",
        f"{measured.alone} of {PROCESSES}",
        f"{measured.shared_again_s:.1f} s",
        f"{measured.sent:,} of {LIMIT:,}",
        "; ".join(wrong) or "holds",
    )


def main() -> int:
    """Write the table; return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="faults whose name has this text; writes no page"
    )
    parser.add_argument(
        "--engine", choices=[*ENGINES, FILE], help="one of the servers, or the file; writes no page"
    )
    arguments = parser.parse_args()
    engines = [arguments.engine] if arguments.engine else [*ENGINES, FILE]
    rows, wrong = [], 0
    for engine in engines:
        for what, failing in (FILE_FAULTS if engine == FILE else FAULTS).items():
            if arguments.only in what:
                measured = measure(lambda failing=failing, engine=engine: failing(engine))
                wrong += len(measured.wrong())
                rows.append(_row(what, engine, measured))
                print(" | ".join(rows[-1]), flush=True)
    how = (
        f"{2 * PROCESSES * CALLERS} callers in {PROCESSES} processes (as many threads as tasks) "
        f"call with the SDK for {WHOLE_S:.0f} s; after {CALM_S:.0f} s a real server on loopback, "
        "or a file of SQLite, fails. `longest` is the slowest call from then on; `machine` the "
        "slowest before, or how late the machine woke a sleeping thread meanwhile (bar: longest "
        "at most "
        f"{2 * TIMEOUT_S + 1} s more, twice `socket_timeout` and a second; with a file "
        f"{2 * WAIT_S:.0f} s). "
        "`alone` are processes that "
        "used in-process limits. `shared again` counts from when a server could serve (bar: "
        f"{SHARED_AGAIN_S:.0f} s). `sent` is with a key whose limit is exhausted meanwhile; what "
        "is used in an outage is not added afterwards."
    )
    columns = "fault, server, calls, failed, longest, machine, alone, shared again, sent, verdict"
    if not arguments.only and not arguments.engine:
        text = page("Chaos", "make chaos", how, columns.split(", "), rows)
        (Path(__file__).parent / "CHAOS.md").write_text(text)
        print(text)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
