"""Run the tests of this project that use the SDK with three versions of it.

``python tools/sdk_versions.py [VERSION …]``: needs ``.venv``, which has the newest version; the
packages of each other version go to ``.venv-sdk-VERSION`` and stay there. Exit code 0: every
test passes, or is skipped with what its SDK version does not have.
"""

from __future__ import annotations

import subprocess
import sys

from venvs import ROOT, built, pins

OLDER = ("1.75.0", "2.34.0")
"""Beside the newest, which requirements/demo.txt pins: one of each major version before it."""
TESTS = (*("tests/genai", "tests/testing", "tests/telemetry", "tests/cassettes"),)
"""What meets the SDK; the rest of the tests would say the same with any version."""
SDK = "google-genai=="


def main() -> int:
    """Run the tests with each version, one after the other, and return the exit code."""
    pinned = pins(*(ROOT / "requirements" / f"{name}.txt" for name in ("demo", "dev")))
    newest = next(line for line in pinned if line.startswith(SDK)).removeprefix(SDK)
    others, failed = [line for line in pinned if not line.startswith(SDK)], list[str]()
    for version in sys.argv[1:] or (*OLDER, newest):
        python = ROOT / ".venv" / "bin" / "python"
        if version != newest:
            folder = ROOT / f".venv-sdk-{version}"
            python = built(folder, [SDK + version, *others], editable=True)
        print(f"== google-genai {version}", flush=True)
        pytest = [str(python), "-m", "pytest", "-n", "4", "--dist", "loadfile", "-q", *TESTS]
        if subprocess.run(pytest, cwd=ROOT, check=False).returncode:
            failed.append(version)
    print(f"failed with google-genai {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
