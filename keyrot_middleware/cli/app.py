"""The commands that need typer and rich. `run` is done before this file is read (run.py)."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .completion import key_ids
from .run import USAGE

__all__ = ["app"]

app = typer.Typer(
    help="A pool of Gemini API keys under the google-genai client you already have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
def _status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")
    ] = False,
) -> None:
    """Show how each key stands in the shared state, while services run."""
    from .status import status  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(status(as_json=as_json, watch=watch))


@app.command("explain")
def _explain(
    model: Annotated[str, typer.Argument(help="The model of the call.")],
    tokens: Annotated[int, typer.Option(help="Input tokens of the call.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which key a call would get now, and why not the others; nothing is sent."""
    from .explain import explain  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(explain(model, tokens, as_json=as_json))


@app.command("reset")
def _reset(
    key_id: Annotated[
        str, typer.Argument(help="The key's id, as in keys.json.", autocompletion=key_ids)
    ],
) -> None:
    """Make a rejected or cooling key available again, while services run."""
    from .reset import reset  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(reset(key_id))


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


@app.command("init")
def _init(
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; take the keys of GEMINI_API_KEYS.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace keys.json, and lines of these keys in .env.")
    ] = False,
) -> None:
    """Write a first keys.json and .env, from a few questions or from GEMINI_API_KEYS."""
    from .init import init  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(init(yes=yes, force=force))


@app.command("fake")
def _fake(
    port: Annotated[
        int, typer.Option(help="Port of 127.0.0.1; 0: any free one.", min=0, max=65535)
    ] = 8787,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[=RPM]", help="A key and its limit; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no line per request.")] = False,
) -> None:
    """Run a fake Gemini API on this machine, to try a program without a real key."""
    from .fake import fake  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(fake(port, key or (), quiet=quiet))
