"""Read the table of settings once, and say in words for people what is wrong in it.

*given* are the arguments of install(), named as the fields of `Settings`; a sentence about a
setting says where its value stands: in an argument, in the environment or in `.env`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError

from .core.text import mask_keys, nearest, shown
from .errors import ConfigError
from .schemes import steers_an_sdk
from .settings import (
    ARGUMENTS,
    ENV_NAMES,
    SECRET_SETTINGS,
    STORE_VARIABLES,
    Settings,
    Switch,
)

__all__ = [
    "hide_keys",
    "ignored_in_file",
    "listed",
    "malformed_lines",
    "read_settings",
    "refuse_unknown",
    "unknown_variables",
    "where",
]


def hide_keys(given: Any) -> None:
    """Put the keys among the arguments of install() into what shows none, in place.

    First of all: whatever is wrong later, reporters of errors show the arguments of functions.
    """
    for name in ("keys", "google_api_key", "gemini_api_key"):
        value = given.get(name)
        if isinstance(value, str):
            secrets = [SecretStr(part) for part in value.split(",")]
            given[name] = secrets if name == "keys" else SecretStr(value)
        elif isinstance(value, list | tuple | set | frozenset):
            given[name] = [SecretStr(one) if isinstance(one, str) else one for one in value]


def refuse_unknown(given: Mapping[str, Any]) -> None:
    """Refuse arguments that install() does not have.

    Raises:
        ConfigError: With every one of them, and what was probably meant.
    """
    problems = [
        f"install() has no argument {shown(name)}; allowed: {', '.join(ARGUMENTS)}."
        f"{nearest(name, ARGUMENTS)}"
        for name in given
        if name not in ARGUMENTS
    ]
    if problems:
        raise ConfigError(listed(problems))


def unknown_variables(names: Iterable[str]) -> str | None:
    """Say of all *names* like ours that are none; None where there is no such name.

    They are warned of and not refused: a program may have set one for purposes of its own.
    """
    known = (*ENV_NAMES.values(), *STORE_VARIABLES)
    odd = [name for name in names if name.upper().startswith("KEYROT_") and name not in known]
    if not odd:
        return None
    told = (f"{mask_keys(name)}.{nearest(name, known)}" for name in dict.fromkeys(odd))
    return f"ignored, since there is no such variable: {' '.join(told)}"


def ignored_in_file(stores: Iterable[str], names: Iterable[str]) -> str | None:
    """Say which variables of `.env` no store reads from there; None where there are none."""
    ignored = [
        name
        for name in names
        if name not in os.environ and any(steers_an_sdk(store, name) for store in stores)
    ]
    if not ignored:
        return None
    return (
        f".env: {', '.join(ignored)}: not read from a file, since it decides which programs run "
        "and where logins go; set it in the environment"
    )


def malformed_lines(env_file: Path) -> list[str]:
    """Say which lines of `.env` are ignored because they are no NAME=value; never what they hold.

    Args:
        env_file: A file that was read as UTF-8 before, or is not there.
    """
    if not env_file.is_file():
        return []
    with env_file.open(encoding="utf-8") as stream:
        found = [
            one.original.line + _blank_lines_before(one.original.string)
            for one in parse_stream(stream)
            if one.error or (one.key is not None and one.value is None)
        ]
    if not found:
        return []
    lines = f"line{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
    return [f".env, {lines}: ignored, since it is not NAME=value"]


def _blank_lines_before(statement: str) -> int:
    return statement[: len(statement) - len(statement.lstrip())].count("\n")


def listed(problems: list[str]) -> str:
    """Make one message of all *problems*."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong:", *(f"  - {text}" for text in problems)])


def read_settings(given: Mapping[str, Any], problems: list[str]) -> Settings | None:
    """Return the settings, as far as they are right; the rest is told in *problems*."""
    values = {ENV_NAMES[name]: value for name, value in given.items()}
    try:
        # The switch alone first: what is switched off cannot be wrong in anything else.
        if not Switch(**values).enabled:
            return Settings.model_construct(enabled=False)
        return Settings(**values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    except UnicodeDecodeError as error:
        problems.append(f".env is not UTF-8 text, at byte {error.start}; save it as UTF-8")
        return None
    except OSError as error:
        problems.append(f".env cannot be read: {error.strerror}")
        return None
    # Outside the handler, so that pydantic's error is nobody's context.
    problems += dict.fromkeys(_sentence(problem, given) for problem in found)
    return _without(found, values)


def _without(found: list[Any], values: dict[str, Any]) -> Settings | None:
    """Read again with the default in place of what was wrong, to find what else is wrong."""
    wrong = {str(problem["loc"][0]): "" for problem in found}
    return None if "ENABLE_KEY_ROTATION" in wrong else Settings(**{**values, **wrong})


def _sentence(problem: Any, given: Mapping[str, Any]) -> str:
    """Say where a wrong setting stands, what was found, and what is allowed."""
    env = str(problem["loc"][0])
    name = next(name for name, alias in ENV_NAMES.items() if alias == env)
    allowed = Settings.model_fields[name].description
    value = problem["input"]
    if name in SECRET_SETTINGS:
        found = "found something else (not shown here)"
    elif problem["type"] == "value_error":
        found = str(problem["ctx"]["error"])
    else:
        found = f"found {shown(value)}"
    one_of = problem["type"] == "literal_error" or name == "secret_store"
    hint = nearest(value, str(allowed).split(", ")) if one_of and isinstance(value, str) else ""
    return f"{where(name, given)}: {found}; allowed: {allowed}.{hint}"


def where(name: str, given: Mapping[str, Any]) -> str:
    """Name the place of a setting that was given somewhere, as its owner would look for it."""
    if name in given:
        return f"install({name}=…)"
    return ENV_NAMES[name] if ENV_NAMES[name] in os.environ else f"{ENV_NAMES[name]} in .env"
