"""The commands that need typer and rich. `run` is done before this file is read (run.py)."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import rich  # noqa: F401 - the commands draw with it
import typer
from dotenv import set_key
from typer.core import TyperGroup

from .. import __version__
from ..core.wording import one_line
from ..errors import ConfigError, KeyrotError, MissingExtraError
from .run import USAGE


class _Group(TyperGroup):
    """`keyrot` itself, which prints our errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyrotError as error:
            print(f"keyrot: {error}", file=sys.stderr)
            raise typer.Exit(
                2 if isinstance(error, ConfigError | MissingExtraError) else 1
            ) from None


app = typer.Typer(
    cls=_Group,
    help="Rotate google-genai calls over a pool of Gemini API keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"keyrot {__version__}")
        raise typer.Exit


@app.callback()
def _keyrot(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options of `keyrot` itself."""


@app.command("run", add_help_option=False)
def _run() -> None:
    """Run a Python program with the pool installed."""
    typer.echo(USAGE)


@app.command("check")
def _check(
    live: Annotated[bool, typer.Option("--live", help="Send one request with each key.")] = False,
    model: Annotated[str | None, typer.Option(help="The model for --live.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check settings and keys; exit code 1 if something is wrong."""
    from .check import check  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(check(live=live, model=model, as_json=as_json))


@app.command("status")
def _status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if calls are not served, or fail.")
    ] = False,
) -> None:
    """Show whether calls are served, and each key; exit code 1 if there is nothing to read."""
    from .status import status  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(status(as_json=as_json, check=check))


@app.command("explain")
def _explain(
    model: Annotated[str, typer.Argument(help="The model of the call.")],
    tokens: Annotated[int, typer.Option(help="Input tokens of the call.", min=0)] = 0,
    workload: Annotated[str, typer.Option(help="Prefer the keys of this workload.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which key a call would get now, and why not the others; nothing is sent."""
    from .status import explain  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(explain(model, tokens, workload, as_json=as_json))


_Host = Annotated[str, typer.Option(help="Where to listen.")]
_Port = Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)]


@app.command("ui")
def _ui(
    host: _Host = "127.0.0.1",
    port: _Port = 8787,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token; else a random one is printed.")
    ] = None,
    actions: Annotated[
        bool, typer.Option("--actions", help="Offer to reset, disable and enable keys.")
    ] = False,
) -> None:
    """Show the pool in a browser, while services run."""
    from .ui import ui  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(ui(host=host, port=port, token_file=token_file, actions=actions))


@app.command("serve")
def _serve(
    host: _Host = "127.0.0.1",
    port: _Port = 8789,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with what programs send as their API key.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes; more than 1 need a state in a file or Redis.", min=1)
    ] = 1,
    details: Annotated[
        bool,
        typer.Option(help="Say in each reply which key was used, and at /status what is left."),
    ] = True,
) -> None:
    """Forward requests of programs in any language through the pool."""
    from .serve import serve  # noqa: PLC0415 - each command loads what it needs

    given = serve(host=host, port=port, token_file=token_file, workers=workers, details=details)
    raise typer.Exit(given)


_KeyId = Annotated[str, typer.Argument(help="The key's id, as in keys.json.")]


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds_in(text: str) -> float:
    """Return how long `90s`, `15m`, `6h` or `30d` is.

    Raises:
        typer.BadParameter: It is no such time, or longer than ten years.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip().lower(), re.ASCII)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= 3_650 * _UNITS["d"]:
        shown = one_line(json.dumps(text[:12], ensure_ascii=False))  # no key is as short
        raise typer.BadParameter(f"found {shown}; allowed: a time such as 90s, 15m, 6h or 30d")
    return seconds


def _change(key_id: str, action: str, for_s: float | None = None) -> None:
    from .status import change  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(change(key_id, action, for_s))


@app.command("reset")
def _reset(key_id: _KeyId) -> None:
    """Make a key of a shared state available again."""
    _change(key_id, "reset")


@app.command("disable")
def _disable(
    key_id: _KeyId,
    for_s: Annotated[
        float | None,
        typer.Option(
            "--for", parser=seconds_in, metavar="TIME", help="Such as 90s, 15m, 6h or 30d."
        ),
    ] = None,
) -> None:
    """Keep new calls of all processes from a key of a shared state, for 30 days by default."""
    _change(key_id, "disable", for_s)


@app.command("enable")
def _enable(key_id: _KeyId) -> None:
    """Use a disabled key of a shared state again."""
    _change(key_id, "enable")


@app.command("rotate")
def _rotate(
    key_id: _KeyId,
    create: Annotated[
        str, typer.Option(metavar="CMD", help="A command that prints the new value.")
    ] = "",
    revoke: Annotated[
        str, typer.Option(metavar="CMD", help="A command that gets the old value on stdin.")
    ] = "",
    expires: Annotated[
        str, typer.Option(metavar="DATE", help="When the new value ends, for keys.json.")
    ] = "",
) -> None:
    """Replace the value of a key in its store, and see that no process uses the old one any more.

    The new value is read from stdin, or asked for. Run it again to go on after a cut.
    """
    from .rotate import rotate  # noqa: PLC0415 - each command loads what it needs

    rotate(key_id, create=create, revoke=revoke, expires=expires)


@app.command("demo")
def _demo() -> None:
    """Run a program without and with a pool of four fake keys; needs no key and no network."""
    from .fake import demo  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(demo())


# keyrot init: a first keys.json and .env ----------------------------------------------------------


_VALUE = re.compile(r"[A-Za-z0-9_.:/+=@~-]+")
"""What a value may hold, so that it stands in .env without quotes."""
_NEXT = """\
Wrote keys.json ({count} keys, no values) and .env (the values; only you can read it).

Next:
  1. Keep .env out of version control; unset GEMINI_API_KEYS in your shell.
  2. Keys of one Google Cloud project share one quota: give them the same "project" in keys.json.
  3. Several processes share limits with KEYROT_STATE_URL=sqlite or redis://… in .env.
  4. Check the keys with one cheap request each: keyrot check --live
  5. Run your program with the pool: keyrot run app.py"""


@app.command("init")
def _init() -> None:
    """Write a first keys.json and .env, from GEMINI_API_KEYS or from keys that you paste."""
    from ..settings import read_env_file  # noqa: PLC0415 - each command loads what it needs

    keys_file, env_file = Path("keys.json"), Path(".env")
    if keys_file.exists():
        raise KeyrotError("keys.json exists; nothing was written")
    values = _values()
    if wrong := [n for n, value in enumerate(values, 1) if not _VALUE.fullmatch(value)]:
        raise KeyrotError(f"value {wrong[0]} is not a key: letters, digits and _ . - only")
    lines = {f"GEMINI_KEY_key_{n}": value for n, value in enumerate(values, 1)}
    entries = [{"key_id": f"key_{n}"} for n in range(1, len(values) + 1)]
    try:
        if lines.keys() & read_env_file(env_file).keys():
            raise KeyrotError(".env sets such keys; nothing was written")
        env_file = env_file.resolve()
        env_file.touch()
        env_file.chmod(0o600)
        for name, value in lines.items():
            set_key(env_file, name, value, quote_mode="never")
        keys_file.write_text(f"{json.dumps(entries, indent=2)}\n", "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        text = getattr(error, "strerror", None) or ".env is not UTF-8"
        raise KeyrotError(f"keys.json was not written: {text}") from None
    print(_NEXT.format(count=len(values)))


def _values() -> list[str]:
    pool = os.environ.get("GEMINI_API_KEYS", "").split(",")
    values = list(dict.fromkeys(filter(None, map(str.strip, pool))))
    asked = not values
    while asked and (
        value := typer.prompt(
            f"Key {len(values) + 1}, not shown (Enter: no more)", "", True, show_default=False
        )
    ):
        values.append(value.strip())
    if not values:
        raise KeyrotError("there is no key to write: set GEMINI_API_KEYS=first,second")
    return values


@app.command("fake")
def _fake(
    port: _Port = 8788,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID[=RPM[/RPD]|REPLY]",
            help="A key, and its limit or the reply it always gets; may be repeated.",
        ),
    ] = None,
    provider: Annotated[str, typer.Option(help="Whose API: openai, anthropic, …")] = "gemini",
) -> None:
    """Run a fake API on this machine, to try a program without a real key."""
    from .fake import fake  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(fake(port, key or (), provider=provider))
