"""What the shell completes after `keyrot reset`."""

from __future__ import annotations

import warnings

__all__ = ["key_ids"]


def key_ids(incomplete: str) -> list[str]:
    """Return the ids of the configured keys that begin so; none where the settings are wrong."""
    from ..config import load  # noqa: PLC0415 - only where the shell asks
    from ..errors import KeyrotError  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keys = load().keys
    except KeyrotError:
        return []
    return [key.key_id for key in keys if key.key_id.startswith(incomplete)]
