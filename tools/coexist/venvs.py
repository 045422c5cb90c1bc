"""One virtual environment and one unpacked sdist per suite, made once and used again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from suites import Suite

__all__ = ["HERE", "ROOT", "ready"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements.txt"


def ready(suite: Suite) -> tuple[Path, Path]:
    """Return the interpreter and the unpacked sources of a suite, fetching both where needed.

    Raises:
        subprocess.CalledProcessError: pip could not install; its own message is on stderr.
    """
    folder = ROOT / ".venv-coexist" / suite.name
    python, stamp = folder / "bin" / "python", folder / "built-from.txt"
    wanted = _fingerprint(suite)
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        print(f"{suite.name}: building {folder.relative_to(ROOT)} (a minute, once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        _pip(python, "install", *_packages(suite), "-r", str(REQUIREMENTS))
        _fetch(suite, python, folder)
        stamp.write_text(wanted, encoding="utf-8")
    return python, folder / suite.sdist


def _fetch(suite: Suite, python: Path, folder: Path) -> None:
    if suite.repository:
        version = suite.package.partition("==")[2]
        clone = ("git", "clone", "-q", "--depth", "1", "--branch", version, suite.repository)
        subprocess.run([*clone, str(folder / suite.sdist)], check=True)
        return
    options = ("--no-deps", "--no-binary=:all:", "-d", str(folder))
    _pip(python, "download", *options, suite.package)
    with tarfile.open(folder / f"{suite.sdist}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")


def _packages(suite: Suite) -> tuple[str, ...]:
    return (suite.package, f"google-genai=={suite.sdk}", *suite.requirements)


def _pip(python: Path, command: str, *args: str) -> None:
    quiet = ("-q", "--disable-pip-version-check")
    subprocess.run([str(python), "-m", "pip", command, *quiet, *args], check=True)


def _fingerprint(suite: Suite) -> str:
    """Return a text of what an environment is built from; a change of it means building again."""
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return "\n".join([*_packages(suite), f"python {sys.version}", f"requirements {pins}", ""])
