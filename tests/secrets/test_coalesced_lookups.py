"""Look-ups of one store are combined."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from support.servers import wait_for
from support.stores import GatedStore, cache_of

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def waiting() -> int:
    """Count the threads that wait for an event."""
    frames = sys._current_frames().values()
    return sum(frame.f_code is threading.Condition.wait.__code__ for frame in frames)


def test_many_calls_with_one_rejected_key_are_one_look_up() -> None:
    """All of them get the key's new value."""
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    slow.gate.clear()
    slow.values["a"] = C
    before = waiting()
    with ThreadPoolExecutor(20) as calls:
        found = [calls.submit(cache.refresh, "a", 90.0) for _ in range(20)]
        wait_for(lambda: waiting() == before + 21, 60)  # the twenty, and the store
        slow.gate.set()
        assert [one.result(10) for one in found] == [True] * 20
    assert len(slow.lookups) == 2
