"""Virtual environments with pinned packages, built once and used again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ROOT", "built", "pins", "python_of"]

ROOT = Path(__file__).resolve().parents[1]


def pins(*files: Path) -> list[str]:
    """Return the lines of requirements files."""
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def built(
    folder: Path, pinned: Iterable[str], *, editable: bool = False, base: str = sys.executable
) -> Path:
    """Return the interpreter of an environment with these pins, building it where needed.

    Args:
        folder: Where it is, below the root of the repository.
        pinned: Lines of a requirements file.
        editable: Install this library too.
        base: The Python that it is made from.

    Raises:
        subprocess.CalledProcessError: pip could not install; its own message is on stderr.
    """
    version = subprocess.run([base, "-VV"], check=True, capture_output=True, text=True).stdout
    own = (ROOT / "pyproject.toml").read_text("utf-8") if editable else ""
    python, stamp = folder / "bin" / "python", folder / "built-from.txt"
    listed = folder / "requirements.txt"
    wanted = hashlib.sha256("\n".join([version, own, *pinned]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    print(f"building {folder.relative_to(ROOT)} (a minute, once)", flush=True)
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    listed.write_text("\n".join(pinned) + "\n", "utf-8")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    library = ("--editable", str(ROOT)) if editable else ()
    subprocess.run([*pip, "-r", str(listed), *library], check=True)
    stamp.write_text(wanted, "utf-8")
    return python


def python_of(name: str) -> Path:
    """Return the interpreter of an environment of frameworks, with this library."""
    file = ROOT / "tools" / "frameworks" / f"requirements-{name}.txt"
    return built(ROOT / ".venv-frameworks" / name, pins(file), editable=True)
