"""Values that stood in a setting itself (`GEMINI_API_KEYS`, an argument of install())."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SecretError
from .base import Secret

__all__ = ["InlineStore"]


class InlineStore:
    """Give back what it was made with."""

    scheme = "inline"
    instant = True
    fixed = True

    def __init__(self, values: Mapping[str, Secret]) -> None:
        self._values = dict(values)

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up by id; their places do not matter."""
        return {
            key_id: self._values.get(key_id)
            or SecretError(f"key {key_id}: no value was given for it")
            for key_id in refs
        }
