"""Test doubles for programs that use a pool of Gemini keys: a server that behaves like Google's.

Standard library only, and nothing here touches the network beyond 127.0.0.1.
"""

from __future__ import annotations

from keyrot_middleware.testing.clock import Clock, FakeClock, SystemClock
from keyrot_middleware.testing.fake_gemini import FakeGemini
from keyrot_middleware.testing.keys import FakeKey
from keyrot_middleware.testing.log import LoggedRequest
from keyrot_middleware.testing.quota import Limits, Usage
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
    "Reply",
    "Scripted",
    "SystemClock",
    "Usage",
]
