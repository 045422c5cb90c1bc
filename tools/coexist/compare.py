"""Compare the tests of other packages with a pool and without one.

``python tools/coexist/compare.py [SUITE …]``: takes the own tests of two instrumentations of
google-genai, and of HTTP libraries and their mocks, from their sdists, runs them alone and with a
pool installed, and compares test by test. Exit code 0: equal, except for
expected_differences.toml. Needs only Python; packages stay in ``.venv-coexist``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runs import Run, run_suite
from suites import SUITES, Suite
from venvs import HERE, ready

LIST = HERE / "expected_differences.toml"
AT_MOST = 12
MODES = ("alone", "before")


@dataclass(frozen=True, slots=True)
class Difference:
    """The tests that may differ: all whose node id has this prefix."""

    suite: str
    test: str
    reason: str


def main() -> int:
    """Run the comparison and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(suite.name for suite in SUITES)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{names}; all if none is named")
    chosen = parser.parse_args().suites
    suites = [suite for suite in SUITES if suite.name in chosen or not chosen]
    expected, began = read_expected(), time.monotonic()
    suites = [suite for suite in suites if _is_ready(suite)]
    with ThreadPoolExecutor(max_workers=2) as workers:
        # One run of a suite after the other: that of httpx has a server on a port of its own.
        jobs = [workers.submit(lambda s: [run_suite(s, mode) for mode in MODES], s) for s in suites]
        try:
            runs = [job.result() for job in jobs]
        except RuntimeError as error:
            workers.shutdown(cancel_futures=True)
            print(error, file=sys.stderr)
            return 2
    verdicts = [_judge(s, found, expected) for s, found in zip(suites, runs, strict=True)]
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(verdicts) else 1


def _is_ready(suite: Suite) -> bool:
    """Fetch what a suite needs; a suite whose repository cannot be reached is left out."""
    try:
        ready(suite)
    except subprocess.CalledProcessError:
        if not suite.repository:
            raise
        print(f"{suite.name}: left out, since {suite.repository} cannot be reached")
        return False
    return True


def read_expected() -> tuple[Difference, ...]:
    """Read the list.

    Raises:
        ValueError: It has more than AT_MOST entries.
    """
    rows = tomllib.loads(LIST.read_text(encoding="utf-8")).get("difference", [])
    if len(rows) > AT_MOST:
        raise ValueError(f"{LIST.name}: {len(rows)} differences, {AT_MOST} are allowed")
    return tuple(Difference(row["suite"], row["test"], row["reason"]) for row in rows)


def _judge(suite: Suite, runs: list[Run], expected: tuple[Difference, ...]) -> bool:
    """Print one suite's result; return whether it is as expected."""
    alone, run = runs
    parts = ", ".join(alone.outcomes.values()).split(", ")  # a test with subtests has several
    tally = Counter(part.split(":")[0] for part in parts)
    print(f"{suite.package} on google-genai {suite.sdk}")
    print("  alone: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items())))
    mine = [one for one in expected if one.suite == suite.name]
    differing = _differing(alone, run)
    print(f"  with a pool: {run.sent} requests sent, {len(differing)} outcomes differ")
    found = [*_proves_nothing(suite, tally["passed"], run), *_complaints(alone, run, mine)]
    for complaint in found:
        print(f"  {complaint}")
    return not found


def _proves_nothing(suite: Suite, passed: int, run: Run) -> Iterator[str]:
    """Yield reasons why equal outcomes would prove nothing."""
    if passed < suite.least_passed:
        yield f"only {passed} tests pass alone, {suite.least_passed} at least should"
    if run.sent < suite.least_sent or not run.installed:
        yield f"a pool sent {run.sent} requests, {suite.least_sent} at least should be"


def _complaints(alone: Run, run: Run, expected: list[Difference]) -> Iterator[str]:
    """Yield a text for each unexpected test, and for each entry that no test needs."""
    differing = _differing(alone, run)
    for test in differing:
        if not any(test.startswith(one.test) for one in expected):
            yield _described(test, alone, run)
    for one in expected:
        if not any(test.startswith(one.test) for test in differing):
            yield f"{one.test} is in {LIST.name}, yet nothing differs"


def _differing(alone: Run, run: Run) -> list[str]:
    tests = alone.outcomes.keys() | run.outcomes.keys()
    return sorted(test for test in tests if alone.outcomes.get(test) != run.outcomes.get(test))


def _described(test: str, alone: Run, run: Run) -> str:
    """Describe both outcomes of a test and the first lines of its error."""
    lines = [test]
    for name, one in (("alone", alone), ("with a pool", run)):
        lines.append(f"    {name:12}{one.outcomes.get(test, 'not run')}")
        lines += [f"        {line}" for line in one.details.get(test, "").splitlines()[:6]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
