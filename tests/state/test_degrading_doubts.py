"""A shared state that does not know all lends too much: what it grants then is looked at again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from outage import FIVE, Both, C
from rig import INFO

from keyrot_middleware.state import State
from keyrot_middleware.state.debts import Steps


async def test_a_grant_of_a_state_that_is_behind_is_doubted(both: Both) -> None:
    """What would overrun this process's own windows is given back, and decided here."""
    assert await both.door.granted(FIVE, 4) == 4
    both.shared.cut("book")  # it cannot be told, and so lends too much
    both.shared.inner = type(both.shared.inner)(both.shared.inner._policy, both.clock.time)
    both.state._debts.add("book", C, INFO.model, requests=0, tokens=0, day_requests=0)
    both.state._debts._turn.acquire()  # somebody is telling it just now
    assert await both.door.granted(FIVE) == 1
    assert len(both.shared.inner._under_way["f"]) == 2
    both.state._debts._turn.release()
    both.shared.mend()
    await both.door.lend(C)
    assert len(both.shared.inner._under_way["f"]) == 1


@pytest.mark.parametrize("until", ["check", "snapshot", "book", "over"])
async def test_a_grant_while_somebody_tells_is_doubted(both: Both, until: str) -> None:
    """Asked before the shared state knew all, whether it knows by the time of the answer or not."""
    assert await both.door.granted(FIVE, 3) == 3
    both.shared.cut()
    assert await both.door.granted(FIVE, 2) == 2
    both.shared.mend()
    both.state._breaker._since = None  # another caller's look went well
    telling = both.state._debts.steps(look=True)
    step = next(telling)
    while step[0] != until and until != "over":
        step = telling.send(getattr(both.shared.inner, step[0])(*step[1], **step[2]))
    grant = both.shared.inner.acquire

    def overtaken(*args: object, **more: object) -> object:
        reply = grant(*args, **more)
        if until == "over":
            finish(telling, step, both.shared.inner)
        return reply

    both.shared.inner.acquire = overtaken
    assert await both.door.granted(FIVE) == 0
    both.shared.inner.acquire = grant
    if until != "over":
        finish(telling, step, both.shared.inner)
    assert await both.door.granted(FIVE) == 0
    await both.door.lend(C)
    assert both.shared.inner.snapshot([FIVE])["f"].used[0].requests_minute == 5


def finish(telling: Steps, step: Any, state: State) -> None:
    """Tell all the rest."""
    with suppress(StopIteration):
        while True:
            step = telling.send(getattr(state, step[0])(*step[1], **step[2]))


async def test_what_is_about_to_be_lent_here_counts_before_it_is(both: Both) -> None:
    """A grant that comes between a loan of this process and its being noted is doubted."""
    before: list[bool] = []
    lend = both.state._local.acquire

    def noting(*args: object, **more: object) -> object:
        before.append(bool(both.state._debts))
        return lend(*args, **more)

    both.state._local.acquire = noting  # type: ignore[method-assign]
    both.shared.cut()
    await both.door.lend(FIVE)
    assert before == [True]
