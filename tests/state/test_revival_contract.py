"""The contract of a state: what a key's new value ends of its project's and account's rests."""

from __future__ import annotations

from math import inf

import pytest
from doors import Door, failed
from rig import key

from keyrot_middleware.core.model import Scope
from keyrot_middleware.testing import FakeClock

A, B = key("a", project="p", billing_account="x"), key("b", project="p", billing_account="x")


async def test_a_projects_retirement_ends_with_its_keys_value(door: Door) -> None:
    """The new value may be of another project at Google's; the project that is named comes back."""
    await door.fails(A, failed(Scope.PROJECT, inf))
    door.state.revive("a", "q")
    assert await door.refused(A, B) == {"a": "failure", "b": "failure"}
    door.state.revive("a", "p")
    for one in (A, B):
        assert not (await door.lend(one)).probe


@pytest.mark.parametrize(("scope", "lasts"), [(Scope.PROJECT, 60), (Scope.BILLING, inf)])
async def test_a_new_value_pays_no_bill(
    door: Door, clock: FakeClock, scope: Scope, lasts: float
) -> None:
    """What ends by itself, or is the account's, goes on; also where both have one name."""
    one = key("a", project="p", billing_account="p")
    await door.fails(one, failed(scope, clock.time() + lasts))
    door.state.revive("a", "p")
    assert await door.refused(one) == {"a": "failure"}
