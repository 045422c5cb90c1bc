"""State in Redis or Valkey, shared by threads, processes and hosts."""

from __future__ import annotations

from .connections import RedisStateError, check_library
from .state import RedisState
from .url import check_url, parse_url

__all__ = ["RedisState", "RedisStateError", "check_library", "check_url", "parse_url"]
