"""A retirement in a shared state is of a key's id; whose value it was about is known beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from faulty import Faulty, LineDownError, degrading
from replies import invalid
from rig import Rig, key
from servers import server

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.secrets import Secret
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.state.redis import RedisState

_pools = (f"refusals-{number}" for number in count())

Process = Callable[..., Rig]


@pytest.fixture
def process() -> Iterator[Process]:
    """Start what stands for one more process of a pool: its own values, the state shared."""
    name, rigs = next(_pools), list[Rig]()

    def start(value: str) -> Rig:
        rig = Rig(key("a"), max_wait_s=0)
        rig.shelf.values["a"] = value
        rig.pool.refresh("a")
        clock = rigs[0].clock.time if rigs else rig.clock.time
        url = server("valkey").url
        rig.pool.state = RedisState(url, RetryPolicy(), clock, pool=name, test_clock=clock)
        rigs.append(rig)
        return rig

    yield start
    for rig in rigs:
        rig.pool.state.close()


def refused(rig: Rig) -> None:
    """Let Google refuse the key for good, as far as this process is asked."""
    rig.will("a", invalid())
    assert "key_invalid" in "".join(rig.failing().__notes__)


def test_a_process_that_starts_with_a_new_value_brings_its_key_back(process: Process) -> None:
    """A deployment replaces the value and restarts: nobody has to reset the key by hand."""
    refused(process("FAKE-old-value"))
    restarted = process("FAKE-new-value")
    assert isinstance(restarted.failing(), Exhausted), "the shared state knows the id alone"
    restarted.pool.review()
    assert restarted.call() == "answer"


def test_a_process_with_the_refused_value_leaves_it_alone(process: Process) -> None:
    """A restart without a new value asks Google nothing, nor do the other processes."""
    first = process("FAKE-old-value")
    refused(first)
    for rig in (first, process("FAKE-old-value")):
        rig.pool.review()
        assert isinstance(rig.failing(), Exhausted)
    assert first.sent == ["a"]


def test_a_process_that_lags_behind_takes_the_key_away_for_a_while_only(process: Process) -> None:
    """One has seen the new value; another sends the old one, and its store is down."""
    lagging, ahead = process("FAKE-old-value"), process("FAKE-old-value")
    ahead.shelf.values["a"] = "FAKE-new-value"
    assert ahead.pool.refresh("a")
    assert ahead.call() == "answer"
    refused(lagging)
    assert isinstance(ahead.failing(), Exhausted)
    ahead.pool.review()
    assert ahead.call() == "answer"
    lagging.pool.review()
    assert ahead.call() == "answer"
    lagging.shelf.values["a"] = "FAKE-new-value"
    assert lagging.pool.refresh("a"), "its store is up again"
    assert lagging.call() == "answer"


def test_a_refusal_of_the_value_before_is_not_noted_for_the_new_one(process: Process) -> None:
    """A call was under way with the old value when the new one came."""
    rig = process("FAKE-old-value")

    def replaced_meanwhile() -> Any:
        rig.clock.advance(1)
        rig.shelf.values["a"] = "FAKE-new-value"
        assert rig.pool.refresh("a")
        return invalid()

    rig.will("a", replaced_meanwhile)
    rig.failing()
    assert rig.pool.state.refusals() == frozenset()


class Deaf(RedisState):
    """A shared state that cannot be told of refusals for a while."""

    deaf = True

    def note_refusal(self, key_id: str, fingerprint: str) -> bool:
        """Note it, or say that it was not."""
        if not self.deaf:
            super().note_refusal(key_id, fingerprint)
        return not self.deaf


def test_a_refusal_that_could_not_be_told_is_told_later() -> None:
    """The shared state was out of reach: each look at it tells what is still to be told, once."""
    rig = Rig(key("a"), max_wait_s=0)
    state = Deaf(server("valkey").url, RetryPolicy(), rig.clock.time, pool=next(_pools))
    rig.pool.state = state
    refused(rig)
    rig.pool.review()
    assert state.refusals() == frozenset()
    state.deaf = False
    rig.pool.review()
    ((key_id, fingerprint),) = state.refusals()
    assert (key_id, fingerprint) == ("a", Secret(rig.shelf.values["a"]).fingerprint)
    assert not rig.pool._untold
    state.close()


def test_a_refusal_is_told_later_after_an_error_too(process: Process) -> None:
    """A state that raises has not been told either."""
    rig = process("FAKE-old-value")
    shared, failing = rig.pool.state, Faulty(MemoryState(RetryPolicy(), rig.clock.time))
    rig.pool.state = failing
    failing.cut("note_refusal")
    rig.will("a", invalid())
    with pytest.raises(LineDownError):  # in a program a call survives it
        rig.call()
    rig.pool.state = shared
    rig.pool.review()
    assert len(shared.refusals()) == 1


def test_without_a_shared_state_nothing_is_noted() -> None:
    """In memory a retirement ends with the process; a state out of reach knows of none."""
    rig = Rig(key("a"), max_wait_s=0)
    refused(rig)
    assert MemoryState(RetryPolicy(), rig.time).refusals() == frozenset()
    state, line = degrading(rig.time)
    line.cut("refusals", "note_refusal")
    state.note_refusal("a", "12345678")
    assert state.refusals() == frozenset()
    assert line.asked == ["note_refusal"], "once it fails it is left alone for a while"
    rig.pool.review()
    assert isinstance(rig.failing(), Exhausted)
