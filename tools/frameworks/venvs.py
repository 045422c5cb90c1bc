"""The virtual environments of the frameworks, kept for the next time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = ROOT / ".venv-frameworks"


def python_of(name: str) -> Path:
    """Return the interpreter of an environment, made first if it is not there as pinned.

    Raises:
        subprocess.CalledProcessError: venv or pip failed; their own message is on stderr.
    """
    venv, wanted = VENVS / name, fingerprint(name)
    python, stamp = venv / "bin" / "python", venv / "made-from"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"{name}: making {venv.relative_to(ROOT)} (a minute or so, this once)", flush=True)
        make(name, venv, python)
        stamp.write_text(wanted)
    return python


def fingerprint(name: str) -> str:
    """Hash what an environment is made from: this Python, the pins, our own dependencies."""
    pins = (HERE / f"requirements-{name}.txt").read_text()
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return hashlib.sha256(repr((sys.version, pins, ours)).encode()).hexdigest()


def make(name: str, venv: Path, python: Path) -> None:
    """Make the environment again, with the frameworks and this library (as an editable install)."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    pins = str(HERE / f"requirements-{name}.txt")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", pins, "--editable", str(ROOT)], check=True, timeout=900)
