"""`keyrot init`: write a first keys.json and .env."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from ..keys_file import SINGLE_KEYS

__all__ = ["init"]

KEYS_FILE, ENV_FILE = Path("keys.json"), Path(".env")

MOST_KEYS = 100
"""More of them are written by a program."""

_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[A-Za-z0-9_.:/+=@~-]+")
"""What a value may hold, so that it stands in .env without quotes."""
_BAD_VALUE = "a key has letters, digits and _ . - only; copy it again"


class _Entry(NamedTuple):
    key_id: str
    value: str
    """Empty: to be filled in."""
    project: str = ""


class _Problem(Exception):  # noqa: N818 - a sentence for people
    """Why nothing can be written."""


def init(*, yes: bool, force: bool) -> int:
    """Write keys.json and .env into the working directory.

    Args:
        yes: Ask nothing; the keys are those of GEMINI_API_KEYS.
        force: Replace keys.json, and the lines of the same keys in .env.

    Returns:
        0; 1 where nothing was written, with the reason on stderr.
    """
    try:
        if not force:
            _refuse_existing()
        found = _keys_of_environment()
        entries = _from_environment(found) if yes else _ask(found)
        state = None if yes else _ask_for_processes()
        _write(entries, state, force=force)
    except _Problem as problem:
        print(f"keyrot init: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"keyrot init: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    taken_over = bool(os.environ.get("GEMINI_API_KEYS")) and entries[0].value in found
    _print_next(entries, taken_over=taken_over)
    return 0


def _refuse_existing() -> None:
    if KEYS_FILE.exists():
        raise _Problem(
            f"{KEYS_FILE} exists already; nothing was written. With --force, it is replaced, and "
            "the other lines of .env are kept"
        )


def _keys_of_environment() -> list[str]:
    """Return the distinct keys of GEMINI_API_KEYS, else the single key."""
    pool = [value.strip() for value in os.environ.get("GEMINI_API_KEYS", "").split(",")]
    single = [os.environ.get(name, "").strip() for name in SINGLE_KEYS]
    return list(dict.fromkeys(filter(None, pool))) or list(filter(None, single))[:1]


def _from_environment(values: Sequence[str]) -> list[_Entry]:
    if not values:
        raise _Problem(
            "GEMINI_API_KEYS is not set, so there is no key to write; set it (comma-separated), or "
            "run keyrot init without --yes"
        )
    if not all(_VALUE.fullmatch(value) for value in values):
        raise _Problem(f"a value of GEMINI_API_KEYS is not a key: {_BAD_VALUE}")
    return [_Entry(f"key_{number}", value) for number, value in enumerate(values, 1)]


def _ask(found: Sequence[str]) -> list[_Entry]:
    """Ask for the keys, one after the other; those of the environment can be taken over."""
    if found:
        count = f"{len(found)} key{'s' if len(found) > 1 else ''}"
        if typer.confirm(f"Use the {count} of your environment?", default=True):
            return [_ask_for_project(entry) for entry in _from_environment(found)]
    count = typer.prompt("How many keys do you have?", default=2, value_proc=_count)
    entries: list[_Entry] = []
    for number in range(1, count + 1):
        typer.echo(f"\nKey {number} of {count}")
        taken = [entry.key_id for entry in entries]
        key_id = _ask_for_id(f"key_{number}", taken)
        entries.append(_ask_for_project(_Entry(key_id, _ask_for_value(entries))))
    return entries


def _count(text: str) -> int:
    if not str(text).strip().isdecimal() or not 1 <= int(text) <= MOST_KEYS:
        raise typer.BadParameter(f"a whole number from 1 to {MOST_KEYS}")
    return int(text)


def _ask_for_id(default: str, taken: Iterable[str]) -> str:
    while True:
        key_id: str = typer.prompt("  Name, as it is seen in logs", default=default).strip()
        if not _ID.fullmatch(key_id):
            typer.echo("  Use letters, digits and _, no digit first.")
        elif key_id in taken:
            typer.echo(f"  {key_id} is the name of another key.")
        else:
            return key_id


def _ask_for_value(entries: Iterable[_Entry]) -> str:
    while True:
        value: str = typer.prompt(
            "  Value (not shown; Enter: fill it in later)",
            default="",
            hide_input=True,
            show_default=False,
        ).strip()
        if value and not _VALUE.fullmatch(value):
            typer.echo(f"  That is not a key: {_BAD_VALUE}.")
        elif value and value in (entry.value for entry in entries):
            typer.echo("  That is the value of another key.")
        else:
            return value


def _ask_for_project(entry: _Entry) -> _Entry:
    project = typer.prompt(
        f"  Google Cloud project of {entry.key_id} (Enter: one of its own)",
        default="",
        show_default=False,
    )
    return entry._replace(project=project.strip())


def _ask_for_processes() -> str | None:
    """Ask which state the processes need; return its URL, None for the default."""
    answer = typer.prompt(
        "Do several processes use these keys? (no, on this host, on several hosts)",
        default="no",
        value_proc=_processes,
    )
    if answer == _SEVERAL_HOSTS:
        return str(typer.prompt("  URL of the Redis", default="redis://localhost:6379/0")).strip()
    return "sqlite" if answer == _ONE_HOST else None


_ONE_HOST, _SEVERAL_HOSTS = "on this host", "on several hosts"


def _processes(text: str) -> str:
    found = [
        answer
        for answer in ("no", _ONE_HOST, _SEVERAL_HOSTS)
        if answer.removeprefix("on ").startswith(str(text).strip().lower().removeprefix("on "))
    ]
    if not str(text).strip() or len(found) != 1:
        raise typer.BadParameter(f"no, {_ONE_HOST}, or {_SEVERAL_HOSTS}")
    return found[0]


def _write(entries: Sequence[_Entry], state: str | None, *, force: bool) -> None:
    listed = [
        {"key_id": entry.key_id} | ({"project": entry.project} if entry.project else {})
        for entry in entries
    ]
    lines = [f"GEMINI_KEY_{entry.key_id}={entry.value}" for entry in entries]
    kept = _kept_lines(entries, state, force=force)
    if state is not None:
        lines += [_SHARED_BY, f"KEYROT_STATE_URL={state}"]
    text = "\n".join([*kept, "# Values of the keys in keys.json", *lines, ""])
    keys = json.dumps(listed, indent=2) + "\n"
    _write_files([(KEYS_FILE, keys, 0o644), (ENV_FILE, text, 0o600)])


_SHARED_BY = "# The limits of all processes that use these keys"


def _kept_lines(entries: Iterable[_Entry], state: str | None, *, force: bool) -> list[str]:
    """Return the lines of .env that stay: all but those of the same keys, and of a new state."""
    if not ENV_FILE.exists():
        return []
    names = "|".join(re.escape(entry.key_id) for entry in entries)
    name = rf"GEMINI_KEY_(?:{names})" + ("|KEYROT_STATE_URL" if state is not None else "")
    comments = f"# Values of the keys in keys|{_SHARED_BY}"
    own = re.compile(rf"\s*(?:export\s+)?({name})\s*=|{comments}")
    try:
        lines = ENV_FILE.read_text("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise _Problem(".env is not UTF-8; nothing was written. Move it away first") from None
    matches = [own.match(line) for line in lines]
    taken = [match[1] for match in matches if match is not None and match[1]]
    if taken and not force:
        raise _Problem(
            f".env sets {', '.join(taken)} already; nothing was written. With --force, these lines "
            "are replaced"
        )
    return [line for line, match in zip(lines, matches, strict=True) if match is None]


def _write_files(files: Sequence[tuple[Path, str, int]]) -> None:
    """Write all before any is put in place: where the disk is full, all is as it was."""
    made: list[Path] = []
    try:
        for path, text, mode in files:
            new = path.with_name(f"{path.name}.new")
            number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(new)
            with open(number, "w", encoding="utf-8") as stream:
                stream.write(text)
        for path, _, _ in files:
            made.pop(0).replace(path.resolve())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        for new in made:
            new.unlink(missing_ok=True)


def _print_next(entries: Sequence[_Entry], *, taken_over: bool) -> None:
    count = f"{len(entries)} key{'s' if len(entries) > 1 else ''}"
    print(f"\nWrote keys.json ({count}, no values) and .env (the values; only you can read it).")
    missing = [f"GEMINI_KEY_{entry.key_id}" for entry in entries if not entry.value]
    steps = []
    if missing:
        steps.append(f"Fill in {', '.join(missing)} in .env.")
    if taken_over:
        steps.append("Unset GEMINI_API_KEYS in your shell: .env has the keys now.")
    steps += [
        "Keep .env out of version control.",
        'If keys share a Google Cloud project, give them the same "project" in keys.json: they '
        "share one quota.",
        "Check the keys with one cheap request each: keyrot check --live",
        "Run your program with the pool: keyrot run app.py",
    ]
    print("\nNext:")
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step}")
