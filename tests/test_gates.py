"""What an import may load, and what is public."""

import json
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import keyrot_middleware

HEAVY = ("google.genai", "redis", "boto3", "hvac", "opentelemetry.sdk")
OPTIONAL_ROOMS = ("cli", "ui.", "__main__")
"""Modules that need an extra, or run a program when they are imported."""


def modules() -> list[str]:
    """Name every module of the package that can be imported without an extra."""
    prefix = f"{keyrot_middleware.__name__}."
    names = [m.name for m in pkgutil.walk_packages(keyrot_middleware.__path__, prefix)]
    return [n for n in names if not n.removeprefix(prefix).startswith(OPTIONAL_ROOMS)]


def loaded_by(statement: str) -> set[str]:
    """List what a fresh interpreter has loaded after *statement*."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    """A program that only imports it loads neither the SDK nor any optional library."""
    assert loaded_by("import keyrot_middleware") & set(HEAVY) == set()


def test_public_names_are_sorted_and_exist() -> None:
    """`__all__` is what `dir()` shows, and each name can be imported, lazily or not."""
    public = keyrot_middleware.__all__
    assert list(public) == sorted(public, key=_order)
    shown = {name for name in dir(keyrot_middleware) if not name.startswith("_")}
    here = {name for name in shown - {"TYPE_CHECKING"} if _is_ours(name)}
    assert here == set(public) - {"__version__"}
    for name in public:
        assert getattr(keyrot_middleware, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = keyrot_middleware.nothing


def _is_ours(name: str) -> bool:
    """Return whether a name is public, not a submodule or an import of the module."""
    value = getattr(keyrot_middleware, name)
    origin = getattr(value, "__module__", "keyrot_middleware")
    return not isinstance(value, ModuleType) and origin.startswith("keyrot_middleware")


def _order(name: str) -> tuple[int, str]:
    """Sort as ruff does: CONSTANTS, Classes, functions."""
    return 0 if name.isupper() else 1 if name[:1].isupper() else 2, name
