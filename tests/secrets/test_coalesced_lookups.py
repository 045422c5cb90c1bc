"""Look-ups of one store are combined."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.servers import wait_for
from support.stores import GatedStore, cache_of, record_changes

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def test_the_listener_is_notified_of_a_new_value_before_the_call() -> None:
    """The pool has made the key available when `refresh` returns, and is notified once."""
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    changes = record_changes(cache)
    slow.values["a"] = C
    assert cache.refresh("a")
    assert changes == [frozenset({"a"})]


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


def test_keys_rejected_meanwhile_are_looked_up_in_one_batch() -> None:
    """A queue has one look-up in flight, and the next one covers all keys that came meanwhile."""
    slow = GatedStore(a=A, b=B, c=C)
    cache = cache_of(slow)
    slow.lookups.clear()
    slow.gate.clear()
    for key_id in ("a", "b", "c"):
        assert not cache.refresh(key_id, timeout_s=0.0)
    slow.gate.set()
    wait_for(lambda: len(slow.lookups) == 2)
    assert (slow.lookups[0], set(slow.lookups[1])) == (("a",), {"b", "c"})
    assert slow.most_at_once == 1


def test_after_a_look_up_without_a_thread_the_next_one_is_tried(monkeypatch) -> None:
    """A machine without threads for a moment does not end all look-ups of the store."""
    store = GatedStore(a=A)
    cache = cache_of(store)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(threading.Thread, "start", refuse)
        cache.refresh("a")
    store.values["a"] = B
    assert cache.refresh("a")
