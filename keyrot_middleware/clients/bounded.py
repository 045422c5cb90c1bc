"""Bodies up to a bound: what is kept of a request, of a reply and of an error."""

from __future__ import annotations

from typing import Any

from .redaction import ENOUGH

LONGEST_BODY = 32 * 1024 * 1024
"""Bytes of a body from a generator that are kept, so that it can be sent again. Google takes 20 MB
in one request (https://ai.google.dev/gemini-api/docs/files). Nor is more kept of a reply."""


async def read_bounded(pieces: Any, most: int = LONGEST_BODY) -> tuple[bytes, Any]:
    """Return the beginning of a body, and what is left of it; None for nothing."""
    read, is_async = bytearray(), hasattr(pieces, "__anext__")
    while (piece := await anext(pieces, None) if is_async else next(pieces, None)) is not None:
        read += piece
        if len(read) > most:
            return bytes(read), pieces
    return bytes(read), None


async def until_enough(pieces: Any) -> bytes:
    """Read as much of an error as is kept."""
    return (await read_bounded(pieces, ENOUGH))[0][:ENOUGH]
