"""`keyrot run`: install(), then a program that knows nothing of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import KeyrotError
from ..telemetry.stderr import told_on_stderr
from .program import Program, ProgramError, execute, of_module, of_path, only_its_frames

__all__ = ["USAGE", "place_pool", "run", "run_program"]

USAGE = """\
usage: keyrot run [-v] PROGRAM [ARGUMENTS…]
       keyrot run [-v] -m MODULE [ARGUMENTS…]

Run a Python program as python itself would, with every google-genai call sent through the pool:
a script (.py, .pyc, - for stdin), a directory or a zip file with a __main__.py, a module.
All arguments after the program's name are the program's own. Processes that it starts are other
programs: start them with keyrot run too, or call keyrot_middleware.install() in them.

  -v    say on stderr when a key is cooling down or rejected; -vv: each decision
  -m    run a module by its name, as python -m does

The settings come from the environment and from .env; `keyrot check` shows them.
"""

_LEVELS = {"-v": logging.INFO, "-vv": logging.DEBUG}


@dataclass(frozen=True, slots=True)
class _Asked:
    target: str
    is_module: bool
    arguments: list[str]
    level: int | None


class _UsageError(Exception):
    """Say what is wrong with the command line."""


def run(given: Sequence[str]) -> int:
    """Run the program that the arguments of `keyrot run` name.

    Returns:
        0 when it comes to its end; 2, or python's own code, when it could not be started. What
        the program raises, SystemExit included, comes out for the interpreter to deal with.
    """
    if list(given[:1]) in (["-h"], ["--help"]):
        print(USAGE, end="")  # print knows that there may be no stdout
        return 0
    try:
        asked = _parse(given)
    except _UsageError as error:
        _complain(f"keyrot run: {error}\n{USAGE.splitlines()[0]}")
        return 2
    if not place_pool(asked.level):
        return 2
    return run_program(asked.target, asked.arguments, is_module=asked.is_module)


def _complain(text: str) -> None:
    if sys.stderr is not None:  # print would write to stdout, which is the program's
        print(text, file=sys.stderr)


def _parse(given: Sequence[str]) -> _Asked:
    rest, level, is_module = list(given), None, False
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word in _LEVELS:
            level = _LEVELS[word]
        elif word.startswith("-m"):
            is_module = True
            rest[0:0] = [word[2:]] if word != "-m" else []
            break
        elif word == "--":
            break
        else:
            raise _UsageError(f"unknown option {word}; allowed: -v, -vv, -m")
    if not rest or not rest[0]:
        raise _UsageError("no program was named")
    return _Asked(rest[0], is_module, rest[1:], level)


def place_pool(level: int | None = None) -> bool:
    """Call install(); tell on stderr what it warns of, and what is wrong.

    Args:
        level: Go on telling on stderr what the pool does from this level up.

    Returns:
        Whether the program may start: False where a setting is wrong.
    """
    with told_on_stderr(level):
        try:
            _install()
        except KeyrotError as error:
            _complain(f"keyrot: {error}")
            return False
    return True


def _install() -> None:
    """Call install(), but leave the first word on tracing to the program, which comes after us."""
    from ..compose import current_pool, install  # noqa: PLC0415 - not for a mere --help
    from ..config import load  # noqa: PLC0415
    from ..telemetry.export import ExportFromFirstCall  # noqa: PLC0415

    exports = (ExportFromFirstCall(),) if load().settings.tracing == "otlp" else ()
    install(tracing="off")
    pool = current_pool()
    if pool is not None:
        pool.observers = (*exports, *pool.observers)


def run_program(target: str, arguments: list[str], *, is_module: bool = False) -> int:
    """Run a program to its end in this process, as `__main__`.

    Returns:
        0; or python's own exit code where there is no such program, told on stderr.
    """
    with only_its_frames():
        try:
            program: Program = of_module(target) if is_module else of_path(target)
        except ProgramError as error:
            _complain(f"keyrot run: {error}")
            return error.exit_code
        execute(program, arguments)
    return 0
