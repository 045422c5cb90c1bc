"""Report each execution of a module of the SDK: imported, imported again, or reloaded.

wrapt's own hook covers the first import only. Ours is in `sys.meta_path` while a pool is installed.
A second copy of this package, imported after a reload, finds the pool of the first copy there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["ImportWatch", "Patched", "replace_installed"]

Patched = WeakKeyDictionary[Any, set[str]]
"""Classes and modules, and the names of what was patched in each."""


class ImportWatch(MetaPathFinder):
    """A finder that delegates to the other finders, and reports when a module was executed."""

    def __init__(
        self,
        modules: Collection[str],
        on_executed: Callable[[ModuleType | None], None],
        keyrot_uninstall: Callable[[], None],
    ) -> None:
        """Watch nothing yet.

        Args:
            modules: Their full names.
            on_executed: Is called with each of them after it was executed.
            keyrot_uninstall: Uninstalls the pool; another copy of this package calls it.
        """
        self._modules = modules
        self._on_executed = on_executed
        self.keyrot_uninstall = keyrot_uninstall
        self.patched: Patched = WeakKeyDictionary()
        """What was patched. A module that is executed again makes other classes, and clients of
        the ones before may still be in use."""
        self._searching: set[str] = set()

    def start(self) -> None:
        """Enter `sys.meta_path`."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Leave `sys.meta_path`."""
        with suppress(ValueError):
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Ask the other finders; see `importlib.abc.MetaPathFinder`."""
        if fullname not in self._modules or fullname in self._searching:
            return None
        self._searching.add(fullname)  # another finder may ask all of them, as wrapt's does
        try:
            for finder in [one for one in sys.meta_path if one is not self]:
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    break
            else:
                return None
        finally:
            self._searching.discard(fullname)
        if spec.loader is not None:
            spec.loader = _ReportingLoader(spec.loader, self._on_executed)
        return spec


class _ReportingLoader(Loader):
    """Wraps a loader, restores it on the module, and reports the execution."""

    def __init__(self, loader: Loader, on_executed: Callable[[ModuleType | None], None]) -> None:
        self._loader = loader
        self._on_executed = on_executed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Delegate to the wrapped loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with the wrapped loader, and report it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._on_executed(module)


def replace_installed() -> Patched:
    """Uninstall the pool of another copy of this package.

    Returns:
        The methods that the other copy had patched.
    """
    patched: Patched = WeakKeyDictionary()
    for finder in list(sys.meta_path):
        uninstall = getattr(finder, "keyrot_uninstall", None)
        if uninstall is not None:
            uninstall()
            patched.update(finder.patched)  # type: ignore[attr-defined]  # a finder of ours
    return patched
