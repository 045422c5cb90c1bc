"""The command `keyrot`.

`keyrot run` needs no extra, so it can start programs in production. The other commands print tables
and need the extra `cli` (typer and rich).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import MissingExtraError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None: those of the process.

    Returns:
        The exit code: 2 for a wrong command line, a wrong setting or a missing extra; that of the
        program for `run`.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args[:1] == ["run"]:
        from .run import run  # noqa: PLC0415 - each command loads what it needs

        return run(args[1:])
    try:
        from .app import app  # noqa: PLC0415 - it needs the extra
    except ImportError as error:
        wanted_by, package = "each command but keyrot run", error.name or "typer"
        missing = MissingExtraError(wanted_by=wanted_by, package=package, extra="cli")
        print(f"keyrot: {missing}", file=sys.stderr)
        return 2
    app(args, prog_name="keyrot")
    return 0
