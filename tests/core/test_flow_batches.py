"""Which project gets a new batch."""

from __future__ import annotations

from typing import Any

from support.pool import Rig, key
from support.replies import MODEL, invalid, minute

from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.model import CallInfo, Candidate

NEW = CallInfo(MODEL, "batchGenerateContent", idempotent=False, counts_in_quota=False, requests=0)


def rig(*keys: Candidate, **policy: Any) -> Rig:
    """Make a pool whose batches are named after the numbers of their sends."""
    made = Rig(*keys, **({"strategy": "fill"} | policy))
    made.default = lambda: Done("made", names=(f"batches/{len(made.sent)}",))
    return made


def test_new_batches_go_round() -> None:
    """Each project gets as many as the others, in the order of the keys."""
    pool = rig(key("a"), key("b"), key("c"))
    for _ in range(6):
        assert pool.call(NEW) == "made"
    assert pool.sent == ["a", "b", "c"] * 2


def test_spread_starts_anywhere() -> None:
    """Processes that make one batch each do not all choose the first project."""
    pool = rig(key("a"), key("b"), key("c"), strategy="spread")
    pool.pool.random = lambda: 0.5
    for _ in range(6):
        pool.call(NEW)
    assert pool.sent == ["b", "c", "a"] * 2


def test_other_calls_take_no_turn() -> None:
    """Generation between two batches does not change which project gets the next."""
    pool = rig(key("a"), key("b"))
    pool.call(NEW)
    pool.call()
    pool.call(NEW)
    assert pool.sent == ["a", "a", "b"]


def test_the_keys_of_one_project_share_its_turn() -> None:
    """A second key does not get a project more batches."""
    pool = rig(key("a", project="p"), key("b", project="p"), key("c"))
    for _ in range(4):
        pool.call(NEW)
    assert pool.sent == ["a", "c", "a", "c"]


def test_a_key_of_a_lower_priority_waits() -> None:
    """Priorities and models come before turns."""
    pool = rig(key("a", priority=1), key("b"))
    for _ in range(3):
        pool.call(NEW)
    assert pool.sent == ["b", "b", "b"]


def test_a_key_that_failed_is_skipped() -> None:
    """A = 429, B = invalid, C = good: one send each, and all later ones with C."""
    pool = rig(key("a"), key("b"), key("c"))
    pool.will("a", minute())
    pool.will("b", invalid())
    for _ in range(4):
        pool.call(NEW)
    assert pool.sent == ["a", "b", "c", "c", "c", "c"]


def test_a_batch_of_a_file_goes_with_its_key_and_takes_a_turn() -> None:
    """The next batch that names nothing goes to another project."""
    pool = rig(key("a"), key("b"))
    pool.will("b", Done("file", names=("files/f",)))
    pool.call(NEW._replace(verb="files", bound_to_owner=True), key("b"))
    pool.call(NEW._replace(bound_to_owner=True, resources=("files/f",)), key("a"))
    for _ in range(2):
        pool.call(NEW)
    assert pool.sent == ["b", "b", "a", "b"]


def test_a_key_outside_the_pool_takes_no_turn() -> None:
    """A client's own key that makes a batch of its file is not remembered."""
    pool, own = rig(key("a"), key("b")), key("home:1", project="home:1")
    pool.call(NEW._replace(bound_to_owner=True, resources=("files/f",)), own)
    for _ in range(2):
        pool.call(NEW)
    assert pool.sent == ["home:1", "a", "b"]


def test_every_key_of_a_large_pool_is_found() -> None:
    """Also the last of two hundred keys gets a batch, where all others are cooling down."""
    keys = [key(f"k{number}") for number in range(200)]
    pool = rig(*keys)
    for one in keys[:-1]:
        pool.will(one.key_id, minute())
    assert pool.call(NEW) == "made"
    assert len(pool.sent) == 200
    pool.sent.clear()
    assert pool.call(NEW) == "made"
    assert pool.sent == ["k199"]


def test_a_batch_that_every_project_refuses_fails() -> None:
    """Each is asked once, and the last error is the cause."""
    pool, last = rig(key("a"), key("b"), max_wait_s=0), minute()
    pool.will("a", minute())
    pool.will("b", last)
    assert pool.failing(NEW).last is last.error
    assert pool.sent == ["a", "b"]
