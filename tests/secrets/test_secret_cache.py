"""The cache: values by id and ids by value, refreshed, masked in any text; over slow stores."""

import copy
import dataclasses
import json
import logging
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.servers import wait_for
from support.stores import GatedStore, cache_of, record_changes, tick_until

from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from keyrot_middleware.secrets.stores import InlineStore

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")
AUTH = "AQ." + "FAKE" + "z" * 46


def test_values_are_found_by_id_and_ids_by_value() -> None:
    """All keys of a store are looked up in one batch, and blanks around a value are ignored."""
    store = GatedStore(a=A, b=f"  {B}\n")
    cache = cache_of(store)
    assert (cache.value("a").reveal(), cache.value("b").reveal()) == (A, B)
    assert [cache.key_id_for(Secret(value)) for value in (A, B, C)] == ["a", "b", None]
    assert (cache.resolved, store.lookups) == (("a", "b"), [("a", "b")])
    with pytest.raises(KeyError):
        cache.value("c")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *(("  ", "its value is empty"), ("keyrot-pool", "the placeholder"), (f'"{B}"', "a quote")),
        *((f"{B} {C}", "a blank"), (f"{B}\r\nX: y", "a blank"), (f"{B}ä", "not ASCII")),
        (A, "is that of the key a"),
    ],
)
def test_an_unusable_key_is_skipped_and_reported(value, reason, caplog) -> None:
    """The others are available; the reason is logged once, without a value."""
    cache = cache_of(GatedStore(a=A, bad=value, c=C))
    assert cache.resolved == ("a", "c")
    assert reason in cache.unresolved["bad"]
    assert cache.unresolved["bad"].startswith("key bad: ")
    assert [record.name for record in caplog.records] == ["keyrot_middleware"]
    shown = f"{caplog.text} {cache.unresolved} {cache!r}"
    assert [secret for secret in (A, B, C) if secret in shown] == []


def test_a_store_that_breaks_loses_only_its_own_keys() -> None:
    """Any exception of a store is a reason, reported by its type alone."""
    good, bad = GatedStore(a=A), GatedStore(b=B)
    bad.down = True
    cache = SecretCache({"a": SecretLocation(good), "b": SecretLocation(bad)})
    assert cache.resolved == ("a",)
    reason = "key b: the secret store slow failed with ConnectionError"
    assert cache.unresolved == {"b": reason}


def test_refresh_returns_whether_the_value_changed() -> None:
    """Only the changed key is looked up; its old value still identifies it."""
    store = GatedStore(a=A, b=B)
    cache = cache_of(store)
    assert not cache.refresh("a")
    store.values["a"] = C
    assert cache.refresh("a")
    assert cache.value("a") == Secret(C)
    assert (cache.key_id_for(Secret(A)), cache.key_id_for(Secret(C))) == ("a", "a")
    assert store.lookups == [("a", "b"), ("a",), ("a",)]
    assert not cache.refresh("unknown")


@pytest.mark.parametrize("value", [None, "", B], ids=["down", "empty", "of another key"])
def test_a_failing_refresh_keeps_the_last_value(value, caplog) -> None:
    """Nothing is raised, the last value is used, and the reason is logged and kept."""
    store = GatedStore(a=A, b=B)
    cache = cache_of(store)
    store.down = value is None
    store.values["a"] = value or ""
    assert not cache.refresh("a")
    assert cache.value("a") == Secret(A)
    assert (cache.key_id_for(Secret(A)), cache.key_id_for(Secret(B))) == ("a", "b")
    assert cache.stale["a"] in caplog.text
    assert cache.unresolved == {}
    assert A not in caplog.text
    store.down, store.values["a"] = False, C
    assert cache.refresh("a")
    assert cache.stale == {}


def test_redact_masks_every_value_and_everything_that_looks_like_a_key() -> None:
    """Old, new, unusual and foreign keys are masked, also within other text."""
    store = GatedStore(a=A, odd="odd/value.1", longer="odd/value.12")
    cache = cache_of(store)
    store.values["odd"] = "odd-value-2"
    cache.refresh("odd")
    text = f"api_key:{A}x n\\n{AUTH} {C}% odd/value.1,odd/value.12,odd-value-2 AIza{A}"
    masked = cache.redact(text)
    assert masked == (
        "api_key:AIza…[redacted] n\\nAQ.…[redacted] AIza…[redacted]% "
        "[redacted],[redacted],[redacted] AIza…[redacted]"
    )
    assert cache.redact(masked) == masked
    assert repr(cache) == "<SecretCache: 3 keys, 0 unresolved>"
    with pytest.raises(TypeError):
        pickle.dumps(cache)


def test_a_secret_is_masked_everywhere_and_compares_by_value() -> None:
    """Repr, str, format, containers, the fingerprint, pickles and JSON do not hold the value."""
    secret = Secret(f" {A}\n")
    shown = [repr(secret), str(secret), f"{secret:>40}", f"{[secret]}", "%s" % secret]  # noqa: UP031
    shown += [repr(secret.reveal()), repr(secret.reveal()[:9]), repr([secret.reveal()])]
    assert not any(A in text for text in [*shown, secret.fingerprint])
    assert secret.reveal() == A
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(secret, protocol)
    for look in (json.dumps, iter, vars, len, dataclasses.asdict):
        with pytest.raises(TypeError):
            look(secret)
    assert secret == Secret(A) != A
    assert secret != Secret(B)
    assert {secret, Secret(A), copy.deepcopy(secret), copy.copy(secret)} == {secret}
    assert secret.fingerprint == Secret(A).fingerprint != Secret(B).fingerprint
    assert int(secret.fingerprint, 16) < 16**8
    assert (bool(Secret(" \n")), bool(Secret("x"))) == (False, True)


# Slow stores: calls wait for a limited time, and late answers are used --------------------------


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


def test_a_rejected_key_is_waited_for_briefly_and_returns_later() -> None:
    """The call continues; the answer is used when it arrives, and the listener is notified."""
    slow = GatedStore(a=A)
    cache = cache_of(slow)
    changes = record_changes(cache)
    slow.gate.clear()
    slow.values["a"] = C
    assert not cache.refresh("a", timeout_s=0.1)
    assert not cache.refresh("a", timeout_s=0.1)
    assert cache.value("a") == Secret(A)
    slow.gate.set()
    wait_for(lambda: changes)
    assert cache.value("a") == Secret(C)
    assert changes == [frozenset({"a"})]
    assert slow.lookups == [("a",), ("a",)], "one look-up for both calls"


def test_a_late_answer_of_a_place_that_was_left_does_not_win() -> None:
    """keys.json names another place while the store is slow: its answer of before is no value."""
    slow, values = GatedStore(), {"old": Secret(A), "new": Secret(C)}

    def resolve(refs):
        assert slow.gate.wait(20)
        return {key_id: values[ref] for key_id, ref in refs.items()}

    slow.resolve = resolve
    slow.gate.clear()
    cache = SecretCache({"a": SecretLocation(slow, "old")}, start_timeout_s=0.0)
    changes = record_changes(cache)
    cache.set_locations({"a": SecretLocation(slow, "new")}, 0.0)
    slow.gate.set()
    tick_until(cache, lambda: cache.resolved)
    assert cache.value("a") == Secret(C)
    assert cache.key_id_for(Secret(A)) is None
    assert frozenset({"a"}) in changes


@pytest.mark.parametrize("place", [InlineStore, GatedStore])
def test_a_key_of_another_provider_is_no_value(place, caplog) -> None:
    """Neither at the start nor later; one that many providers' keys begin with is."""
    foreign, own = "sk-ant-FAKE" + "x" * 30, "sk-proj-FAKE" + "x" * 30
    values = {"a": own, "b": foreign, "c": "sk-FAKE" + "x" * 30, "d": foreign}
    inline = {name: Secret(value) for name, value in values.items()}
    store = InlineStore(inline) if place is InlineStore else GatedStore(**values)
    places = {one: SecretLocation(store, provider="openai") for one in "abc"}
    cache = SecretCache(places | {"d": SecretLocation(store, provider="anthropic")})
    assert cache.resolved == ("a", "c", "d")
    said = "key b: its value begins with sk-ant-, as keys of anthropic do; it is for openai"
    assert cache.unresolved == {"b": said}
    assert said in caplog.text
    if place is GatedStore:
        store.values["a"] = foreign.replace("x", "y")
        assert not cache.refresh("a")
        assert cache.value("a") == Secret(own)
        cache.set_locations({"a": SecretLocation(store, provider="anthropic")})
        assert cache.value("a") == Secret(foreign.replace("x", "y"))


@pytest.mark.parametrize("count", [3, 300])
def test_many_values_without_a_shape_are_masked_wherever_they_stand(count) -> None:
    """Few are searched one by one, many by one look at the text; of two the longer one is."""
    values = {f"k{n}": f"FAKE.{n:04}" + "+/=x"[n % 4] * 30 for n in range(count)}
    values["long"] = values["k1"] + "tail"
    values["shaped"] = "sk-proj-FAKE" + "x" * 30
    cache = cache_of(GatedStore(**values))
    assert cache.redact(f"\\n{values['shaped']}") == "\\n[redacted]"
    text = f"0{values['k0']}x%20{values['long']}{values['k2']}\\n{values['k1']}, FAKE.0001"
    hidden = "[redacted]"
    assert cache.redact(text) == f"0{hidden}x%20{hidden}{hidden}\\n{hidden}, FAKE.0001"


def test_many_calls_with_one_rejected_key_are_one_look_up() -> None:
    """All of them get the key's new value."""

    def waiting() -> int:
        frames = sys._current_frames().values()
        return sum(frame.f_code is threading.Condition.wait.__code__ for frame in frames)

    slow = GatedStore(a=A)
    cache = cache_of(slow)
    slow.gate.clear()
    slow.values["a"] = C
    before = waiting()
    with ThreadPoolExecutor(20) as calls:
        found = [calls.submit(cache.refresh, "a", 90.0) for _ in range(20)]
        wait_for(lambda: waiting() == before + 21, 60)  # the twenty, and the store
        slow.gate.set()
        assert [one.result(60) for one in found] == [True] * 20
    assert len(slow.lookups) == 2


def test_keys_that_are_requested_while_a_look_up_runs_are_next() -> None:
    """Two keys are rejected at once: the second one's value is read when the first one's is."""
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow)
    slow.gate.clear()
    slow.values |= {"a": C, "b": AUTH}
    assert not any(cache.refresh(key_id, timeout_s=0.01) for key_id in "ab")
    slow.gate.set()
    tick_until(cache, lambda: cache.value("b") == Secret(AUTH))
    assert slow.lookups == [("a", "b"), ("a",), ("a", "b")]


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


def test_a_store_that_fails_is_logged_once(caplog) -> None:
    """One warning when it begins, one line when it is over; no text of the exception."""
    caplog.set_level(logging.INFO)
    slow = GatedStore(a=A, b=B)
    cache = cache_of(slow, ttl_s=0.01)
    slow.down = True
    tick_until(cache, lambda: len(slow.lookups) > 3 and cache.stale)
    assert (cache.value("a"), cache.resolved) == (Secret(A), ("a", "b"))
    reason = "key a: the secret store slow failed with ConnectionError"
    assert cache.stale["a"] == reason
    slow.down = False
    tick_until(cache, lambda: "all keys have a current value" in caplog.text)
    assert cache.stale == {}
    text = f"secret store slow: 2 keys have no current value; it is asked again ({reason})"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", text),
        ("INFO", "secret store slow: all keys have a current value"),
    ]


def test_references_can_be_replaced() -> None:
    """Keys are added and removed: those that stay keep their value without a new look-up."""
    one, two = GatedStore(a=A, b=B), GatedStore(c=C)
    cache = cache_of(one)
    kept = {"b": SecretLocation(one), "c": SecretLocation(two)}
    cache.set_locations(kept)
    assert cache.resolved == ("b", "c")
    assert (one.lookups, two.lookups) == ([("a", "b")], [("c",)])
    assert cache.value("a") == Secret(A), "a call may be under way with it"
    assert A not in cache.redact(f"x {A}")
    cache.set_locations(kept | {"d": SecretLocation(GatedStore(d=A))})
    assert cache.value("d") == Secret(A), "a value may move to another id"
    assert cache.unresolved == {}
