"""Install the pool in a Python process at its start, by a folder on `PYTHONPATH`.

Python imports a module named `sitecustomize` at each start, if there is one on its path. `keyrot
run` puts this folder first on `PYTHONPATH`, so the program and every Python process that it starts
import ours. It installs the pool when the first library that the pool serves is imported, so other
processes pay nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from wrapt import register_post_import_hook

FOLDER = str(Path(__file__).parent)

LEVEL_VARIABLE = "_KEYROT_RUN_LEVEL"
"""The log level of `-v`, a number; empty: warnings of install() only."""

PID_VARIABLE = "_KEYROT_RUN_PID"
"""The process that becomes the program, if that is to have a pool."""

MODULES = ("google.genai", "httpx", "httpx2", "requests", "aiohttp")
"""Of the libraries that the pool serves."""


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
    for module in MODULES:
        register_post_import_hook(_install, module)
    if os.environ.get(PID_VARIABLE) == str(os.getpid()):
        atexit.register(_say_without_pool, os.getpid())


def _say_without_pool(pid: int) -> None:
    """Say that the program has ended without a pool, unless it failed or was forked."""
    failed = hasattr(sys, "last_type")
    if not _tried and not failed and os.getpid() == pid and sys.stderr is not None:
        modules = ", ".join(MODULES)
        print(f"keyrot: this process had no pool: it imported none of {modules}", file=sys.stderr)


def _install(_module: Any) -> None:
    """Call `install()` once; if it fails, print why, and the program runs without the pool."""
    if _tried:
        return
    _tried.append(True)
    from ...errors import KeyrotError  # noqa: PLC0415 - not before it is needed
    from ...telemetry.logs import log_to_stderr  # noqa: PLC0415

    level = os.environ.get(LEVEL_VARIABLE, "")
    with log_to_stderr(int(level) if level.isdecimal() else None):
        try:
            _install_untraced()
        except KeyrotError as error:
            print(f"keyrot: this process runs without the pool: {error}", file=sys.stderr)


def _install_untraced() -> None:
    """Call `install()`, but let the program set up tracing before its first call."""
    from ..._install import install  # noqa: PLC0415
    from ...runtime.current import current_pool  # noqa: PLC0415
    from ...settings import load  # noqa: PLC0415
    from ...telemetry.otel import DeferredOtlpExport  # noqa: PLC0415

    settings = load().settings
    exports = (DeferredOtlpExport(),) if settings.tracing == "otlp" else ()
    install(tracing="off")
    pool = current_pool()
    if pool is not None:
        pool.observers = (*exports, *pool.observers)
        # Where the log does not write to the terminal.
        is_free = not os.environ.get(LEVEL_VARIABLE) and sys.stderr is not None
        if settings.progress and is_free and sys.stderr.isatty():
            from ..progress import WaitProgress  # noqa: PLC0415

            pool.observers = (*pool.observers, WaitProgress())
