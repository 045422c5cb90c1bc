"""Servers that fail under 64 callers for a minute each: `make chaos` writes CHAOS.md.

Two processes make calls with the SDK, by threads and by tasks, against a loopback service, over one
pool in a real Valkey. That is taken away for some seconds and brought back. It fails where a call
failed, or was delayed for too long, or where limits do not hold again in time: that is, where the
state does not know all that the service has seen, or more was sent with a key than its limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.state import State, open_shared
from keyrot_middleware.testing import FakeGemini

from .chaos_faults import FAULTS, Fault
from .chaos_worker import CALLERS, FIRST, POOL, PROCESSES, THEN, Report, request_report, workers
from .page import Row, page

__all__ = ["Measured", "main", "measure"]

CALM_S, AWAY_S, WHOLE_S = 10.0, 5.0, 60.0
SHARED_AGAIN_S, MOST_DELAY_S = 5.0, 0.5
LIMIT = 2_500
"""Requests a day with the first key: about two thirds of all calls."""


class Measured(NamedTuple):
    """The measurements of a minute with a fault."""

    calls: int
    failures: list[str]
    delay_s: float
    """The longest call, minus the longest of the calm time before."""
    longest_s: float
    alone: int
    """Processes that used the fallback during the outage."""
    again: int
    """Processes that used the fallback later, without a fault: the machine was too slow."""
    shared_again_s: float
    """From when the server was available again until both processes used it."""
    uncounted: int
    """Requests that the service got and the state did not count, 5 s after that."""
    twice: int
    """Requests that the state counted and the service did not get, except those in flight."""
    sent: int
    """Requests with the limited key."""

    def wrong(self) -> list[str]:
        """List the bars that do not hold."""
        return [
            text
            for text, holds in (
                (f"{len(self.failures)} calls failed: {self.failures[:1]}", not self.failures),
                (f"only {self.alone} processes noticed", self.alone == PROCESSES),
                (f"a call was delayed by {self.delay_s:.2f} s", self.delay_s <= MOST_DELAY_S),
                ("it was not shared again in time", self.shared_again_s <= SHARED_AGAIN_S),
                (f"{self.again} were alone again: busy machine? run it again", self.again == 0),
                (f"{self.uncounted} requests were not counted", self.uncounted == 0),
                (f"{self.twice} requests were booked twice", self.twice == 0),
                (f"{self.sent} sent of {LIMIT}", self.sent <= LIMIT),
            )
            if not holds
        ]


def measure(failing: Callable[[], AbstractContextManager[Fault]]) -> Measured:
    """Call for a minute, with a fault in it."""
    with FakeGemini() as gemini, failing() as fault:
        values = {name: gemini.add_key(name, tier="paid").value for name in (FIRST, THEN)}
        with workers(gemini.url, values, fault.url, LIMIT) as pipes:
            _begin(pipes, gemini)
            begun = time.monotonic()
            time.sleep(CALM_S)
            calm = _reports(pipes)
            fault.begin()
            alone, away = _watch(pipes, AWAY_S)
            fault.end()
            took_s, after = _until_shared(pipes)
            again, settling = _watch(pipes, SHARED_AGAIN_S - took_s)
            uncounted, twice = _miscounted(gemini, fault.url)
            later, rest = _watch(pipes, begun + WHOLE_S - time.monotonic())
            after += settling + rest
        disturbed = away + after
        longest_s = max(report.longest_s for report in disturbed)
        return Measured(
            calls=sum(report.calls for report in calm + disturbed),
            failures=[text for report in calm + disturbed for text in report.failures],
            delay_s=max(0.0, longest_s - max(report.longest_s for report in calm)),
            longest_s=longest_s,
            alone=alone,
            again=max(again, later),
            shared_again_s=took_s,
            uncounted=uncounted,
            twice=twice,
            sent=gemini.count(FIRST),
        )


def _begin(pipes: list[Connection], gemini: FakeGemini) -> None:
    """Wait until all call; the first calls open connections, and are not measured."""
    until = time.monotonic() + 30
    while gemini.count() < 4 * PROCESSES * CALLERS:
        if time.monotonic() > until:
            raise RuntimeError("the workers do not call")
        time.sleep(0.1)
    _reports(pipes)


def _reports(pipes: list[Connection]) -> list[Report]:
    return [request_report(pipe) for pipe in pipes]


def _watch(pipes: list[Connection], seconds: float) -> tuple[int, list[Report]]:
    """Count how many processes use the fallback at any time of the next seconds."""
    until, seen, alone = time.monotonic() + seconds, list[Report](), set[int]()
    while time.monotonic() < until:
        now = _reports(pipes)
        seen += now
        alone |= {number for number, report in enumerate(now) if report.degraded}
        time.sleep(0.1)
    return len(alone), seen


def _until_shared(pipes: list[Connection]) -> tuple[float, list[Report]]:
    begun, seen = time.monotonic(), list[Report]()
    while (waited_s := time.monotonic() - begun) < 2 * SHARED_AGAIN_S:
        now = _reports(pipes)
        seen += now
        if not any(report.degraded for report in now):
            break
        time.sleep(0.05)
    return waited_s, seen


def _miscounted(gemini: FakeGemini, url: str) -> tuple[int, int]:
    """Count requests that only the service knows of, and those that only the state does.

    A request is reserved before it is sent, so the service is read first and last.
    """
    before = _seen(gemini)
    state = open_shared(f"{url}?socket_timeout=5", RetryPolicy(), time.time, pool=POOL)
    assert state is not None
    booked = _counted(state)
    state.close()
    after, under_way = _seen(gemini), 2 * PROCESSES * CALLERS
    missing = sum(max(0, count - booked[name]) for name, count in before.items())
    return missing, max(0, sum(booked.values()) - sum(after.values()) - under_way)


def _seen(gemini: FakeGemini) -> dict[str, int]:
    return {name: gemini.count(name) for name in (FIRST, THEN)}


def _counted(state: State) -> dict[str, int]:
    keys = [KeySpec(key_id=name).candidate for name in (FIRST, THEN)]
    known = state.snapshot(
        state.with_values(keys)
    )  # the records of the values that the workers used
    return {name: sum(used.requests_day for used in known[name].used) for name in (FIRST, THEN)}


def _row(what: str, measured: Measured) -> Row:
    wrong = measured.wrong()
    return (
        what,
        f"{measured.calls:,}",
        str(len(measured.failures)),
        f"{measured.longest_s:.2f} s ({measured.delay_s:.2f} s more)",
        f"{measured.shared_again_s:.1f} s",
        f"{measured.uncounted} / {measured.twice}",
        f"{measured.sent:,} of {LIMIT:,}",
        "; ".join(wrong) or "holds",
    )


def main() -> int:
    """Write the table; return 1 if a bar does not hold."""
    rows, wrong = [], 0
    for what, failing in FAULTS.items():
        measured = measure(failing)
        wrong += len(measured.wrong())
        rows.append(_row(what, measured))
        print(" | ".join(rows[-1]), flush=True)
    how = (
        f"{2 * PROCESSES * CALLERS} callers in {PROCESSES} processes (as many threads as tasks) "
        f"call with the SDK for {WHOLE_S:.0f} s; after {CALM_S:.0f} s a real Valkey on loopback is "
        f"taken away for {AWAY_S:.0f} s. `longest` is the slowest call from then on, and by how "
        "much it is slower than the slowest of the calm time before (bar: 0.5 s more). `shared "
        "again` counts from when a server could serve (bar: 5 s). `not counted` are requests that "
        "the service got and the state did not count, 5 s after that, `twice` those that "
        "only the state counted (bar: 0, 0). `sent` is with a key whose limit is then exhausted."
    )
    columns = "fault, calls, failed, longest, shared again, not counted / twice, sent, verdict"
    text = page("Chaos", "make chaos", how, columns.split(", "), rows)
    (Path(__file__).parent / "CHAOS.md").write_text(text)
    print(text)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
