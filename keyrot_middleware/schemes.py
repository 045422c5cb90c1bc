"""Which secret stores there are, by scheme: those of this package, and those that plug in.

A distribution plugs one in by an entry point of the group `keyrot_middleware.secret_stores`: its
name is the scheme, its value a callable that takes the environment and gives a `SecretStore`.
Entry points are read only where a scheme is not one of ours, since that reads files.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

__all__ = ["BUILT_STORES", "GROUP", "known", "plugged_in"]

GROUP = "keyrot_middleware.secret_stores"

BUILT_STORES = ("env", "vault", "aws", "azure", "gcp", "file")


def plugged_in() -> dict[str, EntryPoint]:
    """Find the stores of other distributions, by scheme; ours cannot be replaced."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    return {name: point for name, point in found.items() if name not in BUILT_STORES}


def known(scheme: str) -> bool:
    """Tell whether there is a store of that scheme."""
    return scheme in BUILT_STORES or scheme in plugged_in()
