"""Why a secret could not be read, as a value: stores give it back, and raise nothing."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Answer", "Fault", "Reach"]


class Reach(Enum):
    """What a failure says about the other secrets of the store, and about trying again."""

    HERE = "this secret only; the next try would fail too"
    BUSY = "this request only; another try may work: throttled, a failure of the server"
    LOGIN = "the login is no longer taken: log in again, once"
    STORE = "every secret: nobody answers, or nobody can log in"


class Fault(NamedTuple):
    """Why there is no value."""

    reach: Reach
    words: str
    """For people: what is wrong and what to do; never a value or a token."""


Answer = str | bytes | Fault
"""What a store has for one secret."""
