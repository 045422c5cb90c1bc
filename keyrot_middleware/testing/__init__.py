"""Test doubles for programs that use a pool of keys: servers that behave like the providers' own.

Nothing here touches the network beyond 127.0.0.1. A name is loaded on first use, so pytest can
load the plugin in this package (pytest_plugin.py) at next to no cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyrot_middleware.core.model import Limits
    from keyrot_middleware.runtime.pool import SystemClock
    from keyrot_middleware.testing.fake_gemini import FakeGemini
    from keyrot_middleware.testing.fake_openai import FakeAnthropic, FakeOpenAI
    from keyrot_middleware.testing.keys import Clock, FakeClock, FakeKey, QuotaUsage
    from keyrot_middleware.testing.live import plain_websockets
    from keyrot_middleware.testing.replies import Reply, Scripted
    from keyrot_middleware.testing.request import FakeRequest, LoggedRequest

_MODULES = {
    "fake_gemini": ("FakeGemini",),
    "fake_openai": ("FakeAnthropic", "FakeOpenAI"),
    "keys": ("Clock", "FakeClock", "FakeKey", "Limits", "QuotaUsage"),
    "live": ("plain_websockets",),
    "replies": ("Reply", "Scripted"),
    "request": ("FakeRequest", "LoggedRequest"),
    "server": ("SystemClock",),
}
__all__ = [
    "Clock",
    "FakeAnthropic",
    "FakeClock",
    "FakeGemini",
    "FakeKey",
    "FakeOpenAI",
    "FakeRequest",
    "Limits",
    "LoggedRequest",
    "QuotaUsage",
    "Reply",
    "Scripted",
    "SystemClock",
    "plain_websockets",
]


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        module = next((one for one, names in _MODULES.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
