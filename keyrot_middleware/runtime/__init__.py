"""What is in force for the calls that are made now.

The pool that install() put in place in this process, and what `bypass()`, `workload()` and
`project()` say.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from .pool import Pool

bypassed: ContextVar[bool] = ContextVar("keyrot_bypassed", default=False)
workload: ContextVar[str | None] = ContextVar("keyrot_workload", default=None)
session: ContextVar[str | None] = ContextVar("keyrot_session", default=None)
"""A digest of the session that `workload()` names; None: no session."""
required_tiers: ContextVar[frozenset[str] | None] = ContextVar("keyrot_tiers", default=None)
"""The tiers that `workload()` allows; None: all."""
required_project: ContextVar[str | None] = ContextVar("keyrot_project", default=None)
"""The project that `project()` names; None: all are allowed."""


@dataclass(slots=True, repr=False, eq=False)
class SdkCall:
    """What google-genai knows of the request that it sends, and the request does not say."""

    own: str = ""
    """The client's own key, for which the placeholder stands in the request."""
    attempts: int = 1
    """How often the client's retry options would send it."""
    repeats: bool = False
    """The client itself repeats it after a 5xx or a lost connection."""


sdk_call: ContextVar[SdkCall | None] = ContextVar("keyrot_sdk_call", default=None)

_current: Pool | None = None


def current_pool() -> Pool | None:
    """Return the pool in place, or None."""
    return _current


def set_current_pool(pool: Pool | None) -> None:
    """Set the pool in place; None: there is none."""
    global _current  # noqa: PLW0603 - one SDK in a process, so one pool in place
    _current = pool
