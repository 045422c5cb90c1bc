"""Run tests with this machine's newest Python, with aiohttp and without it: ``make test-newest``.

The SDK sends async calls by aiohttp where it is installed, else by httpx or httpx2. So the tests of
``genai/`` run twice, but the second time only those in which the first run sent a request by
aiohttp or started a Python program: `aiohttp_use.py` lists the others as they run. Nothing below
``genai/`` sends by the SDK, so the tests of those layers run once. What ``make test`` runs with the
same Python is not repeated. Exit code 0: every test passes, or there is no newer Python. With
``--only-build`` it makes the environment, and runs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pythons import ROOT, pythons
from sdk_tests.venvs import built

WITH_AIOHTTP = ("tests/genai", "tests/runtime", "tests/state")
WITHOUT_AIOHTTP = ("tests/genai",)
VENV = ROOT / ".venv-newest"


def main(*, only_build: bool) -> int:
    """Find the newest Python, run the tests twice, and return the exit code."""
    found = pythons()
    newest = max(found, default=(0, 0))
    if newest <= sys.version_info[:2]:
        own = ".".join(map(str, sys.version_info[:2]))
        print(f"== skipped: this machine has no newer Python than {own}, which make test uses")
        return 0
    pins = [
        line
        for name in ("demo", "dev")
        for line in (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    python = str(built(VENV, pins, editable=True, base=found[newest]))
    if only_build:
        return 0
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
    aiohttp = next(pin for pin in pins if pin.startswith("aiohttp=="))
    subprocess.run([*pip, "install", aiohttp], check=True)
    same = VENV / "same-without-aiohttp"
    shutil.rmtree(same, ignore_errors=True)
    same.mkdir()
    failed = not passes(python, same, "with aiohttp", *WITH_AIOHTTP)
    subprocess.run([*pip, "uninstall", "-y", "aiohttp"], check=True)
    failed |= not passes(python, same, "without aiohttp, what used it", *WITHOUT_AIOHTTP)
    return int(failed)


def passes(python: str, same: Path, how: str, *tests: str) -> bool:
    """Run tests, and return whether all passed."""
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout
    print(f"== {version.strip()}, {how}: {', '.join(tests)}", flush=True)
    plugin = ["-p", "aiohttp_use", "--same-without-aiohttp", str(same)]
    pytest = [python, "-m", "pytest", "-n", "4", "--dist", "loadfile", *plugin, *tests]
    path = os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(pytest, cwd=ROOT, check=False, env=environment).returncode == 0


if __name__ == "__main__":
    sys.exit(main(only_build=sys.argv[1:] == ["--only-build"]))
