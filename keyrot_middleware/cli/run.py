"""`keyrot run`: Python runs a program that knows nothing of the pool, and the pool is there.

The program is started by the interpreter itself (autostart/), so everything about it is Python's
own: how it is found, its `__main__`, its arguments, tracebacks and exit code.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from ..errors import KeyrotError
from .autostart import environment

__all__ = ["USAGE", "run"]

USAGE = """\
usage: keyrot run [-v] [PYTHON OPTIONS] PROGRAM [ARGUMENTS…]
       keyrot run [-v] [PYTHON OPTIONS] -m MODULE [ARGUMENTS…]

Run a Python program as python would, with every google-genai call sent through the pool: a script,
a directory or zip file with a __main__.py, a module, -c CODE, or - for stdin. The Python processes
that it starts have the pool, too.

  -v    log to stderr when a key cools down or is rejected; -vv: every decision

Everything after that is python's. The settings come from the environment and from .env;
`keyrot check` shows them.
"""

_LEVELS = {"-v": logging.INFO, "-vv": logging.DEBUG}

_IGNORING = "IES"
"""Options that keep Python from reading PYTHONPATH, or from importing sitecustomize."""


def run(given: Sequence[str]) -> int:
    """Run the program that the arguments of `keyrot run` name, in place of this process.

    Returns:
        2 where it was not started: a wrong command line or setting. Otherwise this function does
        not return, except on Windows, where it gives the program's own exit code.
    """
    arguments, level = list(given), None
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")  # print knows that there may be no stdout
        return 0
    if arguments and arguments[0] in _LEVELS:
        level = _LEVELS[arguments.pop(0)]
    problem = _problem(arguments) or _wrong_setting()
    if problem:
        _print_error(problem)
        return 2
    command = [sys.executable, *arguments]
    if sys.platform == "win32":  # its exec returns to the shell before the program has ended
        return subprocess.call(command, env=environment(level))  # noqa: S603 - the user's program
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os.execve(sys.executable, command, environment(level))  # noqa: S606 - the user's own program


def _problem(arguments: Sequence[str]) -> str | None:
    """Say what is wrong with the command line: no program, or an option that keeps the pool out."""
    words = iter(arguments)
    for word in words:
        if word == "--":
            word = next(words, "")  # noqa: PLW2901 - the program's name, whatever it looks like
        elif word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(words, None)
            continue
        elif word.startswith("-") and word != "-":
            ended, problem = _flags(word[1:], words)
            if ended or problem:
                return problem
            continue
        return None if word else _no_program()
    return _no_program()


def _flags(letters: str, words: Iterator[str]) -> tuple[bool, str | None]:
    """Read one word of short options as Python does.

    Returns:
        Whether the program is named by it (`-c`, `-m`), and what is wrong with it.
    """
    for place, letter in enumerate(letters):
        value = letters[place + 1 :]
        if letter in _IGNORING:
            return False, (
                f"keyrot run: python's option -{letter} keeps Python from loading the pool; "
                "leave it out, or call keyrot_middleware.install() in the program"
            )
        if letter in "cm":
            named = value or next(words, "")
            return True, None if named else _no_program()
        if letter in "WX":
            if not value:
                next(words, None)
            break
    return False, None


def _no_program() -> str:
    return f"keyrot run: no program was named\n{USAGE.splitlines()[0]}"


def _wrong_setting() -> str | None:
    """Read the settings as the program's process will, to stop before it where one is wrong."""
    from ..config import load  # noqa: PLC0415 - not for a mere --help
    from ..telemetry.otlp import DeferredOtlpExport  # noqa: PLC0415

    try:
        if load().settings.tracing == "otlp":
            DeferredOtlpExport()  # raises where its extra is not installed
    except KeyrotError as error:
        return f"keyrot: {error}"
    return None


def _print_error(text: str) -> None:
    if sys.stderr is not None:  # print would write to stdout, which is the program's
        print(text, file=sys.stderr)
