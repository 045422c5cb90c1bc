"""Run the tests of this project that use the SDK with three versions of it.

``python tools/sdk_tests/versions.py [VERSION …]``: needs ``.venv``, which has the newest version;
the packages of each other version go to ``.venv-sdk-VERSION`` and stay there. Exit code 0: every
test passes, or is skipped with what its SDK version does not have.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from venvs import ROOT, built

OLDER = ("1.75.0", "2.34.0")
"""Beside the newest, which requirements/demo.txt pins: one of each major version before it."""
TESTS = (*("tests/genai", "tests/testing", "tests/telemetry", "tests/cassettes"),)
"""What meets the SDK; the rest of the tests would say the same with any version."""
SDK = "google-genai=="


def main() -> int:
    """Run the tests with each version, one after the other, and return the exit code."""
    pins = [
        line
        for name in ("demo", "dev")
        for line in (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    newest = next(line for line in pins if line.startswith(SDK)).removeprefix(SDK)
    failed = [
        version
        for version in sys.argv[1:] or (*OLDER, newest)
        if not passes(version, python_of(version, newest, pins))
    ]
    print(f"failed with google-genai {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def python_of(version: str, newest: str, pins: list[str]) -> Path:
    """Return an interpreter with everything that the tests need and this SDK version."""
    if version == newest:
        return ROOT / ".venv" / "bin" / "python"
    others = [pin for pin in pins if not pin.startswith(SDK)]
    return built(ROOT / f".venv-sdk-{version}", [SDK + version, *others], editable=True)


def passes(version: str, python: Path) -> bool:
    """Run the tests, and say whether all passed."""
    print(f"== google-genai {version}", flush=True)
    pytest = [str(python), "-m", "pytest", "-n", "4", "--dist", "loadfile", "-q"]
    return subprocess.run([*pytest, *TESTS], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
