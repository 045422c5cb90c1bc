"""Texts shared by spans, log lines and the command."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.failures import REJECTIONS
from ..core.model import Block
from ..core.text import utc

__all__ = ["MAX_BLOCKED_KEYS", "format_blocked_keys", "format_time"]

MAX_BLOCKED_KEYS = 10
"""Most keys listed in one text."""


def format_time(at: float) -> str:
    """Format epoch seconds: `2026-01-02 08:00:00Z`."""
    return f"{utc(at):%Y-%m-%d %H:%M:%SZ}"


def format_blocked_keys(blocked: Mapping[str, Block]) -> list[str]:
    """Return why each key is not available: `flash_01: quota_day until 2026-01-02 08:00:00Z`."""
    blocks = sorted(blocked.items())
    texts = [f"{key_id}: {_format_block(block)}" for key_id, block in blocks[:MAX_BLOCKED_KEYS]]
    if len(blocks) > MAX_BLOCKED_KEYS:
        texts.append(f"and {len(blocks) - MAX_BLOCKED_KEYS} more")
    return texts


def _format_block(block: Block) -> str:
    if block.reason in REJECTIONS:
        until = format_time(block.until)
        return f"{block.reason}, rejected; replace its value; tried again at {until}"
    return f"{block.reason} until {format_time(block.until)}"
