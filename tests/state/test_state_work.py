"""What a decision of a shared state costs, as exact counts: no load moves them."""

from __future__ import annotations

from pathlib import Path

from support.servers import server
from support.work import redis_work, sqlite_work


def test_a_pair_in_redis_is_one_script_and_seven_commands_in_it() -> None:
    """And this package runs at most 1,300 bytecodes, those of its own counts among them."""
    work = redis_work(server("valkey"))
    assert work.commands == 8
    assert work.bytecodes <= 1_300


def test_a_pair_in_a_file_is_one_read_and_one_write(tmp_path: Path) -> None:
    """Of rare records it asks whether there are any, not for each name."""
    work = sqlite_work(tmp_path / "state.sqlite3")
    assert work.bound <= 5
    assert work.writes == 1
