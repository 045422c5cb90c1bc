"""A cache over slow stores: calls wait for a limited time, and late answers are used."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from support.servers import wait_for
from support.stores import GatedStore, cache_of, record_changes, tick_until

from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets import cache as cache_module
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from keyrot_middleware.secrets.stores import InlineStore

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def test_a_start_waits_for_a_slow_store_for_a_limited_time(caplog) -> None:
    """Other stores' keys are available at once; the slow one's are added when it answers."""
    slow = GatedStore(a=A)
    slow.gate.clear()
    places = {"a": SecretLocation(slow), "b": SecretLocation(InlineStore({"b": Secret(B)}))}
    cache = SecretCache(places, start_timeout_s=0.05)
    changes = record_changes(cache)
    assert cache.resolved == ("b",)
    assert cache.unresolved == {"a": "key a: no answer yet from the secret store slow"}
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    slow.gate.set()
    wait_for(lambda: cache.resolved == ("a", "b"))
    assert cache.unresolved == {}
    wait_for(lambda: changes)
    assert changes == [frozenset({"a"})]


def test_a_rejected_key_is_waited_for_briefly_and_returns_later(monkeypatch) -> None:
    """The call continues; the answer is used when it arrives, and the listener is notified."""
    now = [100.0]
    monkeypatch.setattr(cache_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    changes = record_changes(cache)
    slow.gate.clear()
    slow.values["a"] = C
    assert not cache.refresh("a", timeout_s=0.1)
    began, now[0] = time.monotonic(), 200.0
    assert not cache.refresh("a", timeout_s=60.0), "the next call does not wait once more"
    assert time.monotonic() - began < 30.0
    assert cache.value("a") == Secret(A)
    slow.gate.set()
    wait_for(lambda: changes)
    assert cache.value("a") == Secret(C)
    assert changes == [frozenset({"a"})]
    assert slow.lookups == [("a",), ("a",)], "one look-up for both calls"


def test_all_keys_are_looked_up_again_on_schedule() -> None:
    """`tick()` never blocks, returns when to call it again, and starts look-ups that are due."""
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow)
    wait_for(lambda: 150 <= cache.tick() <= 300)
    assert len(slow.lookups) == 1, "nothing was due"
    quick = cache_of(slow, ttl_s=0.01)
    changes = record_changes(quick)
    slow.values["b"] = C
    tick_until(quick, lambda: quick.value("b") == Secret(C))
    wait_for(lambda: changes)
    assert changes == [frozenset({"b"})]


def test_a_store_that_fails_keeps_the_last_values_and_is_logged_once(caplog) -> None:
    """One warning when it begins, one line when it is over; no text of the exception."""
    caplog.set_level(logging.INFO)
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow, ttl_s=0.01)
    slow.down = True
    tick_until(cache, lambda: len(slow.lookups) > 3)
    tick_until(cache, lambda: cache.stale)
    assert (cache.value("a"), cache.resolved) == (Secret(A), ("a", "b"))
    assert "failed with ConnectionError" in cache.stale["a"]
    slow.down = False
    tick_until(cache, lambda: not cache.stale)
    tick_until(cache, lambda: "all keys have a current value" in caplog.text)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    reason = "key a: the secret store slow failed with ConnectionError"
    text = f"secret store slow: 2 keys have no current value; it is asked again ({reason})"
    assert lines == [
        ("WARNING", text),
        ("INFO", "secret store slow: all keys have a current value"),
    ]


def test_references_can_be_replaced() -> None:
    """Keys are added and removed: those that stay keep their value without a new look-up."""
    one, two = GatedStore(a=A, b=B), GatedStore(c=C)
    cache = cache_of(one)
    cache.set_locations({"b": SecretLocation(one), "c": SecretLocation(two)})
    assert cache.resolved == ("b", "c")
    assert (one.lookups, two.lookups) == ([("a", "b")], [("c",)])
    assert cache.value("a") == Secret(A), "a call may be under way with it"
    assert A not in cache.redact(f"x {A}")
    cache.set_locations(
        {"b": SecretLocation(one), "c": SecretLocation(two), "d": SecretLocation(GatedStore(d=A))}
    )
    assert cache.value("d") == Secret(A), "a value may move to another id"
    assert cache.unresolved == {}


A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def waiting() -> int:
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
