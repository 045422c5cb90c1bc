"""`keyrot init`: write a first keys.json and .env."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import typer

from ..errors import KeyrotError
from ..keys_file import SINGLE_KEYS

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


def init(*, yes: bool, force: bool) -> int:
    """Write keys.json and .env into the working directory.

    Args:
        yes: Ask nothing; the keys are those of the environment.
        force: Replace keys.json, and the lines of the same keys in .env.

    Raises:
        KeyrotError: Nothing was written.
    """
    keys_file, env_file = Path("keys.json"), Path(".env")
    if keys_file.exists() and not force:
        raise KeyrotError("keys.json exists; nothing was written. With --force, it is replaced")
    values = _values(ask=not yes)
    if wrong := [n for n, value in enumerate(values, 1) if not _VALUE.fullmatch(value)]:
        raise KeyrotError(f"value {wrong[0]} is not a key: letters, digits and _ . - only")
    lines = {f"GEMINI_KEY_key_{n}": value for n, value in enumerate(values, 1)}
    entries = [{"key_id": f"key_{n}"} for n in range(1, len(values) + 1)]
    try:
        old = env_file.read_text("utf-8").rstrip("\n").split("\n") if env_file.exists() else []
        kept = [line for line in old if _name(line) not in lines]
        if len(kept) < len(old) and not force:
            raise KeyrotError(".env sets such keys; nothing was written. --force replaces them")
        env = [*kept, *(f"{name}={value}" for name, value in lines.items())]
        _write(env_file, "\n".join(env), 0o600)  # first: more lines than keys do no harm
        _write(keys_file, json.dumps(entries, indent=2), 0o644)
    except (OSError, UnicodeDecodeError) as error:
        text = getattr(error, "strerror", None) or ".env is not UTF-8"
        raise KeyrotError(f"keys.json was not written: {text}") from None
    print(_NEXT.format(count=len(values)))
    return 0


def _values(*, ask: bool) -> list[str]:
    pool = os.environ.get("GEMINI_API_KEYS", "").split(",")
    single = [os.environ.get(name, "") for name in SINGLE_KEYS]
    found = list(dict.fromkeys(filter(None, map(str.strip, pool))))
    found = found or list(filter(None, single))[:1]
    if ask and not (found and typer.confirm(f"Use {len(found)} keys of your environment?", True)):
        found = []
        while value := typer.prompt(
            f"Key {len(found) + 1}, not shown (Enter: no more)", "", True, show_default=False
        ):
            found.append(value.strip())
    if not found:
        raise KeyrotError("there is no key to write: set GEMINI_API_KEYS=first,second")
    return found


def _name(line: str) -> str:
    return line.partition("=")[0].strip().removeprefix("export ").strip()


def _write(path: Path, text: str, mode: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
        stream.write(f"{text}\n")
    new.replace(path.resolve())
