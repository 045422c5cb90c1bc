"""The libraries that a state in Redis needs: whether they are there, and can be used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from ..errors import ConfigError, MissingExtraError

__all__ = ["load_redis"]

_PACKAGES = ("redis",)


def load_redis(wanted_by: str) -> ModuleType:
    """Import what keeps state in Redis; only who asks for it needs the extra.

    Args:
        wanted_by: The setting that asks, for messages.

    Raises:
        MissingExtraError: A library is not installed.
        ConfigError: One is too old, or broken.
    """
    try:
        redis = import_module(".redis", __package__)
        redis.check_library()
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        if isinstance(error, ModuleNotFoundError) and sys.modules.get(package) is None:
            raise MissingExtraError(wanted_by=wanted_by, package=package, extra="redis") from None
        raise _unusable(wanted_by, error) from error
    except (TypeError, AttributeError) as error:
        raise _unusable(wanted_by, error) from error
    return redis


def _unusable(wanted_by: str, error: Exception) -> ConfigError:
    """Return which versions are there; a library that is too old lacks a module, name or argument."""
    modules = {name: sys.modules.get(name) for name in _PACKAGES}
    found = ", ".join(
        f"{name} {getattr(module, '__version__', 'of no known version')}"
        for name, module in modules.items()
        if module is not None
    )
    return ConfigError(
        f"{wanted_by} cannot use the installed {found or 'library'} ({error}); "
        "run: pip install --upgrade 'keyrot-middleware[redis]'"
    )
