"""How tests ask for a stream: of the SDK's methods, and of its api client below them."""

from __future__ import annotations

from four_modes import MODEL

__all__ = ["ASKED", "body", "path_of"]

ASKED = {"model": MODEL, "contents": "hello"}


def path_of() -> str:
    """Give the path of a stream, as the SDK calls its api client."""
    return f"models/{MODEL}:streamGenerateContent?alt=sse"


def body() -> dict:
    """Give a body, as the SDK calls its api client."""
    return {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
