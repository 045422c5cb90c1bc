"""Type checkers and programs that use the library: correct ones pass, mistakes are found."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(_folder: Path, *files: str) -> set[tuple[str, int]]:
    """Run mypy --strict on files of this folder; return file and line of each error."""
    paths = [str(HERE / name) for name in files]
    options = ["--strict", "--no-error-summary", "--config-file", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *paths],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"(\w+\.py):(\d+): error: (.*)", done.stdout)
    return {(name, int(line)) for name, line, _ in found}


def pyright(folder: Path, *files: str) -> set[tuple[str, int]]:
    """Run basedpyright, pyright's fork that downloads nothing, where it is installed."""
    if importlib.util.find_spec("basedpyright") is None:
        pytest.skip("basedpyright is not installed")
    config = {
        "include": [str(HERE / name) for name in files],
        "extraPaths": [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))],
        "typeCheckingMode": "standard",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "-p", str(folder), "--outputjson"],
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
        for one in json.loads(done.stdout)["generalDiagnostics"]
        if one["severity"] == "error"
    }


def marked(name: str) -> set[tuple[str, int]]:
    """List the lines that are marked as wrong."""
    lines = (HERE / name).read_text().splitlines()
    return {(name, number) for number, line in enumerate(lines, 1) if line.endswith("# wrong")}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_mistakes_are_found_and_correct_uses_are_accepted(check, tmp_path) -> None:
    """A misspelt setting, a wrong type, a field that is not there; KeyPoolExhausted is a type."""
    assert len(marked("wrong.py")) == 13
    assert check(tmp_path, "right.py", "wrong.py") == marked("wrong.py")
