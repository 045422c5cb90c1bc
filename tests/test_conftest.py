"""How a run of tests ends where one of them leaves something open, or hangs."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
LEAVES = """
import socket

def test_that_leaves_it():
    class Holder:
        pass

    holder = Holder()
    holder.itself, holder.open = holder, socket.socket()

def test_after_it():
    pass
"""
PLAIN = "def test_of_another_file():\n    pass\n"
HANGS = "import threading\n\ndef test_that_hangs():\n    threading.Event().wait()\n"


def run_tests(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of *folder* in order, with our settings of pytest."""
    plugins = ("-p", "no:randomly", "-p", "no:cacheprovider")
    settings = ("-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", ".")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *settings, *options, "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_file_that_leaves_something_open_fails_by_its_name(tmp_path: Path) -> None:
    """A socket that only the collector closes: its own file fails, and the next one passes."""
    (tmp_path / "test_leaves.py").write_text(LEAVES)
    (tmp_path / "test_plain.py").write_text(PLAIN)
    output = run_tests(tmp_path, "-p", "conftest").stdout
    assert "3 passed, 1 error" in output
    assert "ERROR test_leaves.py::test_after_it" in output
    assert "Found at the end of test_leaves.py" in output
    assert "unclosed <socket.socket" in output


def test_a_test_that_hangs_ends_the_run(tmp_path: Path) -> None:
    """It is named, its threads are shown, and no other process runs it again."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    done = run_tests(tmp_path, "-n", "1", "-o", "faulthandler_timeout=1")
    assert done.returncode == 1
    assert "crashed while running 'test_hangs.py::test_that_hangs'" in done.stdout
    assert "crashed and worker restarting disabled" in done.stdout
    assert done.stderr.count("Timeout (0:00:01)!") == 1
