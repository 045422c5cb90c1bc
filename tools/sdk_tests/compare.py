"""Compare the SDK's own unit tests with a key pool installed and without one.

``python tools/sdk_tests/compare.py [VERSION …]``: for each SDK version, runs the tests inside its
wheel twice and compares them test by test. Exit code 0: equal, except for
expected_differences.toml. Needs only Python; each version's packages stay in ``.venv-sdk/VERSION``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from expectations import Expectations, complaints, read_expectations
from runs import Run, run_tests
from venvs import ready_python

VERSIONS = ("1.65.0", "1.75.0", "2.34.0", "3.6.1")
LEAST_PASSED = 700
"""Fewer passed tests than this mean that the environment is broken, and equality proves nothing."""
LEAST_SENT = 100
"""Fewer requests than this through the pool mean that the second run tested nothing of it."""
SEAMS = {"_request", "_async_request"}
AT_ONCE = 4
"""Runs at the same time; more than half of a run is waiting (closing servers, sleeping)."""


def main() -> int:
    """Run the comparison and return the exit code."""
    arguments = _arguments()
    expected = Expectations((), ()) if arguments.without_pool else read_expectations()
    started = time.monotonic()
    for version in arguments.versions:
        ready_python(version)
    verdicts = [
        _judge(version, plain, other, expected, pool=not arguments.without_pool)
        for version, plain, other in _all_runs(arguments.versions, pool=not arguments.without_pool)
    ]
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if all(verdicts) else 1


def _arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument(
        "--without-pool",
        action="store_true",
        help="install no pool in the second run either: what differs then is flaky in itself",
    )
    return parser.parse_args()


def _all_runs(versions: list[str], *, pool: bool) -> list[tuple[str, Run, Run]]:
    """Run everything, AT_ONCE processes at a time."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as workers:
        pairs = [
            (
                version,
                workers.submit(run_tests, version, pool=False, label="without"),
                workers.submit(run_tests, version, pool=pool, label="with" if pool else "again"),
            )
            for version in versions
        ]
        return [(version, plain.result(), other.result()) for version, plain, other in pairs]


def _judge(version: str, plain: Run, other: Run, expected: Expectations, *, pool: bool) -> bool:
    """Print one version's result; return whether it is as expected."""
    found = list(complaints(version, plain, other, expected))
    passed = _tally(plain)["passed"]
    if passed < LEAST_PASSED:
        found.append(f"only {passed} tests pass without a pool, {LEAST_PASSED} at least should")
    found += _proves_nothing(other) if pool else []
    tally = ", ".join(f"{count} {outcome}" for outcome, count in sorted(_tally(plain).items()))
    print(f"google-genai {version}: {tally}; {plain.left_out} need recordings and are left out")
    if pool:
        print(f"  the pool sent {other.sent} requests with its keys, {other.refused} were refused")
    print(f"  {len(found)} complaint(s)")
    for complaint in found:
        print(f"  {complaint}")
    return not found


def _proves_nothing(pooled: Run) -> list[str]:
    """Return reasons why equal outcomes would prove nothing."""
    found = []
    if set(pooled.wrapped) != SEAMS:
        found.append(f"the pool did not stay installed: wrapped are {sorted(pooled.wrapped)}")
    if pooled.sent < LEAST_SENT or not pooled.refused:
        found.append(f"a pool sends {LEAST_SENT} requests at least and has some refused")
    return found


def _tally(run: Run) -> Counter[str]:
    """Count outcomes, whatever the exception."""
    return Counter(outcome.split(":")[0] for outcome in run.outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
