"""The commands that need typer and rich. `run` is done before this file is read (run.py)."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .run import USAGE

__all__ = ["app"]

app = typer.Typer(
    help="A pool of Gemini API keys under the google-genai client you already have.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

STATUS = """\
This version keeps the state of a pool in the memory of the process that uses it, so there is
nothing to be seen from outside. In the program itself:

    keyrot_middleware.status()                                 all of it, as a dict
    keyrot_middleware.get_key_manager().get_health_status()    how each key is

`keyrot run -v` says on stderr when a key rests or retires. `keyrot check` shows settings and
keys; `keyrot check --live` asks Google about each key."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"keyrot {__version__}")
        raise typer.Exit


@app.callback()
def _keyrot(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Hold what belongs to every command."""


@app.command("run", add_help_option=False)
def _run() -> None:
    """Run a program, with every google-genai call sent through the pool."""
    typer.echo(USAGE)


@app.command("check")
def _check(
    live: Annotated[bool, typer.Option("--live", help="Send one request with each key.")] = False,
    model: Annotated[str | None, typer.Option(help="The model that --live asks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the settings in force and each key; exit code 1 if something is wrong."""
    from .check import check  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(check(live=live, model=model, as_json=as_json))


@app.command("status")
def _status() -> None:
    """Say where the state of the pool can be seen."""
    typer.echo(STATUS)


@app.command("demo")
def _demo(
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Use Google with the keys of your settings, instead of the fake on this machine. "
            "It spends quota: about a dozen short requests.",
        ),
    ] = False,
) -> None:
    """Run an unmodified program over four keys, two of them bad; no key or network needed."""
    from .demo import demo  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(demo(live=live))
