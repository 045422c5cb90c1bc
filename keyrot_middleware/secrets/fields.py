"""From a stored secret to the value of one key: the whole text, or one field of a JSON object."""

from __future__ import annotations

import json
from typing import Any

from ..core.text import holds_key, nearest
from .base import Secret

__all__ = ["key_in"]

_BINARY = "it is binary, or holds characters that cannot be printed; store the key as UTF-8 text"


def key_in(stored: str | bytes, field: str | None, key_id: str) -> Secret | str:
    """Find a key in what a store has.

    Args:
        stored: The secret; bytes are read as UTF-8.
        field: Of a JSON object; None: the whole text, or the field *key_id* of a JSON object.
        key_id: Whose value is looked for.

    Returns:
        The value, or in words why there is none; the words show nothing of what is stored.
    """
    text = _text(stored)
    if text is None:
        return _BINARY
    found = _object(text)
    if field is None and found is None:
        return _value(text) or "it is empty"
    if found is None:
        return f"it is no JSON object, so it has no field {field}"
    return _field(found, field or key_id, named=field is not None)


def _text(stored: str | bytes) -> str | None:
    if isinstance(stored, str):
        return stored.removeprefix("\ufeff")
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _object(text: str) -> dict[str, Any] | None:
    """Read a JSON object; None where the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _field(found: dict[str, Any], name: str, *, named: bool) -> Secret | str:
    if name not in found:
        # A key may have been written as a name by mistake: then nothing is suggested.
        hint = nearest(name, (other for other in found if not holds_key(other)))
        more = "" if named else "; name the field after # in the key's place"
        return f"the JSON object in it has no field {name}{more}{hint and '.'}{hint}"
    value = found[name]
    if not isinstance(value, str):
        return f"the field {name} of its JSON object is no text"
    return _value(value) or f"the field {name} of its JSON object is empty"


def _value(text: str) -> Secret | str:
    """Refuse what was binary once; a stray U+FFFD shows where a tool has made text of it."""
    value = text.strip()
    return Secret(value) if value.isprintable() and "\ufffd" not in value else _BINARY
