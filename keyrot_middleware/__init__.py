"""A pool of Gemini API keys under the google-genai client you already have.

    import keyrot_middleware
    keyrot_middleware.install()

From then on each call of the program goes out with a key of the pool, within its limits, and on
failure again without the failed key. Importing this package imports neither the SDK nor any
optional library; the names below are loaded when they are first asked for.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .core.model import POOL_KEY
from .core.wording import one_line as _one_line
from .errors import (
    ConfigError,
    KeyrotError,
    KeyrotWarning,
    MissingExtraError,
    PoolEvent,
    SecretError,
)

if TYPE_CHECKING:
    from . import ui as ui
    from ._install import PoolStatus, bypass, install, project, reset, status, uninstall, workload
    from .clients.exhausted import KeyPoolExhausted
    from .key_manager import KeyManager, get_key_manager
    from .keys_file import APIKeyMetadata
    from .monitoring.view import HealthStatus, ModelUsage

# Pytest rewrites the packages of its plugins, and warns where one was imported before it, as under
# `keyrot run -m pytest`, unless the docstring says that it need not.
__doc__ = f"{__doc__}\nPYTEST_DONT_REWRITE\n"

__all__ = [
    "POOL_KEY",
    "APIKeyMetadata",
    "ConfigError",
    "HealthStatus",
    "KeyManager",
    "KeyPoolExhausted",
    "KeyrotError",
    "KeyrotWarning",
    "MissingExtraError",
    "ModelUsage",
    "PoolEvent",
    "PoolStatus",
    "SecretError",
    "__version__",
    "bypass",
    "get_key_manager",
    "install",
    "project",
    "reset",
    "status",
    "uninstall",
    "workload",
]


def _in_one_line(record: logging.LogRecord) -> bool:
    """Keep line breaks and escape codes in model names and server texts out of the log."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            _one_line(str(value)) if isinstance(value, str | BaseException) else value
            for value in record.args
        )
    return True


logging.getLogger("keyrot_middleware").addHandler(logging.NullHandler())
logging.getLogger("keyrot_middleware").addFilter(_in_one_line)

_HOMES = {
    "APIKeyMetadata": "keys_file",
    **dict.fromkeys(("HealthStatus", "ModelUsage"), "monitoring.view"),
    **dict.fromkeys(("KeyManager", "get_key_manager"), "key_manager"),
    "KeyPoolExhausted": "clients.exhausted",
    **dict.fromkeys(("PoolStatus", "bypass", "install", "project"), "_install"),
    **dict.fromkeys(("reset", "status", "uninstall", "workload"), "_install"),
}
"""In which module each name is that is loaded later."""


if not TYPE_CHECKING:  # else a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "ui":
            return import_module(f"{__name__}.ui")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
