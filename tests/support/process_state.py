"""What a library can leave behind in a process: recorded, and compared with what was there before.

`watch_registrations` must run before the libraries are imported whose registrations count: Python
has no public way to list what is registered with `atexit` and `os.register_at_fork`.
"""

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

LOGGERS = (
    "apprise",
    "urllib3.connectionpool",
    "",
    "keyrot_middleware",
    "google_genai",
    "google_genai.models",
    "httpx",
    "httpcore",
)
PATCHED_LIBRARIES = ("google.genai", "httpx", "httpx2", "aiohttp", "websockets")

at_exit: list[Callable[..., object]] = []
"""What is registered with `atexit`."""
at_fork: list[dict[str, Any]] = []
"""What is registered with `os.register_at_fork`; it cannot be taken back."""


def watch_registrations() -> None:
    """Record registrations with `atexit` and `os.register_at_fork` from now on."""
    register, unregister = atexit.register, atexit.unregister
    register_at_fork = os.register_at_fork

    def watched_register(function: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        at_exit.append(function)
        return register(function, *args, **kwargs)

    def watched_unregister(function: Callable[..., object]) -> None:
        at_exit[:] = [other for other in at_exit if other != function]
        unregister(function)

    def watched_register_at_fork(**functions: Any) -> None:
        at_fork.append(functions)
        register_at_fork(**functions)

    atexit.register, atexit.unregister = watched_register, watched_unregister  # type: ignore[assignment]
    os.register_at_fork = watched_register_at_fork  # type: ignore[assignment]


def snapshot() -> dict[str, Any]:
    """Return what is in place in this process, by name; compare it with `differences`.

    Values are kept as they are, so that no other object can get the identity of one of them.
    """
    gc.collect()
    found: dict[str, Any] = {
        "gc.callbacks": list(gc.callbacks),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "atexit": list(at_exit),
        "at_fork": len(at_fork),
        "warnings.filters": list(warnings.filters),
        "sys.meta_path": list(sys.meta_path),
        "sys.path": list(sys.path),
        "sys.path_hooks": list(sys.path_hooks),
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace()],
        "os.environ": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "context": {variable.name: value for variable, value in copy_context().items()},
        "sockets": _open_sockets(),
    }
    for name in LOGGERS:
        log = logging.getLogger(name)
        found[f"logger {name or 'root'}"] = (
            list(log.handlers),
            list(log.filters),
            log.level,
            log.propagate,
            log.disabled,
        )
    for module in [m for name, m in list(sys.modules.items()) if _may_be_patched(name)]:
        _add_attributes(found, module)
    return found


def settled_snapshot(before: dict[str, Any], seconds: float = 20.0) -> dict[str, Any]:
    """Return a snapshot once threads and sockets have ended, or the last one when they do not."""
    until, after = time.monotonic() + seconds, snapshot()
    while any(after[name] != before[name] for name in ("threads", "sockets")):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
        after = snapshot()
    return after


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each thing of *before* that is another one, or missing, in *after*.

    What a module that was imported meanwhile has is new in *after*, and no difference.
    """
    return [
        f"{name}: {was!r} -> {after.get(name)!r}"
        for name, was in before.items()
        if was != after.get(name)
    ]


def _may_be_patched(name: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for library in PATCHED_LIBRARIES)


def _add_attributes(found: dict[str, Any], module: Any) -> None:
    functions = {
        name: value for name, value in vars(module).items() if callable(value)
    }  # a submodule that is imported later becomes an attribute too, and is no change
    found[f"functions of {module.__name__}"] = functions
    for name, value in functions.items():
        if isinstance(value, type) and value.__module__ == module.__name__:
            kept = ("__init__", "__call__", "__getattr__")
            found[f"class {module.__name__}.{name}"] = {
                name: _Same(value)
                for name, value in list(vars(value).items())
                if not name.startswith("__") or name in kept
            }


class _Same(NamedTuple):
    """Equal to the same object alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _open_sockets() -> int:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return 0
    count = 0
    for entry in folder.iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except OSError:  # the descriptor by which the folder itself is read
            continue
    return count
