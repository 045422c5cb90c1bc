"""The cache: values by id and ids by value, refreshed, and masked in any text."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping

import pytest

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")
AUTH = "AQ." + "FAKE" + "z" * 46


class EditableStore:
    """A store whose content the test changes; it records each look-up."""

    scheme = "store"

    def __init__(self, **values: str) -> None:
        self.values: dict[str, str] = values
        self.lookups: list[tuple[str, ...]] = []
        self.fault: Exception | None = None

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Return the values of known refs."""
        self.lookups.append(tuple(refs))
        if self.fault:
            raise self.fault
        return {key_id: Secret(self.values[key_id]) for key_id in refs if key_id in self.values}

    def cache(self, *key_ids: str, optional: tuple[str, ...] = ()) -> SecretCache:
        """Make a cache of these ids, or of all known ones."""
        return SecretCache(
            {key_id: SecretLocation(self) for key_id in key_ids or self.values}, optional=optional
        )


def test_values_are_found_by_id_and_ids_by_value() -> None:
    """All keys of a store are looked up in one batch, and blanks around a value are ignored."""
    store = EditableStore(a=A, b=f"  {B}\n")
    cache = store.cache()
    assert (cache.value("a").reveal(), cache.value("b").reveal()) == (A, B)
    assert (
        cache.key_id_for(Secret(A)),
        cache.key_id_for(Secret(B)),
        cache.key_id_for(Secret(C)),
    ) == ("a", "b", None)
    assert cache.resolved == ("a", "b")
    assert store.lookups == [("a", "b")]
    with pytest.raises(KeyError):
        cache.value("c")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("  ", "its value is empty"),
        ("keyrot-pool", "the placeholder"),
        (f'"{B}"', "a quote"),
        (f"{B} {C}", "a blank"),
        (f"{B}\r\nX: y", "a blank"),
        (f"{B}ä", "not ASCII"),
        (A, "is that of the key a"),
    ],
)
def test_an_unusable_key_is_skipped_and_reported(value, reason, caplog) -> None:
    """The others are available; the reason is logged once, without a value."""
    cache = EditableStore(a=A, bad=value, c=C).cache()
    assert cache.resolved == ("a", "c")
    assert reason in cache.unresolved["bad"]
    assert cache.unresolved["bad"].startswith("key bad: ")
    assert [record.name for record in caplog.records] == ["keyrot_middleware"]
    for secret in (A, B, C):
        assert secret not in f"{caplog.text} {cache.unresolved} {cache!r}"


def test_a_store_that_breaks_loses_only_its_own_keys() -> None:
    """Any exception of a store is a reason, reported by its type alone."""
    good, bad = EditableStore(a=A), EditableStore(b=B)
    bad.fault = OSError(f"cannot send {B}")
    cache = SecretCache(
        {"a": SecretLocation(good), "b": SecretLocation(bad), "c": SecretLocation(good)}
    )
    assert cache.resolved == ("a",)
    assert cache.unresolved == {
        "b": "key b: the secret store store failed with OSError",
        "c": "key c: the secret store store gave no answer",
    }


def test_refresh_returns_whether_the_value_changed() -> None:
    """Only the changed key is looked up; its old value still identifies it."""
    store = EditableStore(a=A, b=B)
    cache = store.cache()
    assert not cache.refresh("a")
    store.values["a"] = C
    assert cache.refresh("a")
    assert cache.value("a") == Secret(C)
    assert (cache.key_id_for(Secret(A)), cache.key_id_for(Secret(C))) == ("a", "a")
    assert store.lookups == [("a", "b"), ("a",), ("a",)]
    assert not cache.refresh("unknown")


def _break(store: EditableStore) -> None:
    store.fault = RuntimeError(A)


def _remove(store: EditableStore) -> None:
    del store.values["a"]


def _empty(store: EditableStore) -> None:
    store.values["a"] = ""


def _repeat(store: EditableStore) -> None:
    store.values["a"] = B


@pytest.mark.parametrize("harm", [_break, _remove, _empty, _repeat])
def test_a_failing_refresh_keeps_the_last_value(harm, caplog) -> None:
    """Nothing is raised, the last value is used, and the reason is logged and kept."""
    store = EditableStore(a=A, b=B)
    cache = store.cache()
    harm(store)
    assert not cache.refresh("a")
    assert cache.value("a") == Secret(A)
    assert (cache.key_id_for(Secret(A)), cache.key_id_for(Secret(B))) == ("a", "b")
    assert cache.stale["a"] in caplog.text
    assert cache.unresolved == {}
    assert A not in caplog.text
    store.fault, store.values["a"] = None, C
    assert cache.refresh("a")
    assert cache.stale == {}


def test_redact_masks_every_value_and_everything_that_looks_like_a_key() -> None:
    """Old, new, unusual and foreign keys are masked, also within other text."""
    store = EditableStore(a=A, odd="odd/value.1", longer="odd/value.12")
    cache = store.cache()
    store.values["odd"] = "odd-value-2"
    cache.refresh("odd")
    text = f"api_key:{A}x n\\n{AUTH} {C}% odd/value.1,odd/value.12,odd-value-2 AIza{A}"
    masked = cache.redact(text)
    assert masked == (
        "api_key:AIza…[redacted] n\\nAQ.…[redacted] AIza…[redacted]% "
        "[redacted],[redacted],[redacted] AIza…[redacted]"
    )
    assert cache.redact(masked) == masked


def test_a_cache_shows_and_pickles_no_value() -> None:
    """Neither repr nor pickle carries a value."""
    cache = EditableStore(a=A, b="").cache()
    assert repr(cache) == "<SecretCache: 1 keys, 1 unresolved>"
    with pytest.raises(TypeError):
        pickle.dumps(cache)


VALUE = "AIza" + "FAKE" + "s" * 31


def test_a_secret_is_masked_everywhere() -> None:
    """Repr, str, format, containers and the fingerprint do not contain the value."""
    secret = Secret(f" {VALUE}\n")
    shown = [repr(secret), str(secret), f"{secret:>40}", f"{[secret]}", "%s" % secret]  # noqa: UP031
    assert not any(VALUE in text for text in [*shown, secret.fingerprint])
    assert secret.reveal() == VALUE


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_cannot_be_pickled(protocol: int) -> None:
    """No pickle and no JSON contains the value."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(VALUE), protocol)
    with pytest.raises(TypeError):
        json.dumps(Secret(VALUE))


def test_secrets_compare_by_value() -> None:
    """Equal values are equal secrets, also as members of a set and as copies."""
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")
    assert Secret(VALUE) != VALUE
    assert len({Secret(VALUE), Secret(VALUE), copy.deepcopy(Secret(VALUE))}) == 1
    assert copy.copy(Secret(VALUE)) == Secret(VALUE)


def test_a_fingerprint_distinguishes_values() -> None:
    """It is 8 hexadecimal digits, the same for the same value."""
    assert Secret(VALUE).fingerprint == Secret(VALUE + " ").fingerprint
    assert Secret(VALUE).fingerprint != Secret(VALUE + "x").fingerprint
    assert int(Secret(VALUE).fingerprint, 16) < 16**8


def test_a_blank_secret_is_false() -> None:
    """A value of blanks alone is empty."""
    assert not Secret(" \n")
    assert Secret("x")
