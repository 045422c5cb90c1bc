"""Run a suite once and read what the plugin wrote."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from suites import Suite
from venvs import HERE, ROOT, ready

__all__ = ["Run", "run_suite"]

TIME_LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one run.

    Attributes:
        outcomes: Node id of a test -> ``passed``, ``skipped``, ``failed: AssertionError``, …
        details: Node id of a failed test -> the first lines of its error.
        installed: How often a pool was installed.
        sent: Requests that were sent with a key of a pool.
    """

    outcomes: dict[str, str]
    details: dict[str, str]
    installed: int
    sent: int


def run_suite(suite: Suite, mode: str) -> Run:
    """Run all tests of a suite in a process of their own.

    Raises:
        RuntimeError: pytest broke down, or took longer than TIME_LIMIT_S, and left no outcomes;
            names its log.
    """
    python, sdist = ready(suite)
    log = ROOT / ".venv-coexist" / f"{suite.name}-{mode}.log"
    with tempfile.TemporaryDirectory(prefix="coexist-") as scratch:
        written = Path(scratch, "outcomes.json")
        with log.open("w", encoding="utf-8") as output, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                _command(python, suite),
                cwd=sdist,
                env=_environment(suite, python, Path(scratch), written, mode),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        if not written.exists():
            raise RuntimeError(
                f"{suite.name}, {mode}: pytest broke down or had not ended after {TIME_LIMIT_S} s "
                f"and left no outcomes; see {log}"
            )
        return _read(json.loads(written.read_text(encoding="utf-8")))


def _read(found: dict[str, dict[str, object]]) -> Run:
    """Make a Run of the plugin's JSON."""
    outcomes, details = (
        {name: str(text) for name, text in found[part].items()} for part in ("outcomes", "details")
    )
    counts = {name: int(str(count)) for name, count in found["seen"].items()}
    return Run(outcomes, details, counts.get("installed", 0), counts.get("sent", 0))


def _command(python: Path, suite: Suite) -> list[str]:
    """Return the command line; the project's own pytest settings do not reach these tests."""
    return [
        *(str(python), "-m", "pytest", suite.tests, "--rootdir=.", "-p", "coexist_plugin"),
        *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "-rfE", "--tb=short"),
        *suite.options,
    ]


def _environment(
    suite: Suite, python: Path, scratch: Path, written: Path, mode: str
) -> dict[str, str]:
    """Return the whole environment of the tests, without the caller's variables and keys."""
    paths = (HERE, HERE / "stand_ins", ROOT / "tools" / "sdk_tests", ROOT)
    return {
        "PATH": f"{python.parent}{os.pathsep}{os.defpath}",
        "HOME": str(scratch),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "NO_GCE_CHECK": "true",
        "GEMINI_API_KEY": "FAKE-key-of-the-tests",
        "KEYROT_ALLOWED_HOSTS": suite.hosts,
        "COEXIST_OUTCOMES": str(written),
        "COEXIST_POOL": mode if mode != "alone" else "",
    }
