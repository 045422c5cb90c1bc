"""The base of a class whose test is not in the sdist."""

from __future__ import annotations


class TelemetryHandlerScopeTest:
    """Have no test."""
