"""Which SDK methods are patched, put on and taken off as our own layer only.

The four request methods of the api client stand in google-genai 1.75, 2.x and 3.x alike, and
every model call of the SDK comes through them, one HTTP request each; `_build_request`, below
them, is where the key is put in, and `_request` where the SDK would repeat. Others may wrap
the same methods, before or after us, and put snapshots back in any order; so our layer is
recognised by its wrapper function, and one that was brought back from the dead passes through.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wrapt import (
    FunctionWrapper,
    WrapperNotOutermostError,
    register_post_import_hook,
    unwrap_object,
    wrap_object,
    wrapper_chain,
)

__all__ = ["MODULE", "Seams"]

_log = logging.getLogger("keyrot_middleware")

MODULE = "google.genai._api_client"
OWNER = "BaseApiClient"

Wrapper = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


class Seams:
    """The table of patched methods, switched on and off together."""

    def __init__(self, table: dict[str, Wrapper]) -> None:
        """Take *table*: method name of the api client -> its wrapper function."""
        self._table = table
        self._lock = threading.Lock()
        self._on: list[bool] = []
        """On while there is something in it; wrapt tests its truth without a call of Python."""
        self._hooked = False

    def put_on(self) -> None:
        """Catch calls from now on, or from the moment the SDK is imported."""
        with self._lock:
            self._on[:] = (True,)
            hooked, self._hooked = self._hooked, True
        if not hooked:
            register_post_import_hook(self._imported, MODULE)
        else:
            self._imported(None)

    def take_off(self) -> None:
        """Restore what was there; a layer that others have buried stays, and passes through."""
        with self._lock:
            self._on.clear()
            for owner, name, layer in self._layers():
                if layer is not None:
                    _remove(owner, name, layer)

    def in_place(self) -> dict[str, bool]:
        """Tell for each method whether our layer is still there."""
        with self._lock:
            return {name: layer is not None for _, name, layer in self._layers()}

    def _imported(self, _module: ModuleType | None) -> None:
        with self._lock:
            if not self._on or not self._all_there():
                return
            for owner, name, layer in self._layers():
                if layer is None:
                    wrap_object(owner, name, FunctionWrapper, (self._table[name], self._on))

    def _all_there(self) -> bool:
        """Refuse to patch a part only: a key could then go out where it should not."""
        owner = _owner()
        missing = [name for name in self._table if name not in vars(owner)] if owner else []
        if missing:
            _log.error(
                "this google-genai has no %s.%s, so calls are not rotated; supported: 1.75 to 3.x",
                OWNER,
                ", ".join(missing),
            )
        return not missing

    def _layers(self) -> list[tuple[type, str, Any]]:
        owner = _owner()
        if owner is None:
            return []
        return [
            (owner, name, _find(vars(owner).get(name), wrapper))
            for name, wrapper in self._table.items()
        ]


def _owner() -> type | None:
    module = sys.modules.get(MODULE)
    return getattr(module, OWNER, None)


def _find(method: object, wrapper: Wrapper) -> Any:
    """Find the layer whose wrapper is ours, by what it does rather than by which object it is."""
    for layer in wrapper_chain(method):
        if getattr(layer, "_self_wrapper", None) is wrapper:
            return layer
    return None


def _remove(owner: type, name: str, layer: Any) -> None:
    try:
        unwrap_object(owner, name, layer, missing_ok=True)
    except WrapperNotOutermostError:
        return
