"""`redis://` and its kin: one truth for threads, processes and hosts, in Redis or Valkey."""

from __future__ import annotations

from .connections import RedisStateError, check_library
from .state import RedisState
from .url import SCHEMES, Place, check_place, read_place

__all__ = [
    "SCHEMES",
    "Place",
    "RedisState",
    "RedisStateError",
    "check_library",
    "check_place",
    "read_place",
]
