"""Run the SDK's own tests once, with a pool or without, and read what the plugin wrote."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import stand_in
from venvs import HERE, ROOT, ready_python

TIME_LIMIT_S = 1_200
"""Longest run of one version; the longest takes two minutes, and ten where the machine is busy."""


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one run of the SDK's tests.

    Attributes:
        outcomes: Node id of a test -> ``passed``, ``skipped``, ``failed: AssertionError``, …
        details: Node id of a failed test -> the first lines of its error.
        left_out: Number of tests that need a recording which the wheel does not have.
        wrapped: Request methods of the SDK that were still wrapped at the end of the run.
        sent: Requests that were sent with a key of the pool.
        refused: Those of them that were refused, so that the pool had to rotate.
    """

    outcomes: dict[str, str]
    details: dict[str, str]
    left_out: int
    wrapped: tuple[str, ...]
    sent: int
    refused: int


def run_tests(version: str, *, pool: bool, label: str) -> Run:
    """Run all of one SDK version's tests in a process of their own.

    Raises:
        RuntimeError: pytest itself broke down and left no outcomes; names its log.
        subprocess.TimeoutExpired: the run took longer than TIME_LIMIT_S.
    """
    python = ready_python(version)
    log = ROOT / ".venv-sdk" / f"{version}-{label}.log"
    with tempfile.TemporaryDirectory(prefix="sdk-tests-") as scratch:
        written = Path(scratch, "outcomes.json")
        with log.open("w", encoding="utf-8") as output:
            subprocess.run(
                _command(python),
                cwd=scratch,
                env=_environment(python, Path(scratch), written, pool=pool),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        if not written.exists():
            raise RuntimeError(f"{version}: pytest ended without outcomes; see {log}")
        return _read(json.loads(written.read_text(encoding="utf-8")))


def _read(seen: dict[str, dict[str, object]]) -> Run:
    """Make a Run of the plugin's JSON."""
    facts = seen["facts"]
    wrapped = facts["wrapped"]
    return Run(
        outcomes={str(name): str(outcome) for name, outcome in seen["outcomes"].items()},
        details={str(name): str(text) for name, text in seen["details"].items()},
        left_out=int(str(facts["left_out"])),
        wrapped=tuple(wrapped) if isinstance(wrapped, list) else (),
        sent=int(str(facts["sent"])),
        refused=int(str(facts["refused"])),
    )


def _command(python: Path) -> list[str]:
    """Return the command line; the project's own pytest settings must not reach these tests."""
    packages = next(python.parents[1].glob("lib/python3*/site-packages"))
    return [
        *(str(python), "-m", "pytest", str(packages / "google" / "genai" / "tests")),
        *("-c", os.devnull, f"--rootdir={packages}", "-p", "pool_plugin"),
        *(
            "-o",
            "consider_namespace_packages=true",
        ),  # otherwise the tests import a second copy, `genai`
        *("-o", "asyncio_default_fixture_loop_scope=function"),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors", "--mode=api"),
        *("-q", "-rfE", "--tb=short"),
    ]


def _environment(python: Path, scratch: Path, written: Path, *, pool: bool) -> dict[str, str]:
    """Return the whole environment of the tests, without the caller's variables and keys."""
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{os.defpath}",
        "HOME": str(scratch),
        "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT))),
        "PYTHONHASHSEED": "0",
        "NO_GCE_CHECK": "true",
        "GOOGLE_GENAI_REPLAYS_DIRECTORY": str(scratch / "replays"),
        "SDK_TESTS_OUTCOMES": str(written),
    }
    if pool:
        keys = ",".join((stand_in.SPENT, stand_in.REVOKED, *stand_in.GOOD))
        environment |= {"SDK_TESTS_POOL": "1", "GEMINI_API_KEYS": keys}
    return environment
