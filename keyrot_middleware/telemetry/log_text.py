"""Texts for people that spans and log lines share."""

from __future__ import annotations

from ..core.failures import REJECTIONS
from ..core.flow import Exhausted
from ..core.model import Block
from ..core.text import utc

__all__ = ["BLOCKED_SHOWN", "blocked", "format_time"]

BLOCKED_SHOWN = 10
"""As many keys as a person will read."""


def format_time(at: float) -> str:
    """Write epoch seconds: `2026-01-02 08:00:00Z`."""
    return f"{utc(at):%Y-%m-%d %H:%M:%SZ}"


def blocked(error: Exhausted) -> list[str]:
    """Say why each key cannot serve: `flash_01: quota_day until 2026-01-02 08:00:00Z`."""
    blocks = sorted(error.unavailable.blocks.items())
    texts = [f"{key_id}: {_reason(block)}" for key_id, block in blocks[:BLOCKED_SHOWN]]
    if len(blocks) > BLOCKED_SHOWN:
        texts.append(f"and {len(blocks) - BLOCKED_SHOWN} more")
    return texts


def _reason(block: Block) -> str:
    if block.reason in REJECTIONS:
        return f"{block.reason}, rejected; replace its value; tried again at {format_time(block.until)}"
    return f"{block.reason} until {format_time(block.until)}"
