"""Find the Pythons of this machine; ``python tools/pythons.py`` prints the oldest supported one."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

from venvs import ROOT

__all__ = ["pythons"]


def pythons() -> dict[tuple[int, int], str]:
    """Return the path of each Python that is here and in the metadata, by version, oldest first."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"Python :: 3\.(\d+)$", "\n".join(metadata["classifiers"]), re.MULTILINE)
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders += sorted(pyenv.glob("versions/*/bin"))
    found: dict[tuple[int, int], str] = {}
    for minor in sorted(map(int, named)):
        paths = (folder / f"python3.{minor}" for folder in folders)
        if usable := next(filter(is_usable, paths), None):
            found[3, minor] = str(usable)
    return found


def is_usable(path: Path) -> bool:
    """Return whether it can make an environment: a shim of pyenv without its Python only fails."""
    test = [str(path), "-c", "import ensurepip, venv"]
    return path.is_file() and subprocess.run(test, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    print(next(iter(pythons().values())))
