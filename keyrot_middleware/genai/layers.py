"""Find and take off one layer among several on a method, with wrapt 1.17 as with 2.x.

wrapt has this itself from 2.4 on. Programs with opentelemetry-instrumentation up to 0.61 have
wrapt 1, and could not install us otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import wrapt

__all__ = ["take_off", "wrapper_chain"]

_PROXY: type = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)
"""The class of all layers, in wrapt 2 and in wrapt 1."""
_DEEPEST = 64


def wrapper_chain(method: Any) -> Iterator[Any]:
    """Give the layers of a method, the outermost first, and what is below them last."""
    for _ in range(_DEEPEST):
        yield method
        try:
            method = method.__wrapped__
        except AttributeError:
            return


def take_off(owner: Any, name: str, layer: Any) -> bool:
    """Take a layer of wrapt off a method or function that *owner*, a class or module, itself has.

    Returns:
        False where it stays: somebody has put a plain function over it, which holds it fast.
    """
    above = None
    for one in wrapper_chain(vars(owner).get(name)):
        if one is layer:
            break
        above = one
    else:
        return True  # it is not there any more
    below = layer.__wrapped__
    if above is None:
        setattr(owner, name, below)
    elif issubclass(type(above), _PROXY):
        above.__wrapped__ = below
    else:
        return False
    return True
