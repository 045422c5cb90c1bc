"""What this library raises by itself.

    Exception
    ├── KeyrotError
    │   ├── ConfigError (also ValueError)    a setting or keys.json is wrong; raised by install()
    │   │   └── MissingExtraError (also ImportError)   an optional library is not installed
    │   └── SecretError                      a secret store could not give a value
    └── google.genai.errors.APIError
        └── ClientError
            └── KeyPoolExhausted             nothing free to send with; in genai/exhausted.py, since
                                             importing this file must not import the SDK
    Warning
    └── UserWarning
        └── KeyrotWarning                    what a user must know at once, by `warnings.warn`

Everything else that comes out of a call is the SDK's own exception.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "KeyrotError",
    "KeyrotWarning",
    "MissingExtraError",
    "SecretError",
    "code_of",
    "warn",
]

_REFUSALS = {
    "key_invalid": (400, "INVALID_ARGUMENT"),
    "unauthorized": (401, "UNAUTHENTICATED"),
    "key_leaked": (403, "PERMISSION_DENIED"),
    "key_restricted": (403, "PERMISSION_DENIED"),
    "key_method_blocked": (403, "PERMISSION_DENIED"),
    "project_suspended": (403, "PERMISSION_DENIED"),
}
"""How Google answers with a key that it refuses for good, by the failure class."""


class KeyrotError(Exception):
    """Stand above every error that is not the SDK's."""


class ConfigError(KeyrotError, ValueError):
    """Say which setting is wrong, what was found and what is allowed."""


class MissingExtraError(ConfigError, ImportError):
    """Say which extra brings the library that a setting asks for."""

    def __init__(self, *, wanted_by: str, package: str, extra: str) -> None:
        super().__init__(
            f"{wanted_by} needs the package {package!r}, which is not installed; "
            f"run: pip install 'keyrot-middleware[{extra}]'"
        )


class SecretError(KeyrotError):
    """Say which key's secret could not be had, from which place, and why."""


class KeyrotWarning(UserWarning):
    """Name what a user must know at once, such as a missing key or a misspelt variable.

    A Python warning, so that a program without logging shows it. Filter it as any other:
    `warnings.simplefilter("ignore", keyrot_middleware.KeyrotWarning)`.
    """


_BETWEEN = ("keyrot_middleware", "google.genai", "wrapt", "contextlib")
"""Modules that stand between a program's own line and what it is warned of."""


def warn(text: str) -> None:
    """Issue a `KeyrotWarning` that points at the program's own line, where there is one.

    Raises:
        KeyrotWarning: The program has made warnings errors.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_between(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, KeyrotWarning, stacklevel=1 if frame is None else level)


def _is_between(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _BETWEEN)


def code_of(retired: Iterable[str]) -> tuple[int, str]:
    """Give code and status of a `KeyPoolExhausted`: those of the refusal, else of a rate limit.

    Args:
        retired: Why each key is out of service, if none of them comes back by itself.
    """
    known = [_REFUSALS[reason] for reason in retired if reason in _REFUSALS]
    return known[-1] if known else (429, "RESOURCE_EXHAUSTED")
