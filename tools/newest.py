"""Run tests with the newest Python, with aiohttp and without it: ``make test-newest``.

That is CPython 3.15, where `in_tree.sh` can get it; else the newest Python of this machine, or
none if ``make test`` uses that. The SDK sends async calls by aiohttp where it is installed, else by
httpx or httpx2, so the tests of calls and streams run twice. Exit code 0: every test passes, or
there is no newer Python. With ``--only-build`` it makes the environment, and runs nothing.
"""

from __future__ import annotations

import subprocess
import sys

from pythons import pythons
from venvs import ROOT, built, pins

WITH_AIOHTTP = ("tests/clients/genai", "tests/runtime", "tests/state")
WITHOUT_AIOHTTP = ("tests/clients/genai/calls", "tests/clients/genai/streams")
IN_TREE = "--in-tree"
NO_TREE = 75
"""The exit code of `in_tree.sh` that says so."""


def main(arguments: list[str]) -> int:
    """Find the newest Python, run the tests twice, and return the exit code."""
    if IN_TREE not in arguments:
        inside = [ROOT / "tools" / "in_tree.sh", "python3.15", "tools/newest.py", IN_TREE]
        ran = subprocess.run([*inside, *arguments], cwd=ROOT, check=False)
        if ran.returncode != NO_TREE:
            return ran.returncode
        print("== no tree with Python 3.15 can be made here, so the newest Python here is used")
    found = pythons()
    newest = max(found, default=(0, 0))
    if newest <= sys.version_info[:2] and IN_TREE not in arguments:
        own = ".".join(map(str, sys.version_info[:2]))
        print(f"== skipped: this machine has no newer Python than {own}, which make test uses")
        return 0
    pinned = pins(*(ROOT / "requirements" / f"{name}.txt" for name in ("demo", "dev")))
    folder = ROOT / f".venv-newest-3.{newest[1]}"
    python = str(built(folder, pinned, editable=True, base=found[newest]))
    if "--only-build" in arguments:
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
    sys.exit(main(sys.argv[1:]))
