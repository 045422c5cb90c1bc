"""Programs that are forks of a process that has imported what they need, which takes a second."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PARENT = """
import json, os, signal, sys

for line in sys.stdin:
    asked = json.loads(line)
    if not os.fork():
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(asked["folder"] + "/" + name, os.O_RDWR), number)
        sys.stdin = open(0)
        signal.alarm(240)  # one that hangs ends with code -14
        os.environ.clear()
        os.environ.update(asked["environ"])
        os.chdir(asked["cwd"])
        sys.argv[1:] = asked["arguments"]
        exec(compile(asked["program"], "<program>", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

_SDK = "import keyrot_middleware.testing\nfrom google import genai\n"
_COMMAND = "from keyrot_middleware.cli import app, check, status\n"
_KEYROT = "import sys\nfrom keyrot_middleware.cli import main\nsys.exit(main())\n"

_running: dict[str, tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str]]] = {}


def run_fork(program: str, *arguments: str, environ: dict[str, str] | None = None) -> str:
    """Run a program that must succeed; return its output. Without *environ* it has this process's.

    It has imported the SDK and this library, and shows no warning. A program for which either
    matters is started as one of its own.
    """
    given = dict(os.environ) if environ is None else environ
    ended = fork_program(program, *arguments, environ=given)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr[-2_000:]}"
    return ended.stdout


def fork_program(
    program: str, *arguments: str, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return _fork(_SDK, ("-W", "ignore"), program, arguments, environ)


def fork_keyrot(
    *arguments: str, environ: dict[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `keyrot ARGUMENTS…` in this directory; it has imported what most commands need."""
    return _fork(_COMMAND, (), _KEYROT, arguments, environ, stdin)


def _fork(
    imports: str,
    options: tuple[str, ...],
    program: str,
    arguments: tuple[str, ...],
    environ: dict[str, str],
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    if imports not in _running:
        kept = tempfile.TemporaryDirectory(prefix="keyrot-forks-")
        command = [sys.executable, *options, "-c", imports + _PARENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        parent = subprocess.Popen(command, cwd=kept.name, text=True, **pipes)  # type: ignore[call-overload]
        _running[imports] = (parent, kept)
    parent, kept = _running[imports]
    folder = Path(kept.name)
    for name, text in (("in", stdin), ("out", ""), ("err", "")):
        (folder / name).write_text(text)
    asked = {
        "folder": str(folder),
        "program": program,
        "arguments": arguments,
        "environ": environ,
        "cwd": str(Path.cwd()),
    }
    parent.stdin.write(json.dumps(asked) + "\n")
    parent.stdin.flush()
    code = int(parent.stdout.readline())
    out, err = ((folder / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess([program, *arguments], code, out, err)


def stop_forking() -> None:
    while _running:
        parent, folder = _running.popitem()[1]
        parent.communicate(timeout=60)
        folder.cleanup()
