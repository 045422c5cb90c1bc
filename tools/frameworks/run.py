"""Run every framework through every case, and print the results.

``python run.py`` runs them all; ``python run.py agno adk`` only those; ``--plain`` calls each way
once with a good key, without install(), to separate an error of the framework from one of ours.
The exit code is the number of failed cases, at most 100.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import FRAMEWORKS, Case, cases
from judge import problems
from table import table
from upstream import Upstream, serve
from venvs import python_of

TIME_LIMIT_S = 600.0  # a case takes two seconds, and minutes on a busy machine
MARK = "PROBE "


def run_program(
    case: Case, python: Path, upstream: Upstream, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Run the user's program in a process of its own, by `keyrot run` or with install()."""
    probe, app = str(Path(__file__).with_name("probe.py")), case.framework.app
    program = [probe, app, case.way, str(case.pool.calls)]
    if case.pool.home is None:
        command = [str(python.with_name("keyrot")), "run", *program]
    else:
        command = [str(python), *program, *(() if "--plain" in flags else ("--install",))]
    return subprocess.run(
        command,
        env=upstream.environment,
        cwd=upstream.folder,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


def lines_of(output: str) -> list[dict[str, Any]]:
    """Return the probe's lines from the program's output."""
    lines = output.splitlines()
    return [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]


def try_case(case: Case, python: Path, *flags: str) -> bool:
    """Run one case and print its line; return whether it passed."""
    start = time.perf_counter()
    with serve(case) as upstream:
        try:
            done = run_program(case, python, upstream, *flags)
        except subprocess.TimeoutExpired:
            name = f"{case.framework.name} {case.pool.name} {case.way}"
            print(f"FAIL {name}: no end in {TIME_LIMIT_S:g} s")
            return False
        sent = upstream.sent(case.pool)
    results, everything = lines_of(done.stdout), done.stdout + done.stderr
    wrong = problems(case, results, sent)
    wrong += ["a key was printed"] * any(value in everything for value in upstream.values)
    report(case, results, sent, wrong, time.perf_counter() - start)
    if not results:
        print(*done.stderr.splitlines()[-5:], sep="\n")
    return not wrong


def report(
    case: Case,
    results: list[dict[str, Any]],
    sent: dict[str, int],
    wrong: list[str],
    seconds: float,
) -> None:
    """Print the result of a case in a line, and its problems below."""
    counts = " ".join(f"{key_id} {count}" for key_id, count in sent.items())
    ways = {call["failure"]["classes"][0][0] if "failure" in call else "answer" for call in results}
    verdict = "FAIL" if wrong else "ok"
    name = f"{case.framework.name:18} {case.pool.name:18} {case.way:13}"
    came = f"{counts:26} {'/'.join(sorted(ways)):28}"
    print(f"{verdict:4} {name} {came} {seconds:4.1f} s", flush=True)
    for problem in wrong:
        print(f"       {problem[:1500]}")


def main(arguments: Sequence[str]) -> int:
    """Run the named frameworks, print their table; return how many cases failed."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    names = [argument for argument in arguments if argument not in flags] or list(FRAMEWORKS)
    if unknown := set(names) - set(FRAMEWORKS):
        sys.exit(f"no such framework: {', '.join(sorted(unknown))}; there are {list(FRAMEWORKS)}")
    wrong = total = 0
    for framework in (FRAMEWORKS[name] for name in names):
        python = python_of(framework.requirements)
        for case in cases(framework, plain="--plain" in flags):
            wrong, total = wrong + (not try_case(case, python, *flags)), total + 1
    if not wrong and not flags:
        print("", *table(FRAMEWORKS[name] for name in names), "", sep="\n")
    print(f"{total - wrong} passed, {wrong} failed")
    return min(wrong, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
