"""Patch methods of the SDK, and remove our own layer only.

The four request methods of the api client stand in google-genai 1.65, 2.x and 3.x alike, and
every model call of the SDK comes through them, one HTTP request each; `_build_request`, below
them, is where the key is put in, and `_request` where the SDK would repeat. Others may wrap
the same methods, before or after us, and put snapshots back in any order; so our layer is
recognised by its wrapper function, and one that is restored after uninstall() passes through.

The methods below serve sends of calls that came in above. A call under way outlives uninstall(),
so for each of its sends they stay in place, or are put back: its key would not go in otherwise.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import ModuleType
from typing import Any

import wrapt
from wrapt import FunctionWrapper, wrap_object

from .imports import ImportWatch, Patched

__all__ = [
    "MODULE",
    "Patcher",
    "remove_layer",
    "wrapper_chain",
]

# Find and take off one layer among several on a method, with wrapt 1.17 as with 2.x ------------
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
    if above is None:
        setattr(owner, name, inner_layer)
    elif issubclass(type(above), _PROXY):
        above.__wrapped__ = inner_layer
    else:
        return False
    return True


_log = logging.getLogger("keyrot_middleware")

MODULE = "google.genai._api_client"
OWNER = "BaseApiClient"

Wrapper = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


class Patcher:
    """The table of patched methods, switched on and off together."""

    def __init__(
        self,
        above: dict[str, Wrapper],
        below: dict[str, Wrapper],
        wire: dict[tuple[str, str], Wrapper],
        enabled: list[bool],
        replace: Callable[[], None] | None = None,
    ) -> None:
        """Take the tables: method name of the api client -> its wrapper function.

        Args:
            above: Where calls come in.
            below: What acts in each send of such a call, and is there until the last has ended.
            wire: What sends requests, by module and name in it; there as long as what is below.
                Of those libraries that are in use: none of them is a reason to patch nothing.
            enabled: Not empty while all is on; wrapt tests its truth without a call of Python.
            replace: Takes all away, for another copy of this package; else `uninstall`.
        """
        self._table = above | below
        self._wire = wire
        self._wrappers = self._table | {".".join(place): one for place, one in wire.items()}
        self._send_names = frozenset((*below, *map(".".join, wire)))
        self._lock = threading.RLock()  # a call that is collected leaves in whatever thread that is
        self._enabled = enabled
        self._users: set[object] = set()
        """Switches on what is below: these seams while they are on, and sends under way."""
        modules = {MODULE, *(module for module, _ in wire)}
        self._import_watch = ImportWatch(modules, self._on_executed, replace or self.uninstall)
        self._patched = self._import_watch.patched

    def install(self, patched: Patched | None = None) -> None:
        """Patch the SDK now, or when it is imported; repair patches that are missing.

        Args:
            patched: What was patched of an SDK that was imported before the one that is there now.
        """
        with self._lock:
            self._patched.update(patched or {})
            self._enabled[:] = (True,)
            self._users.add(self)
            self._import_watch.start()
        self._on_executed(None)

    def uninstall(self) -> None:
        """Restore the SDK; a layer under a foreign wrapper stays, and passes calls through."""
        with self._lock:
            self._import_watch.stop()
            self._enabled.clear()
            self._users.discard(self)
            self._remove_all()

    def acquire(self, send: object) -> None:
        """Keep the patches of sends in place until *send* is released, also after `uninstall`.

        Who comes in first says so and then asks whether all is on, `uninstall` does it the other
        way round: one of the two sees the other, without a lock in the way of every send.
        """
        self._users.add(id(send))  # only its id: an abandoned send must be collectable
        if not self._enabled:
            with self._lock:
                self._wrap(self._send_names)

    def release(self, send: object) -> None:
        """Remove the patches of sends if *send* was the last user of them after `uninstall`."""
        self._users.discard(id(send))
        if not self._enabled:
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
            if self._enabled and self._all_there():
                self._wrap(self._wrappers)

    def _wrap(self, names: Collection[str]) -> None:
        for owner, name, layer in self._layers():
            attribute = name.rpartition(".")[2]
            if layer is None and name in names and attribute in vars(owner):
                switch = self._users if name in self._send_names else self._enabled
                wrap_object(owner, attribute, FunctionWrapper, (self._wrappers[name], switch))
                self._patched.setdefault(owner, set()).add(name)

    def _remove_all(self) -> None:
        """Remove layers without users; none if the pool is installed again."""
        for owner, name, layer in self._layers():
            needed = self._users if name in self._send_names else self._enabled
            if layer is not None and not needed:
                remove_layer(owner, name.rpartition(".")[2], layer)

    def _all_there(self) -> bool:
        """Return whether all methods exist: with half of the patches a key could leak."""
        owner = _owner()
        there = vars(owner) if owner else self._table
        missing = [name for name in self._table if name not in there]
        if missing:
            _log.error(
                "this google-genai has no %s.%s, so calls are not rotated; supported: 1.65 to 3.x",
                OWNER,
                ", ".join(missing),
            )
        return not missing

    def _layers(self) -> list[tuple[Any, str, Any]]:
        """Return owner, name and our layer, or None, of each method to patch or patched before."""
        targets = dict.fromkeys(self._targets())
        for owner, names in tuple(self._patched.items()):
            targets |= dict.fromkeys((owner, name) for name in names if name in self._wrappers)
        return [
            (owner, name, _find(vars(owner).get(name.rpartition(".")[2]), self._wrappers[name]))
            for owner, name in targets
        ]

    def _targets(self) -> Iterator[tuple[Any, str]]:
        """Yield what to patch, if the SDK is imported."""
        owner = _owner()
        if owner is None:
            return
        for name in self._table:
            yield owner, name
        for module, name in self._wire:
            there: Any = sys.modules.get(module)
            for part in name.split(".")[:-1]:
                there = getattr(there, part, None)
            if there is not None and name.rpartition(".")[2] in vars(there):
                yield there, f"{module}.{name}"


def _owner() -> type | None:
    module = sys.modules.get(MODULE)
    return getattr(module, OWNER, None)


def _find(method: object, wrapper: Wrapper) -> Any:
    """Return the layer whose wrapper function is *wrapper*; other layers may have copied it."""
    for layer in wrapper_chain(method):
        if getattr(layer, "_self_wrapper", None) is wrapper:
            return layer
    return None
