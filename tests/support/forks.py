"""Programs that are forks of a process that has imported the SDK, which takes a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["run_fork", "stop_forking"]

_PARENT = """
import json, os, sys
import keyrot_middleware.testing
from google import genai

for line in sys.stdin:
    asked = json.loads(line)
    if not os.fork():
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.clear()
        os.environ.update(asked["environ"])
        os.chdir(asked["cwd"])
        sys.argv[1:] = asked["arguments"]
        exec(compile(asked["program"], "<program>", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

_running: list[tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str]]] = []


def run_fork(program: str, *arguments: str) -> str:
    """Run a program that must succeed, with this process's environment; return its output.

    It has imported the SDK and this library, and shows no warning. A program for which either
    matters is started as one of its own.
    """
    if not _running:
        folder = tempfile.TemporaryDirectory(prefix="keyrot-forks-")
        command = [sys.executable, "-W", "ignore", "-c", _PARENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        _running.append((subprocess.Popen(command, cwd=folder.name, text=True, **pipes), folder))
    ((parent, folder),) = _running
    asked = {
        "program": program,
        "arguments": arguments,
        "environ": dict(os.environ),
        "cwd": str(Path.cwd()),
    }
    sys.audit("os.fork")  # a program that may send by aiohttp: tools/aiohttp_use.py
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(asked) + "\n")
    parent.stdin.flush()
    code = parent.stdout.readline()
    out, err = (Path(folder.name, name) for name in ("out", "err"))
    assert code == "0\n", err.read_text()[-2_000:]
    return out.read_text()


def stop_forking() -> None:
    """End the process whose forks they are."""
    while _running:
        parent, folder = _running.pop()
        parent.communicate(timeout=60)
        folder.cleanup()
