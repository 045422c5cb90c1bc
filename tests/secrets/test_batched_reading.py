"""Many secrets are read within one timeout: order, repetitions and what is given up."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping

import pytest

from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets import cloud as reading
from keyrot_middleware.secrets.cloud import (
    MAX_CONCURRENCY,
    Answer,
    Batch,
    FailureReach,
    StoreFailure,
    extract_key,
    read_batches,
)

GONE = StoreFailure(FailureReach.STORE, "no answer")
OUT = StoreFailure(FailureReach.LOGIN, "login again")
BUSY = StoreFailure(FailureReach.REQUEST, "busy")


class Store:
    """Answers from a script per name, repeating the last entry, and records the look-ups."""

    def __init__(self, **scripts: list[Answer]) -> None:
        self.scripts = scripts
        self.lookups: list[str] = []
        self.logins = 0
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def read_batch(self, batch: Batch) -> Mapping[str, Answer]:
        """Answer a batch of one."""
        (name,) = batch
        with self._lock:
            self.lookups.append(name)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        script = self.scripts.get(name, [f"FAKE-{name}"])
        answer = script.pop(0) if len(script) > 1 else script[0]
        with self._lock:
            self.at_once -= 1
        return {name: answer}

    def relogin(self) -> None:
        """Count."""
        self.logins += 1

    def read(self, *names: str) -> dict[str, Answer]:
        """Read names, a batch each."""
        return read_batches([(name,) for name in names], self.read_batch, self.relogin)


def test_the_first_is_read_alone_and_the_rest_concurrently() -> None:
    """No more at once than connections are kept."""
    store = Store()
    names = [f"n{number}" for number in range(200)]
    assert store.read(*names) == {name: f"FAKE-{name}" for name in names}
    assert store.lookups[0] == "n0"
    assert sorted(store.lookups) == sorted(names)
    assert store.most <= MAX_CONCURRENCY


def test_an_unreachable_store_is_tried_once() -> None:
    """All names have the failure of the first."""
    store = Store(a=[GONE])
    assert store.read("a", "b", "c") == dict.fromkeys("abc", GONE)
    assert store.lookups == ["a"]
    assert store.logins == 0


def test_an_expired_login_is_renewed_and_the_read_repeated() -> None:
    """Then everything is read, the first one alone again."""
    store = Store(a=[OUT, "FAKE-a"])
    assert store.read("a", "b") == {"a": "FAKE-a", "b": "FAKE-b"}
    assert store.lookups == ["a", "a", "b"]
    assert store.logins == 1


def test_a_login_that_is_refused_twice_is_dropped() -> None:
    """The next look-up logs in anew; within this one there is no third try."""
    store = Store(a=[OUT])
    assert store.read("a", "b") == {"a": OUT, "b": OUT}
    assert store.lookups == ["a", "a"]
    assert store.logins == 2


def test_only_busy_secrets_are_read_again() -> None:
    """Once; a value that was read stays."""
    store = Store(b=[BUSY, "FAKE-b"], c=[BUSY])
    assert store.read("a", "b", "c") == {"a": "FAKE-a", "b": "FAKE-b", "c": BUSY}
    assert store.lookups.count("a") == 1
    assert store.lookups.count("b") == store.lookups.count("c") == 2
    assert store.logins == 0


def test_a_second_failure_does_not_take_a_value_away() -> None:
    """A batch of several may be read again because one of them was busy."""
    rounds = iter([{"a": "FAKE-a", "b": BUSY}, {"a": GONE, "b": GONE}])
    found = read_batches([("a", "b")], lambda _: next(rounds), lambda: None)
    assert found == {"a": "FAKE-a", "b": GONE}


def test_no_read_starts_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow store is not waited for key by key."""
    monkeypatch.setattr(reading, "TOTAL_TIMEOUT_S", -1.0)
    store = Store()
    found = store.read("a", "b")
    assert store.lookups == []
    assert all(
        "too slow" in answer.message
        for answer in found.values()
        if isinstance(answer, StoreFailure)
    )


def test_an_exception_of_a_reader_is_reported_by_its_type() -> None:
    """The exception's text may hold anything."""

    def fail(_: Batch) -> Mapping[str, Answer]:
        raise RuntimeError("FAKE-token in a message")

    found = read_batches([("a",)], fail, lambda: None)
    assert found == {"a": StoreFailure(FailureReach.SECRET, "reading it failed with RuntimeError")}


def test_a_secret_missing_in_an_answer_is_an_error() -> None:
    """Not a KeyError for the whole pool."""
    found = read_batches([("a", "b")], lambda _: {"a": "FAKE"}, lambda: None)
    assert found["a"] == "FAKE"
    assert found["b"] == StoreFailure(FailureReach.SECRET, "the store's answer does not mention it")


@pytest.mark.parametrize(
    ("stored", "field", "found"),
    [
        ("FAKE", None, Secret("FAKE")),
        ("\ufeffFAKE\n", None, Secret("FAKE")),
        (b"\xef\xbb\xbf FAKE", None, Secret("FAKE")),
        ('{"a": "FAKE"}', None, Secret("FAKE")),
        (b' {"x": " FAKE "}', "x", Secret("FAKE")),
        ("", None, "it is empty"),
        (" \r\n", None, "it is empty"),
        ('{"a": ""}', None, "the field a of its JSON object is empty"),
        ('{"x": 7}', "x", "the field x of its JSON object is no text"),
        ('{"x": null}', "x", "the field x of its JSON object is no text"),
        ("FAKE", "x", "it is no JSON object, so it has no field x"),
        ('["FAKE"]', "x", "it is no JSON object, so it has no field x"),
        ('{"x": "FAKE"', "x", "it is no JSON object, so it has no field x"),
        ("{" * 9, "x", "it is no JSON object, so it has no field x"),
        ('{"a": "FAKE"}', "b", "the JSON object in it has no field b"),
        ('{"pro_1": "FAKE"}', "pro", 'has no field pro. Did you mean "pro_1"?'),
        ("FAKE\x00", None, "it is binary"),
        ("FAKE \ufffd", None, "it is binary"),
        ('{"a": "\\ud800"}', None, "it is binary"),
        (b"\xff", "x", "it is binary"),
    ],
)
def test_a_stored_text_becomes_a_key_or_a_reason(
    stored: str | bytes, field: str | None, found: Secret | str
) -> None:
    """The whole text, or a field; a reason shows nothing of the content."""
    answer = extract_key(stored, field, "a")
    if isinstance(found, Secret):
        assert answer == found
    else:
        assert isinstance(answer, str)
        assert found in answer
        assert "FAKE" not in answer


def test_a_key_that_was_written_as_a_name_is_not_suggested() -> None:
    """A field may be named by a key by mistake."""
    name = "AIza" + "FAKE" * 9
    assert "Did you mean" not in str(extract_key(f'{{"{name}": "flash"}}', name[:-1], "a"))


_ENDS_MEANWHILE = """
import time, threading
from keyrot_middleware.secrets.cloud import read_batches

second = threading.Event()

def read_batch(batch):
    if batch != ("first",):
        second.set()
        time.sleep(600)
    return dict.fromkeys(batch, "FAKE-value")

batches = [("first",), ("second",), ("third",)]
threading.Thread(target=read_batches, args=(batches, read_batch, print), daemon=True).start()
assert second.wait(60)
"""


def test_the_end_of_a_program_waits_for_no_store() -> None:
    """A look-up that hangs in the background does not delay the end of the program."""
    subprocess.run([sys.executable, "-c", _ENDS_MEANWHILE], timeout=120, check=True)
