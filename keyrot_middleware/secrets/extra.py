"""What to say where the library of a store is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ..errors import MissingExtraError

__all__ = ["need"]


def need(store: str, modules: Mapping[str, str]) -> None:
    """Import the libraries of a store.

    Args:
        store: Its scheme, which is the name of its extra too: `aws`.
        modules: Module and the package that people install: `{"azure.identity": "azure-identity"}`.

    Raises:
        MissingExtraError: A ConfigError with the pip line, in place of the ImportError.
    """
    missing = next((package for name, package in modules.items() if not _imports(name)), None)
    if missing is not None:
        raise MissingExtraError(wanted_by=f"the secret store {store}", package=missing, extra=store)


def _imports(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
