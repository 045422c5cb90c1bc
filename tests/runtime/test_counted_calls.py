"""Calls are counted for the page without making a call wait for the list of prices."""

from __future__ import annotations

import threading
from typing import Any

from support.modes import ask
from support.servers import wait_for

from keyrot_middleware.prices import PriceList
from keyrot_middleware.runtime.activity import COUNT_AT


def test_the_first_price_is_asked_for_in_the_background(
    pool: Any, connect: Any, monkeypatch: Any
) -> None:
    """The list of prices is imported with it, which takes a second; later a call may count."""
    threads: list[str] = []

    def cost(*_: Any) -> float:
        threads.append(threading.current_thread().name)
        return 0.001

    monkeypatch.setattr(PriceList, "cost", cost)
    pool("A")
    client = connect()
    for _ in range(COUNT_AT):
        ask("sync", client)
    wait_for(lambda: len(threads) == COUNT_AT)
    assert set(threads) == {"keyrot-refresher-default"}
    for _ in range(COUNT_AT):
        ask("sync", client)
    assert threading.current_thread().name in threads
