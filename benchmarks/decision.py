"""What a decision of a shared state costs, in exact counts."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from support.servers import BINARIES, Server
from support.work import KEYS, redis_work, sqlite_work

from . import instructions
from .page import Row

__all__ = ["rows"]


def rows(redis: Server) -> list[Row]:
    """Count the work of an acquire and settle in Redis and in a file."""
    pair = f"acquire and settle, {KEYS} keys without limits"
    with TemporaryDirectory(prefix="keyrot-bench-") as folder:
        file = sqlite_work(Path(folder) / "state.sqlite3")
    in_redis = redis_work(redis)
    return [
        (f"{pair}, in Redis: bytecodes of ours", "≤ 1,300", f"{in_redis.bytecodes:,.0f}"),
        (f"{pair}, in Redis: commands, the script and those in it", "9", f"{in_redis.commands:g}"),
        (f"{pair}, in a file: values that reads ask for", "5", f"{file.bound:g}"),
        (f"{pair}, in a file: writes", "1", f"{file.writes:g}"),
        *instructions.rows(redis),
    ]


if __name__ == "__main__":
    valkey = Server(BINARIES["valkey"])
    try:
        for row in rows(valkey):
            print(" | ".join(row))
    finally:
        valkey.remove()
