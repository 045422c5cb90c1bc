"""One virtual environment per SDK version, built once and used again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements.txt"


def ready_python(version: str) -> Path:
    """Return the interpreter of an environment for the SDK's own tests with this SDK version.

    Raises:
        subprocess.CalledProcessError: pip could not install; its own message is on stderr.
    """
    pins = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return built(ROOT / ".venv-sdk" / version, [f"google-genai=={version}", *pins])


def built(
    folder: Path, pins: list[str], *, editable: bool = False, base: str = sys.executable
) -> Path:
    """Return the interpreter of an environment with these pins, building it where needed.

    Args:
        folder: Where it is, below the root of the repository.
        pins: Lines of a requirements file.
        editable: Install this library too, without its dependencies.
        base: The Python that it is made from.

    Raises:
        subprocess.CalledProcessError: pip could not install; its own message is on stderr.
    """
    version = subprocess.run([base, "-VV"], check=True, capture_output=True, text=True).stdout
    python, stamp, listed = (
        folder / name for name in ("bin/python", "built-from.txt", "requirements.txt")
    )
    wanted = hashlib.sha256("\n".join([version, *pins]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"building {folder.relative_to(ROOT)} (a minute, once)", flush=True)
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    listed.write_text("\n".join(pins) + "\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(listed)], check=True)
    if editable:
        own = ("--no-build-isolation", "--no-deps", "--editable", str(ROOT))
        subprocess.run([*install, *own], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python
