"""A call that finds every key rejected: the values are looked up before it fails."""

from __future__ import annotations

from support.pool import Rig, key
from support.replies import invalid, minute

from keyrot_middleware.core.flow import Exhausted


def _rejected(*key_ids: str) -> Rig:
    rig = Rig(*map(key, key_ids), strategy="fill", max_wait_s=0)
    for key_id in key_ids:
        rig.will(key_id, invalid())
    rig.failing()
    return rig


def test_a_new_value_in_any_store_is_sent() -> None:
    """All keys are looked up, not only the one that was rejected last."""
    rig = _rejected("a", "b")
    rig.store.values["a"] += "x"
    assert rig.call() == "answer"
    assert rig.sent == ["a", "b", "a"]


async def test_a_task_finds_a_new_value_too() -> None:
    """The look-up runs in a thread, and is awaited."""
    rig = _rejected("a", "b")
    rig.store.values["b"] += "x"
    assert await rig.acall() == "answer"
    assert rig.sent == ["a", "b", "b"]


def test_without_another_value_the_call_fails_after_one_look_up() -> None:
    """It is raised at once, and the next call queries no store for a while."""
    rig = _rejected("a", "b")
    assert isinstance(rig.failing(), Exhausted)
    lookups = rig.store.lookups
    assert isinstance(rig.failing(), Exhausted)
    assert (rig.sent, rig.store.lookups) == (["a", "b"], lookups)


def test_a_look_up_that_finds_another_bad_value_is_not_repeated() -> None:
    """A new value that is rejected as well causes no further look-up."""
    rig = _rejected("a")
    rig.will("a", invalid())
    rig.store.values["a"] += "x"
    assert "key_invalid" in rig.failing().__notes__[0]
    assert rig.sent == ["a", "a"]


def test_while_a_key_has_a_known_end_no_store_is_queried() -> None:
    """A full minute is no rejection."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", invalid())
    rig.will("b", minute("20s"))
    rig.failing()
    rig.store.values["a"] += "x"
    assert isinstance(rig.failing(), Exhausted)
