"""One send that failed, and what is written about it on the exception that comes out."""

from __future__ import annotations

from dataclasses import dataclass

from .failures import describe
from .model import Verdict
from .text import utc

__all__ = ["Attempt", "note"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One send that failed."""

    key_id: str
    verdict: Verdict
    until: float | None


def note(number: int, attempt: Attempt, hint: str | None = None) -> str:
    """Write one attempt down for a person: which key, why it failed, until when it cools down.

    Args:
        number: From 1.
        attempt: The attempt.
        hint: What may be behind the rejection of its key.
    """
    text = f"keyrot: attempt {number} with key {attempt.key_id}: {describe(attempt.verdict)}"
    if attempt.until is None:
        return text
    at = f"{utc(attempt.until):%Y-%m-%d %H:%M:%SZ}"
    if attempt.verdict.rejected:
        why = f". {hint}" if hint else ""
        return f"{text}, rejected; replace its value; tried again at {at}{why}"
    return f"{text}, cooling down until {at}"
