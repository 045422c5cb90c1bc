"""Reading JSON fields in either spelling: Google takes `displayName` and `display_name` alike."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["pick"]

_CAPITAL = re.compile("([A-Z])")


def pick(value: Any, camel: str) -> Any:
    """Return a field of a JSON object by its camelCase name, or its snake_case one, or None."""
    if not isinstance(value, dict):
        return None
    if camel in value:
        return value[camel]
    return value.get(_CAPITAL.sub(r"_\1", camel).lower())
