"""`keyrot run`: run a Python program with the pool installed, without a change to it.

The interpreter itself starts the program, so how it is found, its `__main__`, its arguments,
tracebacks and exit code are as usual.

Python imports a module named `sitecustomize` at each start, if there is one on its path. `keyrot
run` puts the folder autostart/ first on `PYTHONPATH`, so the program and every Python process that
it starts import ours. It installs the pool when the first library that the pool serves is
imported, so other processes pay nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wrapt import register_post_import_hook

from ..errors import KeyrotError
from ..libraries import MODULES

USAGE = """\
usage: keyrot run [-v] [PYTHON OPTIONS] PROGRAM [ARGUMENTS…]
       keyrot run [-v] [PYTHON OPTIONS] -m MODULE [ARGUMENTS…]

Run a Python program with every call to Gemini, and to other providers whose keys the
pool has, sent through the pool. PROGRAM is a script, a
directory or zip file with a __main__.py, a command such as gunicorn, -c CODE, or - for stdin.
Python processes that it starts use the pool too.

  -v    log cooldowns and rejections to stderr
  -vv   log every decision to stderr

All further arguments are passed to python. Settings come from the environment and .env;
`keyrot check` shows them.
"""

_NO_PROGRAM = f"keyrot run: no program given\n{USAGE.splitlines()[0]}"

_LEVELS = {"-v": logging.INFO, "-vv": logging.DEBUG}

_FLAGS = re.compile(r"-(?!-)[^cmWXIES]*([cmWXIES])?(.*)", re.DOTALL)
"""One argument with short options of Python's: the first that is more than a switch, and its value.
"""
_ISOLATING_FLAGS = ("I", "E", "S")
"""Options that keep Python from reading PYTHONPATH, or from importing sitecustomize."""

_GEMINI_VARIABLE = "GEMINI_API_KEY"
"""Not GOOGLE_API_KEY, which libraries of Google's other APIs read too."""
_VERTEX_SWITCHES = ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI")
_TRUE = ("true", "1", "yes")
"""Of those switches, as google-genai and LangChain read them."""


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
    index, problem = _find_program(arguments)
    enabled, placeholders = False, dict[str, str]()
    if problem is None:
        enabled, placeholders, problem = _read_settings()
    if problem:
        if sys.stderr is not None:  # otherwise print would write to stdout
            print(problem, file=sys.stderr)
        return 2
    command = _command(arguments, index)
    env = placeholders | environment(level, expected=enabled)
    if sys.platform == "win32":  # its exec returns to the shell before the program has ended
        return subprocess.call(command, env=env)  # noqa: S603 - the user's program
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os.execve(command[0], command, env)  # noqa: S606 - the user's own program


def _command(arguments: list[str], index: int) -> list[str]:
    """Return what to execute: Python, or a command of PATH such as gunicorn."""
    name = arguments[index]
    is_file = os.path.isfile(name) or os.path.isfile(os.path.join(name, "__main__.py"))
    executable = None if is_file or name.startswith("-") else shutil.which(name)
    if executable is None:
        return [sys.executable, *arguments]
    if index == 0:
        return [executable, *arguments[1:]]
    return [sys.executable, *arguments[:index], executable, *arguments[index + 1 :]]


def _find_program(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Return where the program is named, and what is wrong.

    Wrong is no program, or an option that keeps Python from loading the pool.
    """
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--":
            index += 1  # the program's name follows, whatever it looks like
            break
        if argument == "-" or not argument.startswith("-"):
            break
        flags = _FLAGS.fullmatch(argument)
        letter, value = flags.groups() if flags else (None, "")
        if letter in _ISOLATING_FLAGS:
            return index, (
                f"keyrot run: python's option -{letter} keeps Python from loading the pool; "
                "omit it, or call keyrot_middleware.install() in the program"
            )
        if letter in ("c", "m"):
            return index, None if value or any(arguments[index + 1 : index + 2]) else _NO_PROGRAM
        has_value = argument == "--check-hash-based-pycs" or (letter in ("W", "X") and not value)
        index += 2 if has_value else 1
    return index, None if any(arguments[index : index + 1]) else _NO_PROGRAM


def _read_settings() -> tuple[bool, dict[str, str], str | None]:
    """Read the settings, which the program's process reads too.

    Returns:
        Whether rotation is on; the placeholder in a variable of each provider that has keys; and
        what is wrong.
    """
    from ..settings import load, read_env_file  # noqa: PLC0415 - not for a mere --help

    try:
        config = load()
    except KeyrotError as error:
        return False, {}, f"keyrot: {error}"
    if not config.settings.enabled:
        return False, {}, None
    in_file = {name: value for name, value in read_env_file().items() if value}
    services = {key.service for key in config.keys}
    return True, _placeholders(services, in_file | dict(os.environ)), None


def _placeholders(services: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the placeholder in a variable of each provider: SDKs and frameworks want some key.

    Args:
        services: What the pool has keys of.
        given: The variables that are set. Where one of a provider's is among them, even an empty
            one, it stays as it is. A program may read `.env` itself, which does not replace what
            is set already, so those of `.env` count too.
    """
    from .. import providers  # noqa: PLC0415 - not for a mere --help
    from ..core.model import DEFAULT_PLATFORM, POOL_KEY  # noqa: PLC0415
    from ..providers.gemini import VERTEX_EXPRESS  # noqa: PLC0415

    # Vertex AI's clients take a key of the environment for express mode's, in place of a login.
    has_vertex = any(given.get(name, "").lower() in _TRUE for name in _VERTEX_SWITCHES)
    placeholders = dict[str, str]()
    for service in services:
        variables = providers.of(service).variables
        if service == VERTEX_EXPRESS or any(variable in given for variable in variables):
            continue
        if service != DEFAULT_PLATFORM:
            placeholders |= dict.fromkeys(variables[:1], POOL_KEY)
        elif not has_vertex:
            placeholders[_GEMINI_VARIABLE] = POOL_KEY
    return placeholders


FOLDER = str(Path(__file__).with_name("autostart"))

LEVEL_VARIABLE = "_KEYROT_RUN_LEVEL"
"""The log level of `-v`, a number; empty: warnings of install() only."""

PID_VARIABLE = "_KEYROT_RUN_PID"
"""The process that becomes the program, if that is to have a pool."""


def environment(level: int | None, *, expected: bool) -> dict[str, str]:
    """Return the environment of a Python process that starts with the pool.

    Args:
        level: Log to stderr from this level up; None: only warnings of `install()`.
        expected: This process becomes the program, which says so if it ends without a pool.
    """
    inherited = os.environ.get("PYTHONPATH")
    entries = (
        inherited.split(os.pathsep) if inherited else []
    )  # an empty entry is the working directory
    path = [FOLDER, *(entry for entry in entries if entry != FOLDER)]
    value = "" if level is None else str(level)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        LEVEL_VARIABLE: value,
        PID_VARIABLE: str(os.getpid()) if expected else "",
    }


_tried: list[bool] = []


def start() -> None:
    """Install the pool as soon as this process imports a library that the pool serves."""
    for module in MODULES.values():
        register_post_import_hook(_install, module)
    if os.environ.get(PID_VARIABLE) == str(os.getpid()):
        atexit.register(_say_without_pool, os.getpid())


def _say_without_pool(pid: int) -> None:
    """Say that the program has ended without a pool, unless it failed or was forked."""
    failed = hasattr(sys, "last_type")
    if not _tried and not failed and os.getpid() == pid and sys.stderr is not None:
        modules = ", ".join(MODULES.values())
        print(f"keyrot: this process had no pool: it imported none of {modules}", file=sys.stderr)


def _install(_module: Any) -> None:
    """Call `install()` once; if it fails, print why, and the program runs without the pool."""
    if _tried:
        return
    _tried.append(True)
    from .._install import install  # noqa: PLC0415 - not before it is needed
    from ..telemetry.logs import log_to_stderr  # noqa: PLC0415

    level = os.environ.get(LEVEL_VARIABLE, "")
    with log_to_stderr(int(level) if level.isdecimal() else None):
        try:
            install()
        except KeyrotError as error:
            print(f"keyrot: this process runs without the pool: {error}", file=sys.stderr)
    if not level and os.environ.get(PID_VARIABLE) == str(os.getpid()):
        _show_waits()


def _show_waits() -> None:
    """Say on a terminal for which key calls of the program wait; `-v` logs it instead."""
    from ..runtime import current_pool  # noqa: PLC0415 - not before it is needed
    from .wait_lines import WaitLines  # noqa: PLC0415

    pool = current_pool()
    if pool is not None and sys.stderr is not None and sys.stderr.isatty():
        lines = WaitLines(pool.waiting_lines.tickets, pool.clock.time)
        pool.event_listeners = (*pool.event_listeners, lines)
