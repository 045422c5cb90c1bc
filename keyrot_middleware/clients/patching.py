"""Patch methods of other libraries, now or when they are imported.

A layer that another library has wrapped meanwhile stays where it is, and only passes calls through
once it is switched off.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from wrapt import FunctionWrapper, register_post_import_hook, wrap_object

from ..errors import warn_safely
from ..locks import Lock

_log = logging.getLogger("keyrot_middleware")

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Wrapped = Callable[..., Any]
Wrapper = Callable[[Wrapped, Any, Args, Kwargs], Any]
_DEEPEST = 64


class Patcher:
    """A table of wrappers, switched on and off together."""

    def __init__(self, wrappers: Mapping[tuple[str, str], Wrapper]) -> None:
        """Patch nothing yet.

        Args:
            wrappers: That of each function or method, by its module and its name there. What an
                imported module does not have is left out, with a warning.
        """
        self.enabled: list[bool] = []
        """Not empty while all is on; wrapt tests its truth without a call of Python."""
        self._wrappers = dict(wrappers)
        self._lock = Lock()

    def install(self) -> None:
        """Patch what is imported, and later what will be; or put back what others have removed."""
        self.enabled[:] = (True,)
        for module in dict.fromkeys(module for module, _ in self._wrappers):
            if module not in _patchers:
                _patchers[module] = []
                register_post_import_hook(_imported, module)
            if self not in _patchers[module]:
                _patchers[module].append(self)
            if module in sys.modules:
                self.wrap(sys.modules[module])

    def wrap(self, module: ModuleType) -> None:
        """Patch a module."""
        with self._lock:
            self._wrap(module)

    def _wrap(self, module: ModuleType) -> None:
        for label, owner, name, wrapper in self._targets(module.__name__):
            if owner is None or not hasattr(owner, name):
                _warn_of(module, label)
            elif self.enabled and _find(owner, name, wrapper) is None:
                wrap_object(owner, name, FunctionWrapper, (wrapper, self.enabled))

    def uninstall(self) -> None:
        """Restore all."""
        self.enabled.clear()
        for patchers in _patchers.values():
            if self in patchers:
                patchers.remove(self)
        with self._lock:
            self._unwrap()

    def _unwrap(self) -> None:
        for _, owner, name, wrapper in self._targets():
            layer = _find(owner, name, wrapper)
            if layer is None or vars(owner)[name] is not layer:
                continue
            if layer.__wrapped__ is _inherited(owner, name):
                delattr(owner, name)
            else:
                setattr(owner, name, layer.__wrapped__)

    def status(self) -> dict[str, bool]:
        """Return for each method of what is imported whether our layer is in place."""
        return {
            label: _find(owner, name, wrapper) is not None
            for label, owner, name, wrapper in self._targets()
        }

    def _targets(self, only: str = "") -> Iterator[tuple[str, Any, str, Wrapper]]:
        """Yield the label, the owner, the name and the wrapper of all in the imported modules.

        An owner that a module does not have is None.
        """
        for (module, path), wrapper in self._wrappers.items():
            owner: Any = sys.modules.get(module) if only in ("", module) else None
            if owner is None:
                continue
            *parts, name = path.split(".")
            for part in parts:
                owner = getattr(owner, part, None)
            yield f"{module}.{path}", owner, name, wrapper


_patchers: dict[str, list[Patcher]] = {}
"""Those in place, by the modules that they wait for."""


def _imported(module: ModuleType) -> None:
    for patcher in tuple(_patchers[module.__name__]):
        patcher.wrap(module)


def _warn_of(module: ModuleType, label: str) -> None:
    version = getattr(module, "__version__", "of this version")
    method = label.removeprefix(f"{module.__name__}.")
    warn_and_log(
        f"{module.__name__} {version} has no {method}, by which the pool serves it: requests may "
        "not go through the pool; a newer keyrot-middleware may know this version"
    )


def _find(owner: Any, name: str, wrapper: Wrapper) -> Any:
    """Return the layer with this wrapper on a method; other layers may be above it."""
    layer = getattr(owner, "__dict__", {}).get(name)
    for _ in range(_DEEPEST):
        if layer is None or getattr(layer, "_self_wrapper", None) == wrapper:
            return layer
        layer = getattr(layer, "__wrapped__", None)
    return None


def _inherited(owner: Any, name: str) -> Any:
    """Return the method that a class would have without its own; None for a module."""
    bases = getattr(owner, "__mro__", ())[1:]
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


def warn_and_log(text: str) -> None:
    """Issue a log record and a Python warning, which cannot fail the import or the call."""
    _log.warning("%s", text)
    warn_safely(text)
