"""Test doubles for programs that use a pool of Gemini keys: a server that behaves like Google's.

Nothing here touches the network beyond 127.0.0.1. A name is loaded on first use, so pytest can
load the plugin in this package (pytest_plugin.py) at next to no cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyrot_middleware.testing.clock import Clock, FakeClock, SystemClock
    from keyrot_middleware.testing.fake_gemini import FakeGemini
    from keyrot_middleware.testing.keys import FakeKey
    from keyrot_middleware.testing.live import plain_websockets
    from keyrot_middleware.testing.log import LoggedRequest
    from keyrot_middleware.testing.quota import Limits, QuotaUsage
    from keyrot_middleware.testing.replies import Reply, Scripted
    from keyrot_middleware.testing.request import FakeRequest

__all__ = [
    "Clock",
    "FakeClock",
    "FakeGemini",
    "FakeKey",
    "FakeRequest",
    "Limits",
    "LoggedRequest",
    "QuotaUsage",
    "Reply",
    "Scripted",
    "SystemClock",
    "plain_websockets",
]

_MODULES = {
    "Clock": "clock",
    "FakeClock": "clock",
    "FakeGemini": "fake_gemini",
    "FakeKey": "keys",
    "FakeRequest": "request",
    "Limits": "quota",
    "LoggedRequest": "log",
    "Reply": "replies",
    "Scripted": "replies",
    "SystemClock": "clock",
    "QuotaUsage": "quota",
    "plain_websockets": "live",
}


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
