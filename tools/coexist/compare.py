"""Compare the tests of other packages with a pool and without one.

``PYTHONPATH=tools python tools/coexist/compare.py [SUITE …]``: takes the own tests of google-genai,
of an instrumentation of it, and of HTTP libraries and their mocks, runs them alone and with a pool
installed, and compares test by test. Exit code 0: equal, except for expected_differences.toml.
Needs only Python; packages stay in ``.venv-coexist``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from suites import SUITES, Suite
from venvs import ROOT, built, pins

HERE = Path(__file__).resolve().parent
LIST = HERE / "expected_differences.toml"
VENVS = ROOT / ".venv-coexist"
AT_ONCE = 2
TIME_LIMIT_S = 3_600
MODES = ("alone", "pool")


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one run, as coexist_plugin.py writes them.

    Attributes:
        outcomes: Node id of a test -> ``passed``, ``skipped``, ``failed: AssertionError``, …
        details: Node id of a failed test -> the first lines of its error.
        sent: Requests that were sent with a key of the pool, which was installed to the end.
    """

    outcomes: dict[str, str]
    details: dict[str, str]
    sent: int


def main() -> int:
    """Run the comparison and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(suite.name for suite in SUITES)
    text = f"{names}, or how some begin; all if none is named"
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=text)
    chosen, began = tuple(parser.parse_args().suites), time.monotonic()
    suites = [suite for suite in SUITES if suite.name.startswith(chosen) or not chosen]
    ready = {suite.name: place for suite in suites if (place := find(suite))}
    with ThreadPoolExecutor(max_workers=AT_ONCE) as workers:
        # One run of a suite after the other: that of httpx has a server on a port of its own.
        runs = workers.map(
            lambda suite: [run_suite(suite, *ready[suite.name], mode) for mode in MODES],
            suites := [suite for suite in suites if suite.name in ready],
        )
        verdicts = [judge(suite, *found) for suite, found in zip(suites, runs, strict=True)]
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(verdicts) else 1


def find(suite: Suite) -> tuple[Path, Path] | None:
    """Return the interpreter and the tests of a suite; None if its repository is out of reach."""
    file = HERE / ("requirements-sdk.txt" if suite.is_sdk else "requirements.txt")
    python = built(VENVS / suite.name, [suite.package, *suite.requirements, *pins(file)])
    if suite.is_sdk:
        return python, next(python.parents[1].glob("lib/python3*/site-packages"))
    folder = VENVS / f"{suite.name}-sources"
    if (sources := folder / suite.sdist).exists():
        return python, sources
    if suite.repository:
        version = suite.package.partition("==")[2]
        clone = ("git", "clone", "-q", "--depth", "1", "--branch", version, suite.repository)
        if subprocess.run([*clone, str(sources)], check=False).returncode:
            print(f"{suite.name}: left out, since {suite.repository} cannot be reached")
            return None
    else:
        pip = (str(python), "-m", "pip", "download", "-q", "--disable-pip-version-check")
        options = ("--no-deps", "--no-binary=:all:", "-d", str(folder))
        subprocess.run([*pip, *options, suite.package], check=True)
        with tarfile.open(folder / f"{suite.sdist}.tar.gz") as sdist:
            sdist.extractall(folder, filter="data")
    return python, sources


def run_suite(suite: Suite, python: Path, sources: Path, mode: str) -> Run:
    """Run all tests of a suite in a process of their own, without our settings of pytest."""
    command = [
        *(str(python), "-m", "pytest", str(sources / suite.tests), f"--rootdir={sources}"),
        *("-p", "coexist_plugin", "-o", "asyncio_default_fixture_loop_scope=function"),
        *(("-c", os.devnull) if suite.is_sdk else ("-o", "asyncio_mode=auto")),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "-rfE", "--tb=short"),
        *suite.options,
    ]
    log = VENVS / f"{suite.name}-{mode}.log"
    with tempfile.TemporaryDirectory(prefix="coexist-") as scratch:
        written = Path(scratch, "outcomes.json")
        environment = {
            "PATH": f"{python.parent}{os.pathsep}{os.defpath}",
            "HOME": scratch,
            "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "NO_GCE_CHECK": "true",
            "GOOGLE_GENAI_REPLAYS_DIRECTORY": f"{scratch}/replays",
            "KEYROT_ALLOWED_HOSTS": suite.hosts,
            "COEXIST_OUTCOMES": str(written),
            "COEXIST_POOL": "" if mode == "alone" else "1",
            **({} if suite.is_sdk else {"GEMINI_API_KEY": "FAKE-key-of-the-tests"}),
        }
        with log.open("w", encoding="utf-8") as output, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                cwd=scratch if suite.is_sdk else sources,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        if not written.exists():
            sys.exit(f"{suite.name}, {mode}: pytest broke down, or did not end; see {log}")
        return Run(**json.loads(written.read_text(encoding="utf-8")))


def judge(suite: Suite, alone: Run, pooled: Run) -> bool:
    """Print one suite's result; return whether it is as expected."""
    parts = ", ".join(alone.outcomes.values()).split(", ")  # a test with subtests has several
    tally = Counter(part.split(":")[0] for part in parts)
    differing = {
        test
        for test in alone.outcomes.keys() | pooled.outcomes.keys()
        if alone.outcomes.get(test) != pooled.outcomes.get(test)
    }
    print(suite.package)
    print("  alone: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items())))
    print(f"  with a pool: {pooled.sent} requests sent, {len(differing)} outcomes differ")
    found = list(complaints(suite, alone, pooled, differing))
    if tally["passed"] < suite.least_passed:
        found.append(f"only {tally['passed']} tests pass alone, not {suite.least_passed}")
    if pooled.sent < suite.least_sent:
        found.append(f"a pool sent {pooled.sent} requests, not {suite.least_sent}")
    print(*(f"  {complaint}" for complaint in found), sep="\n", end="\n" * bool(found))
    return not found


def complaints(suite: Suite, alone: Run, pooled: Run, differing: set[str]) -> Iterator[str]:
    """Yield a text for each unexpected test, and for each entry that no test needs."""
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))["difference"]
    allowed = tuple(row["test"] for row in rows if suite.name in row["suites"])
    for test in sorted(differing):
        if not test.startswith(allowed):
            yield test
            for name, one in (("alone", alone), ("with a pool", pooled)):
                yield f"  {name:12}{one.outcomes.get(test, 'not run')}"
                yield from (f"    {line}" for line in one.details.get(test, "").splitlines()[:6])
    for entry in allowed:
        if not any(test.startswith(entry) for test in differing):
            yield f"{entry} is in {LIST.name}, yet nothing differs"


if __name__ == "__main__":
    sys.exit(main())
