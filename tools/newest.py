"""Run tests with this machine's newest Python, with aiohttp and without it: ``make test-newest``.

The SDK sends async calls by aiohttp where it is installed, else by httpx or httpx2, so the tests of
``genai/`` run twice. Nothing below ``genai/`` sends by the SDK, so the tests of those layers run
once. What ``make test`` runs with the same Python is not repeated. Exit code 0: every test passes,
or there is no newer Python. With ``--only-build`` it makes the environment, and runs nothing.
"""

from __future__ import annotations

import subprocess
import sys

from pythons import pythons
from venvs import ROOT, built, pins

WITH_AIOHTTP = ("tests/genai", "tests/runtime", "tests/state")
WITHOUT_AIOHTTP = ("tests/genai",)


def main(*, only_build: bool) -> int:
    """Find the newest Python, run the tests twice, and return the exit code."""
    found = pythons()
    newest = max(found, default=(0, 0))
    if newest <= sys.version_info[:2]:
        own = ".".join(map(str, sys.version_info[:2]))
        print(f"== skipped: this machine has no newer Python than {own}, which make test uses")
        return 0
    pinned = pins(*(ROOT / "requirements" / f"{name}.txt" for name in ("demo", "dev")))
    python = str(built(ROOT / ".venv-newest", pinned, editable=True, base=found[newest]))
    if only_build:
        return 0
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
    aiohttp = next(pin for pin in pinned if pin.startswith("aiohttp=="))
    subprocess.run([*pip, "install", aiohttp], check=True)
    failed = not passes(python, "with aiohttp", *WITH_AIOHTTP)
    subprocess.run([*pip, "uninstall", "-y", "aiohttp"], check=True)
    failed |= not passes(python, "without aiohttp", *WITHOUT_AIOHTTP)
    return int(failed)


def passes(python: str, how: str, *tests: str) -> bool:
    """Run tests, and return whether all passed."""
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout
    print(f"== {version.strip()}, {how}: {', '.join(tests)}", flush=True)
    pytest = [python, "-m", "pytest", "-n", "4", "--dist", "loadfile", *tests]
    return subprocess.run(pytest, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(only_build=sys.argv[1:] == ["--only-build"]))
