"""Input tokens, counted simply and always alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keyrot_middleware.testing.answers import pick

__all__ = ["count_tokens", "texts"]

_SPEAKING = ("systemInstruction", "contents", "content", "requests", "generateContentRequest")


def texts(value: Any) -> Iterator[str]:
    """Yield every `text` inside a JSON value."""
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "text" and isinstance(inner, str):
                yield inner
            else:
                yield from texts(inner)


def count_tokens(body: dict[str, Any]) -> int:
    """Count a quarter of the characters of all texts, rounded up; 1 at least."""
    characters = sum(len(text) for name in _SPEAKING for text in texts(pick(body, name)))
    return max(1, -(-characters // 4))
