"""A cache over slow stores: nobody waits longer than wanted, and late answers are used."""

from __future__ import annotations

import logging
import os
import threading
import time
from types import SimpleNamespace

import pytest
from support.servers import wait_for
from support.stores import GatedStore, cache_of, record_changes, tick_until

from keyrot_middleware.secrets import Secret, SecretCache, SecretLocation
from keyrot_middleware.secrets import refresh as refresh_module
from keyrot_middleware.secrets.local import InlineStore

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")


def test_a_start_waits_for_a_slow_store_only_so_long(caplog: pytest.LogCaptureFixture) -> None:
    """Other stores' keys serve at once; the slow one's join when it answers."""
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


def test_stores_are_asked_side_by_side_at_the_start() -> None:
    """Two stores that take their time take it together."""
    one, two = GatedStore(a=A), GatedStore(b=B)
    one.gate.clear()
    two.gate.clear()

    def both_asked() -> bool:
        return bool(one.lookups and two.lookups)

    def let_go() -> None:
        wait_for(both_asked)
        one.gate.set()
        two.gate.set()

    thread = threading.Thread(target=let_go)
    thread.start()
    cache = SecretCache({"a": SecretLocation(one), "b": SecretLocation(two)}, start_timeout_s=15.0)
    thread.join()
    assert cache.resolved == ("a", "b")


def test_a_refused_key_is_not_waited_for_long_and_comes_back_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call goes on; the answer is used when it arrives, and the listener learns of it."""
    now = [100.0]
    monkeypatch.setattr(refresh_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    changes = record_changes(cache)
    slow.gate.clear()
    slow.values["a"] = C
    assert not cache.refresh("a", timeout_s=0.1)
    began, now[0] = time.monotonic(), 200.0
    assert not cache.refresh("a", timeout_s=60.0), "the next call does not wait once more"
    assert time.monotonic() - began < 30.0
    assert cache.value("a") == A
    slow.gate.set()
    wait_for(lambda: changes)
    assert cache.value("a") == C
    assert changes == [frozenset({"a"})]
    assert slow.lookups == [("a",), ("a",)], "one look-up for both calls"


def test_by_the_clock_all_keys_are_looked_up_again() -> None:
    """`turn()` waits for nobody, says when it wants to be called again, and asks when it is due."""
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow)
    wait_for(lambda: 150 <= cache.tick() <= 300)
    assert len(slow.lookups) == 1, "nothing was due"
    quick = cache_of(slow, ttl_s=0.01)
    changes = record_changes(quick)
    slow.values["b"] = C
    tick_until(quick, lambda: quick.value("b") == C)
    wait_for(lambda: changes)
    assert changes == [frozenset({"b"})]


def test_a_store_that_goes_down_keeps_the_last_values_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning when it begins, one line when it is over; no text of the exception."""
    caplog.set_level(logging.INFO)
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow, ttl_s=0.01)
    slow.down = True
    tick_until(cache, lambda: len(slow.lookups) > 3)
    tick_until(cache, lambda: cache.stale)
    assert (cache.value("a"), cache.resolved) == (A, ("a", "b"))
    assert "failed with ConnectionError" in cache.stale["a"]
    slow.down = False
    tick_until(cache, lambda: not cache.stale)
    tick_until(cache, lambda: "all keys have a current value" in caplog.text)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    reason = "key a: the secret store slow failed with ConnectionError"
    text = f"secret store slow: 2 keys have no current value; it is asked again ({reason})"
    assert told == [
        ("WARNING", text),
        ("INFO", "secret store slow: all keys have a current value"),
    ]


def test_other_places_can_be_put_in_place() -> None:
    """Keys are added and removed: those that stay keep their value without a new look-up."""
    one, two = GatedStore(a=A, b=B), GatedStore(c=C)
    cache = cache_of(one)
    cache.set_locations({"b": SecretLocation(one), "c": SecretLocation(two)})
    assert cache.resolved == ("b", "c")
    assert (one.lookups, two.lookups) == ([("a", "b")], [("c",)])
    assert cache.value("a") == A, "a call may be under way with it"
    assert A not in cache.redact(f"x {A}")
    cache.set_locations(
        {"b": SecretLocation(one), "c": SecretLocation(two), "d": SecretLocation(GatedStore(d=A))}
    )
    assert cache.value("d") == A, "a value may move to another id"
    assert cache.unresolved == {}


def test_a_key_at_another_place_keeps_its_value_until_there_is_one_from_there() -> None:
    """A typing error in keys.json does not take a key out of service."""
    one, two = GatedStore(a=A), GatedStore()
    cache = cache_of(one)
    cache.set_locations({"a": SecretLocation(two, "slow://elsewhere")})
    assert cache.value("a") == A
    assert cache.stale == {"a": "key a: not there"}
    two.values["a"] = B
    assert cache.refresh("a")
    assert cache.value("a") == B


def test_an_answer_for_a_key_that_left_meanwhile_is_dropped() -> None:
    """It does not come back by a late answer, nor does a closed cache change."""
    slow, other = GatedStore(a=A, b=B), GatedStore(a=B)
    cache = cache_of(slow)
    slow.gate.clear()
    slow.values["a"] = C
    assert not cache.refresh("a", timeout_s=0.0)
    cache.set_locations({"b": SecretLocation(slow)}, 0.0)
    slow.gate.set()
    wait_for(lambda: not slow.under_way)
    assert cache.resolved == ("b",)
    cache.set_locations({"a": SecretLocation(other), "b": SecretLocation(slow)})
    assert cache.unresolved["a"] == "key a: its value is that of the key b"
    changes = record_changes(cache)
    cache.close()
    slow.values["b"] = C
    assert not cache.refresh("b")
    assert (cache.value("b"), changes) == (B, [])


def test_hundreds_of_missing_keys_are_told_in_a_few_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ten by name, the rest by number; all are in `unresolved`."""
    cache = cache_of(GatedStore(), *(f"k{number}" for number in range(500)))
    assert len(cache.unresolved) == 500
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 11
    assert caplog.records[-1].getMessage() == "skipped: 490 keys more"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_asks_for_itself() -> None:
    """A look-up that was under way at the fork neither blocks the child nor reaches it."""
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    slow.gate.clear()
    assert not cache.refresh("a", timeout_s=0.0)
    wait_for(lambda: slow.under_way == 1)
    child = os.fork()
    if child == 0:
        slow.gate = threading.Event()
        slow.gate.set()
        slow._lock = threading.Lock()
        slow.values["a"] = C
        os._exit(0 if cache.refresh("a", 5.0) and cache.value("a") == C else 1)
    slow.gate.set()
    assert os.waitpid(child, 0)[1] == 0
    assert cache.value("a") == A


def test_a_key_that_is_refused_just_as_it_moves_is_not_looked_up_twice() -> None:
    """keys.json names another place at this moment: that look-up is under way already."""
    told: list[bool] = []

    class Meanwhile(GatedStore):
        @property
        def instant(self) -> bool:
            """Have the key refused while the cache takes note of its new store."""
            told.append(cache.refresh("a"))
            return True

    cache, there = cache_of(GatedStore(a=A)), Meanwhile(a=B)
    cache.set_locations({"a": SecretLocation(there)})
    assert (told, there.lookups) == ([False], [("a",)])
    assert cache.value("a") == B
