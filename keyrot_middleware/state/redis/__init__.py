"""`redis://` and its kin: one truth for threads, processes and hosts, in Redis or Valkey.

backend.py   the state itself: what to ask the scripts, and what their answers mean
codec.py     between our values and the words that the scripts take and give
scripts.py   the scripts of ../lua, by the name that the server knows them by
place.py     what a URL says, tls.py of TLS; route.py: which server that is just now
lines.py     connections for threads, which dial.py opens; alines.py and adial.py: for tasks
"""

from __future__ import annotations

from .backend import RedisState
from .dial import check_library
from .place import SCHEMES, Place, check_place, read_place
from .trouble import RedisTrouble

__all__ = [
    "SCHEMES",
    "Place",
    "RedisState",
    "RedisTrouble",
    "check_library",
    "check_place",
    "read_place",
]
