"""State in Redis or Valkey, shared by threads, processes and hosts."""

from __future__ import annotations

from .connections import RedisStateError, check_library
from .state import RedisState
from .url import SCHEMES, RedisUrl, check_url, parse_url

__all__ = [
    "SCHEMES",
    "RedisState",
    "RedisStateError",
    "RedisUrl",
    "check_library",
    "check_url",
    "parse_url",
]
