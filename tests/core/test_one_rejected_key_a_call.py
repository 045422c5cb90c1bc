"""Rejected keys that are due: a call tries one again, and its error names the others."""

from __future__ import annotations

import pytest
from support.pool import Rig, key
from support.replies import expired

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.windows import DAY_S


def rejected(*names: str) -> Rig:
    """Return a pool whose keys were rejected a day ago."""
    rig = Rig(*map(key, names), strategy="fill", max_wait_s=0)
    for name in names:
        rig.will(name, expired())
    with pytest.raises(Exhausted):
        rig.call()
    assert rig.sent == [*names]
    rig.sent.clear()
    rig.clock.advance(DAY_S)
    return rig


def test_a_call_tries_one_rejected_key_again() -> None:
    """The others are due as well: the next calls try them."""
    rig = rejected("a", "b", "c")
    for name in "abc":
        rig.will(name, expired())
        with pytest.raises(Exhausted) as caught:
            rig.call()
        assert rig.sent == [name]
        rig.sent.clear()
        blocks = caught.value.unavailable.blocks
        assert {one.reason for one in blocks.values()} == {"key_expired"}
        assert blocks.keys() == {"a", "b", "c"}
        due = {one for one, block in blocks.items() if block.until <= rig.time()}
        assert due == {one for one in "abc" if one > name}
    rig.check()


def test_a_key_that_works_serves_beside_rejected_ones() -> None:
    """Whether it was rejected before, or not."""
    rig = rejected("a", "b")
    rig.call()  # a works again
    assert rig.sent == ["a"]
    rig.clock.advance(DAY_S)
    rig.will("a", expired())
    rig.call()
    assert rig.sent == ["a", "a", "b"]  # b is a first try of this call: a was not rejected when due
    rig.check()


def test_a_new_value_is_tried_whatever_others_are_due() -> None:
    """It is no longer the key that was rejected."""
    rig = rejected("a", "b", "c")
    rig.pool.reset("c")
    rig.will("a", expired())
    rig.call()
    assert rig.sent == ["a", "c"]
    rig.check()
