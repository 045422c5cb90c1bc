"""One virtual environment per SDK version, built once and used again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements.txt"


def ready_python(version: str) -> Path:
    """Return the interpreter of an environment with this SDK version, building it where needed.

    Raises:
        subprocess.CalledProcessError: pip could not install; its own message is on stderr.
    """
    folder = ROOT / ".venv-sdk" / version
    python, stamp = folder / "bin" / "python", folder / "built-from.txt"
    wanted = _fingerprint(version)
    if not (python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        print(f"{version}: building {folder.relative_to(ROOT)} (a minute, once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, f"google-genai=={version}", "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _fingerprint(version: str) -> str:
    """Name what an environment is built from; any change of it means building anew."""
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f"google-genai=={version}\npython {sys.version}\nrequirements {pins}\n"
