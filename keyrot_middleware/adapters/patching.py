"""Patch methods of other libraries, and remove our own layer only.

Others may wrap the same methods, before or after us, and put snapshots back in any order; so our
layer is recognised by its wrapper function, and one that is restored after uninstall() passes
through.

Some methods serve sends of calls that came in elsewhere. A call under way outlives uninstall(), so
for each of its sends they stay in place, or are put back: its key would not go in otherwise.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

import wrapt
from wrapt import FunctionWrapper, wrap_object

from ..errors import warn_safely
from ..guard import handle_internal_error
from .imports import ImportWatch, Patched

__all__ = ["Patcher", "Wrapper", "remove_layer", "warn_and_log", "wrapper_chain"]

# Find and take off one layer among several on a method, with wrapt 1.16 as with 2.x ------------
#
# wrapt has this itself from 2.4 on. Programs with opentelemetry-instrumentation up to 0.61 have
# wrapt 1, and could not install us otherwise.


_PROXY: type = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)
"""The class of all layers, in wrapt 2 and in wrapt 1."""
_DEEPEST = 64


def wrapper_chain(method: Any) -> Iterator[Any]:
    """Yield the layers of a method, the outermost first, the original function last."""
    for _ in range(_DEEPEST):
        yield method
        try:
            method = method.__wrapped__
        except AttributeError:
            return


def remove_layer(owner: Any, name: str, layer: Any) -> bool:
    """Remove a layer of wrapt from a method or function of *owner*, a class or module.

    Returns:
        False if it stays, because a plain function wraps it.
    """
    above = None
    for one in wrapper_chain(vars(owner).get(name)):
        if one is layer:
            break
        above = one
    else:
        return True  # it is not there any more
    inner_layer = layer.__wrapped__
    if above is None and inner_layer is _inherited(owner, name):
        delattr(owner, name)
    elif above is None:
        setattr(owner, name, inner_layer)
    elif issubclass(type(above), _PROXY):
        above.__wrapped__ = inner_layer
    else:
        return False
    return True


def _inherited(owner: Any, name: str) -> Any:
    """Return the method that a class would have without its own; None for a module."""
    bases = getattr(owner, "__mro__", ())[1:]
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


_log = logging.getLogger("keyrot_middleware")

Wrapper = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


class Patcher:
    """The table of patched methods, switched on and off together."""

    def __init__(self, replace: Callable[[], None] | None = None) -> None:
        """Start with an empty table.

        Args:
            replace: Takes all away, for another copy of this package; else `uninstall`.
        """
        self.enabled: list[bool] = []
        """Not empty while all is on; wrapt tests its truth without a call of Python."""
        self._functions: dict[tuple[str, str], Wrapper] = {}
        self._wrappers: dict[str, Wrapper] = {}
        self._send_names: set[str] = set()
        self._lock = threading.RLock()  # a call that is collected leaves in whatever thread that is
        self._users: set[object] = set()
        """Switches on what is below: these seams while they are on, and sends under way."""
        self.modules: set[str] = set()
        self._import_watch = ImportWatch(self.modules, self._on_executed, replace or self.uninstall)
        self._patched = self._import_watch.patched

    def add_functions(
        self, wrappers: Mapping[tuple[str, str], Wrapper], *, sends: bool = False
    ) -> None:
        """Add functions and methods of other modules: of those that are there, and in use.

        Args:
            wrappers: The wrapper of each, by its module and its name in it, `Class.method`.
            sends: They act in each send of a call that came in elsewhere, so they stay in place
                until the last of them has ended.
        """
        self._functions |= wrappers
        self.modules |= {module for module, _ in wrappers}
        self.add({".".join(place): one for place, one in wrappers.items()}, sends=sends)

    def add(self, wrappers: dict[str, Wrapper], *, sends: bool) -> None:
        """Add wrappers by their names; `targets` yields what to wrap with each."""
        self._wrappers |= wrappers
        if sends:
            self._send_names |= wrappers.keys()

    def install(self, patched: Patched | None = None) -> None:
        """Patch the libraries now, or when they are imported; repair patches that are missing.

        Args:
            patched: What was patched of modules that were imported before those that are there now.
        """
        with self._lock:
            self._patched.update(patched or {})
            self.enabled[:] = (True,)
            self._users.add(self)
            self._import_watch.start()
        self._on_executed(None)

    def uninstall(self) -> None:
        """Remove our layers; one under a foreign wrapper stays, and passes calls through."""
        with self._lock:
            self._import_watch.stop()
            self.enabled.clear()
            self._users.discard(self)
            self._remove_all()

    def repair(self) -> None:
        """Put back patches that another library has removed, and warn of it.

        An instrumentation that was there first restores the methods that it had found when it is
        uninstalled. It is noticed by a request that comes in below the missing patches: that one
        bypasses the pool, and the next one does not.
        """
        try:
            lost = self._put_back()
        except Exception:
            handle_internal_error("patching")
            return
        if not lost:
            return
        warn_and_log(
            f"another library has removed patches of the pool ({', '.join(lost)}), as "
            "instrumentations do when they are uninstalled; they are put back, and calls made in "
            "between bypassed the pool"
        )

    def _put_back(self) -> list[str]:
        with self._lock:
            if not self.enabled:
                return []
            lost = [
                name
                for owner, name, layer in self._layers()
                if layer is None and name in self._patched.get(owner, ())
            ]
            if lost:
                self._wrap(self._wrappers)
            return lost

    def acquire(self, send: object) -> None:
        """Keep the patches of sends in place until *send* is released, also after `uninstall`.

        A send registers itself and then reads `enabled`; `uninstall` clears `enabled` and then
        reads the registered sends. So at least one of them notices the other, and a send takes no
        lock while a pool is installed.
        """
        self._users.add(id(send))  # only its id: an abandoned send must be collectable
        if not self.enabled:
            with self._lock:
                self._wrap(self._send_names)

    def release(self, send: object) -> None:
        """Remove the patches of sends if *send* was the last user of them after `uninstall`."""
        self._users.discard(id(send))
        if not self.enabled:
            with self._lock:
                self._remove_all()

    def status(self) -> dict[str, bool]:
        """Return for each method whether our layer is in place."""
        with self._lock:
            found: dict[str, bool] = {}
            for _, name, layer in self._layers():
                found[name] = found.get(name, True) and layer is not None
            return found

    def _on_executed(self, _module: ModuleType | None) -> None:
        with self._lock:
            if self.enabled and self.is_complete():
                self._wrap(self._wrappers)

    def is_complete(self) -> bool:
        """Return whether all that must be there to be patched is there."""
        return True

    def _wrap(self, names: Collection[str]) -> None:
        for owner, name, layer in self._layers():
            attribute = name.rpartition(".")[2]
            if layer is None and name in names and hasattr(owner, attribute):
                switch = self._users if name in self._send_names else self.enabled
                wrap_object(owner, attribute, FunctionWrapper, (self._wrappers[name], switch))
                self._patched.setdefault(owner, set()).add(name)

    def _remove_all(self) -> None:
        """Remove layers without users; none if the pool is installed again."""
        for owner, name, layer in self._layers():
            needed = self._users if name in self._send_names else self.enabled
            if layer is not None and not needed:
                remove_layer(owner, name.rpartition(".")[2], layer)

    def _layers(self) -> list[tuple[Any, str, Any]]:
        """Return owner, name and our layer, or None, of each method to patch or patched before."""
        targets = dict.fromkeys(self.targets())
        for owner, names in tuple(self._patched.items()):
            targets |= dict.fromkeys((owner, name) for name in names if name in self._wrappers)
        return [
            (owner, name, _find(vars(owner).get(name.rpartition(".")[2]), self._wrappers[name]))
            for owner, name in targets
        ]

    def targets(self) -> Iterator[tuple[Any, str]]:
        """Yield what to patch, of what is imported: the owner, and the name in our table."""
        for module, name in self._functions:
            there: Any = sys.modules.get(module)
            for part in name.split(".")[:-1]:
                there = getattr(there, part, None)
            if hasattr(there, name.rpartition(".")[2]):
                yield there, f"{module}.{name}"


def warn_and_log(text: str) -> None:
    """Issue a log record and a Python warning, which cannot fail the import or the call."""
    _log.warning("%s", text)
    warn_safely(text)


def _find(method: object, wrapper: Wrapper) -> Any:
    """Return the layer whose wrapper function is *wrapper*; other layers may have copied it."""
    for layer in wrapper_chain(method):
        if getattr(layer, "_self_wrapper", None) is wrapper:
            return layer
    return None
