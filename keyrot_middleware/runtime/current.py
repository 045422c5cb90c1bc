"""The pool that install() put in place in this process, for what is below install()."""

from __future__ import annotations

from .pool import Pool

__all__ = ["current_pool", "set_current_pool"]

_current: Pool | None = None


def current_pool() -> Pool | None:
    """Return the pool in place, or None."""
    return _current


def set_current_pool(pool: Pool | None) -> None:
    """Set the pool in place; None: there is none."""
    global _current  # noqa: PLW0603 - one SDK in a process, so one pool in place
    _current = pool
