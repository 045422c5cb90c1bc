"""Questions to one store are put together, and a key that was refused does not queue."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from slowly import Ear, Slow, ring_of, turn_until
from support.servers import wait_for

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def test_an_answer_that_a_call_takes_is_told_by_the_call_alone() -> None:
    """The listener learns of it in time, and need not announce it."""
    slow = Slow(a=A)
    ring = ring_of(slow)
    ear = Ear(ring)
    slow.values["a"] = C
    assert ring.refresh("a")
    assert (ear.renews, ear.announced) == ([frozenset({"a"})], [])


def test_many_calls_with_one_refused_key_are_one_look_up() -> None:
    """All of them learn that the key has a new value."""
    slow = Slow(a=A)
    ring = ring_of(slow)
    slow.gate.clear()
    slow.values["a"] = C
    with ThreadPoolExecutor(20) as calls:
        found = [calls.submit(ring.refresh, "a", 10.0) for _ in range(20)]
        wait_for(lambda: len(slow.asked) == 2)
        time.sleep(0.05)  # the others come while it is under way
        slow.gate.set()
        assert [one.result(10) for one in found] == [True] * 20
    assert len(slow.asked) == 2


def test_keys_refused_meanwhile_are_asked_for_in_one_batch() -> None:
    """A lane has one question under way, and the next is about all who came meanwhile."""
    slow = Slow(a=A, b=B, c=C)
    ring = ring_of(slow)
    slow.asked.clear()
    slow.gate.clear()
    for key_id in ("a", "b", "c"):
        assert not ring.refresh(key_id, wait_s=0.0)
    slow.gate.set()
    wait_for(lambda: len(slow.asked) == 2)
    assert (slow.asked[0], set(slow.asked[1])) == (("a",), {"b", "c"})
    assert slow.most_at_once == 1


def test_a_refused_key_does_not_queue_behind_the_round() -> None:
    """A round of all keys that hangs does not keep a single key waiting."""
    slow = Slow(a=A, b=B)
    ring = ring_of(slow, ttl_s=0.01)
    slow.gate.clear()
    turn_until(ring, lambda: slow.under_way == 1)
    assert not ring.refresh("a", wait_s=0.0)
    wait_for(lambda: slow.under_way == 2)
    assert slow.asked[1:] == [("a", "b"), ("a",)]
    slow.gate.set()


def test_where_no_thread_can_be_had_the_next_look_up_is_tried_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine out of threads for a moment does not end all look-ups of the store."""
    store = Slow(a=A)
    ring = ring_of(store)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(threading.Thread, "start", refuse)
        ring.refresh("a")
    store.values["a"] = B
    assert ring.refresh("a")
