"""Errors, warnings and events of this library.

    Exception
    ├── KeyrotError
    │   ├── ConfigError (also ValueError)    a setting or keys.json is wrong; raised by install()
    │   │   └── MissingExtraError (also ImportError)   an optional library is not installed
    │   └── SecretError                      a secret store has no value for a key
    └── google.genai.errors.APIError
        └── ClientError
            └── KeyPoolExhausted             no key is available; in clients/exhausted.py:
                                             importing this file must not import the SDK
    Warning
    └── UserWarning
        └── KeyrotWarning                    what a user must know at once, by `warnings.warn`

Everything else that comes out of a call is the SDK's own exception.

Internal errors are logged and survived: a library in the path of every call must not be its outage.
Whatever state, secrets or telemetry raise is caught where it would reach the call, and the call
goes on without them. Under `raise_internal_errors()` they are raised, so that our tests see them.
"""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from .libraries import MODULES


class KeyrotError(Exception):
    """Base class of every error that is not the SDK's."""


class ConfigError(KeyrotError, ValueError):
    """A setting is wrong; the text names it, its value and what is allowed."""


def how_to_install(extra: str) -> str:
    """Say how to install an extra, while the package is on no index."""
    return f"in the clone of keyrot-middleware run: pip install '.[{extra}]'"


class MissingExtraError(ConfigError, ImportError):
    """A setting needs a library that is not installed; the text names the extra."""

    def __init__(self, *, wanted_by: str, package: str, extra: str) -> None:
        super().__init__(
            f"{wanted_by} needs the package {package!r}, which is not installed; "
            f"{how_to_install(extra)}"
        )


class SecretError(KeyrotError):
    """The value of a key was not found; the text names the key, the store and the reason."""


class KeyrotWarning(UserWarning):
    """Something a user must know at once, such as a missing key or a misspelt variable.

    A Python warning, so that a program without logging shows it. Filter it as any other:
    `warnings.simplefilter("ignore", keyrot_middleware.KeyrotWarning)`.
    """


_BETWEEN = (
    *("keyrot_middleware", "wrapt", "contextlib", "opentelemetry", "openinference"),
    *("openai", "litellm", *MODULES.values()),
)
"""Modules that stand between a program's own line and what it is warned of."""


def warn(text: str) -> None:
    """Issue a `KeyrotWarning` that points at the program's own line, where there is one.

    Raises:
        KeyrotWarning: The program has made warnings errors.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None:
        is_import = frame.f_code.co_filename.startswith("<frozen importlib._bootstrap")
        if not is_import and not _is_between(frame.f_globals.get("__name__", "")):
            break
        frame, level = frame.f_back, level + (not is_import)  # warnings does not count them either
    warnings.warn(text, KeyrotWarning, stacklevel=1 if frame is None else level)


def warn_safely(text: str) -> None:
    """Issue a `KeyrotWarning` that cannot fail what issues it, even if warnings are errors."""
    with suppress(KeyrotWarning):
        warn(text)


def warn_unless_logged(log: logging.Logger, text: str) -> None:
    """Log a warning; where the program has not set up logging, issue a `KeyrotWarning`."""
    log.warning("%s", text)
    if not _has_handler(log):
        warn_safely(text)


def _has_handler(log: logging.Logger | None) -> bool:
    while log is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in log.handlers):
            return True
        log = log.parent if log.propagate else None
    return False


def _is_between(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _BETWEEN)


_log = logging.getLogger("keyrot_middleware")
_strict = False


def handle_internal_error(room: str) -> None:
    """Log the exception being handled and go on; call it inside an `except` block.

    Raises:
        Exception: The one being handled, under `raise_internal_errors()`.
    """
    error = sys.exc_info()[1]
    if _strict and error is not None:
        raise error
    # The text of a foreign error could hold a secret: its type and place are enough.
    place = error.__traceback__ if error is not None else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
    _log.warning("%s failed (%s at %s); the call goes on without it", room, type(error), where)


@contextmanager
def raise_internal_errors() -> Iterator[None]:
    """Raise internal errors instead of logging them: for tests."""
    global _strict  # noqa: PLW0603 - one switch for the process, as pytest needs it
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


EventName = Literal[
    "pool_exhausted",
    "model_failing",
    "model_recovered",
    "key_rejected",
    "project_blocked",
    "key_available_again",
    "quota_80_percent",
    "state_degraded",
    "state_recovered",
    "state_emptied",
    "budget_reached",
    "workload_degraded",
    "quota_forecast",
    "replies_not_known",
    "processes_differ",
    "keys_file_unreadable",
    "keys_file_read_again",
    "model_replaced",
    "key_expires",
]
EVENTS: tuple[EventName, ...] = get_args(EventName)


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """One event of a pool. No value of a key, prompt or answer is in it."""

    event: EventName
    """What happened, such as `key_rejected`."""
    pool: str
    """The name of the pool."""
    key_id: str | None
    """The key; None if the event affects the whole pool."""
    at: datetime
    """When it was found, an aware datetime in UTC."""
    reason: str | None
    """Why: a failure class such as `key_invalid`, or a window: `rpm`, `usd`… Of an end it is None,
    but where a person has reset what was refused, and no request has succeeded since."""
    sentence: str
    """The event in one sentence, for people."""
    available_at: datetime | None = None
    """When the key, or the first key of the pool, is tried again, in UTC; None: not known."""
    since: datetime | None = None
    """When it began, in UTC."""
    model: str | None = None
    """Whose calls are meant; None: those of all."""
    workload: str | None = None
