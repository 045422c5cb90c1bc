"""The command `keyrot`: run, check, status, reset, demo, init, fake.

`keyrot run` needs nothing beyond the library, so that a program in production can be started
with it. The other commands draw tables, and need the extra `cli` (typer and rich).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .._version import __version__
from ..errors import MissingExtraError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: Instead of those of the process.

    Returns:
        The exit code: 2 for a wrong command line, a wrong setting or a missing extra; that of the
        program for `run`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        from .run import run  # noqa: PLC0415 - each command loads what it needs

        return run(given[1:])
    try:
        app = _app()
    except MissingExtraError as error:
        return _without_extra(given, error)
    app(given, prog_name="keyrot")
    return 0


def _without_extra(given: list[str], error: MissingExtraError) -> int:
    """Answer what needs no extra; say of everything else which one it needs."""
    if given == ["--version"]:
        print(f"keyrot {__version__}")
        return 0
    if given in ([], ["--help"], ["-h"]):
        from .run import USAGE  # noqa: PLC0415 - each command loads what it needs

        print(f"{USAGE}\nThe other commands: check, status, reset, demo, init, fake.\n{error}")
        return 0
    print(f"keyrot: {error}", file=sys.stderr)
    return 2


def _app() -> Any:
    """Build the typer application; its type is typer's own, which may not be there."""
    for package in ("typer", "rich"):
        try:
            __import__(package)
        except ImportError:
            wanted_by = "keyrot (except keyrot run)"
            raise MissingExtraError(wanted_by=wanted_by, package=package, extra="cli") from None
    from .app import app  # noqa: PLC0415 - only now is it known to be there

    return app
