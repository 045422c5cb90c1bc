"""Imported by Python at its start if `keyrot run` has put this folder on the path."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def _start() -> None:
    """Prepare the pool, then restore the path and import the program's own `sitecustomize`."""
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    try:
        from keyrot_middleware.cli.run import start  # noqa: PLC0415
    except ImportError:  # another interpreter, without the package
        if os.environ.get("_KEYROT_RUN_PID") == str(os.getpid()):
            text = f"keyrot: {sys.executable} lacks keyrot_middleware: the program has no pool"
            print(text, file=sys.stderr)
    else:
        start()
    if PathFinder.find_spec("sitecustomize", sys.path) is not None:
        del sys.modules["sitecustomize"]
        importlib.import_module("sitecustomize")


_start()
