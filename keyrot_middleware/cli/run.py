"""`keyrot run`: run a Python program with the pool installed, without a change to it.

The interpreter itself starts the program (see autostart/), so how it is found, its `__main__`, its
arguments, tracebacks and exit code are as usual.
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

Run a Python program with every google-genai call sent through the pool. PROGRAM is a script, a
directory or zip file with a __main__.py, -c CODE, or - for stdin. Python processes that it starts
use the pool too.

  -v    log cooldowns and rejections to stderr
  -vv   log every decision to stderr

All further arguments are passed to python. Settings come from the environment and .env;
`keyrot check` shows them.
"""

_LEVELS = {"-v": logging.INFO, "-vv": logging.DEBUG}

_ISOLATING_FLAGS = "IES"
"""Options that keep Python from reading PYTHONPATH, or from importing sitecustomize."""


def run(args: Sequence[str]) -> int:
    """Replace this process by the program.

    Returns:
        2 for a wrong command line or setting. Otherwise this function does not return, except on
        Windows, where it returns the program's exit code.
    """
    arguments, level = list(args), None
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")  # print works without a stdout, too
        return 0
    if arguments and arguments[0] in _LEVELS:
        level = _LEVELS[arguments.pop(0)]
    problem = _command_line_problem(arguments) or _settings_problem()
    if problem:
        _print_error(problem)
        return 2
    command = [sys.executable, *arguments]
    if sys.platform == "win32":  # its exec returns to the shell before the program has ended
        return subprocess.call(command, env=environment(level))  # noqa: S603 - the user's program
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os.execve(sys.executable, command, environment(level))  # noqa: S606 - the user's own program


def _command_line_problem(arguments: Sequence[str]) -> str | None:
    """Return what is wrong: no program, or an option that keeps Python from loading the pool."""
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            argument = next(remaining, "")  # noqa: PLW2901 - the program's name, whatever it looks like
        elif argument.startswith("--"):
            if argument == "--check-hash-based-pycs":
                next(remaining, None)
            continue
        elif argument.startswith("-") and argument != "-":
            ended, problem = _parse_flags(argument[1:], remaining)
            if ended or problem:
                return problem
            continue
        return None if argument else _no_program()
    return _no_program()


def _parse_flags(letters: str, remaining: Iterator[str]) -> tuple[bool, str | None]:
    """Parse one argument with short options as Python does.

    Returns:
        Whether it names the program (`-c`, `-m`), and what is wrong with it.
    """
    for index, letter in enumerate(letters):
        value = letters[index + 1 :]
        if letter in _ISOLATING_FLAGS:
            return False, (
                f"keyrot run: python's option -{letter} keeps Python from loading the pool; "
                "omit it, or call keyrot_middleware.install() in the program"
            )
        if letter in "cm":
            named = value or next(remaining, "")
            return True, None if named else _no_program()
        if letter in "WX":
            if not value:
                next(remaining, None)
            break
    return False, None


def _no_program() -> str:
    return f"keyrot run: no program given\n{USAGE.splitlines()[0]}"


def _settings_problem() -> str | None:
    """Return what is wrong with the settings, which the program's process will read too."""
    from ..config import load  # noqa: PLC0415 - not for a mere --help
    from ..telemetry.otlp import DeferredOtlpExport  # noqa: PLC0415

    try:
        if load().settings.tracing == "otlp":
            DeferredOtlpExport()  # raises if its extra is missing
    except KeyrotError as error:
        return f"keyrot: {error}"
    return None


def _print_error(text: str) -> None:
    if sys.stderr is not None:  # otherwise print would write to stdout
        print(text, file=sys.stderr)
