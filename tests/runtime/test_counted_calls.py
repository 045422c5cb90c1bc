"""Calls are counted and priced off the path of calls."""

from __future__ import annotations

import threading
from typing import Any

from support.modes import ask
from support.servers import wait_for

from keyrot_middleware.prices import PriceList


def test_calls_are_priced_by_the_refresher(pool: Any, connect: Any, monkeypatch: Any) -> None:
    """Also where the state is of this process: no call prices what others have used."""
    threads: list[str] = []

    def cost(*_: Any) -> float:
        threads.append(threading.current_thread().name)
        return 0.001

    monkeypatch.setattr(PriceList, "cost", cost)
    pool("A")
    client = connect()
    for _ in range(20):
        ask("sync", client)
    wait_for(lambda: len(threads) == 20)
    assert set(threads) == {"keyrot-refresher-default"}
