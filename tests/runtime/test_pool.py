"""What the calls of a pool share: its clock, its secrets, its last refusal from Google."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.pool import EditableStore, Rig, key
from support.replies import blocked, invalid, minute
from support.servers import wait_for

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Limits
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.errors import SecretError
from keyrot_middleware.monitoring.report import pool_health
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation


def test_by_default_a_call_waits_for_the_end_of_any_minute() -> None:
    """A minute that was full at its first second lasts 60 s more, and its guard."""
    rig = Rig(key("a", Limits(rpm=1)))
    rig.clock.advance(31.0)
    rig.call()
    assert rig.call() == "answer"
    assert sum(rig.slept) >= 59.0


@settings(max_examples=25)
@given(
    begin=st.floats(0, 2 * DAY_S), off=st.floats(-400 * DAY_S, 400 * DAY_S), refused=st.booleans()
)
def test_a_wrong_clock_for_one_call_blocks_nothing_later(
    begin: float, off: float, refused: bool
) -> None:
    """Neither what it has counted, nor where it was refused; some minutes later."""
    assume(not 60.0 < off < 320.0)  # else it is of these minutes by the right clock too
    rig = Rig(key("a", Limits(rpm=2, rpd=20)), max_wait_s=0.0)
    rig.clock.advance(begin)
    rig.call()
    rig.clock.advance(off)
    for _ in range(3 if refused else 1):
        with suppress(Exhausted):
            rig.call()
    rig.clock.advance(-off)
    rig.clock.advance(200.0)
    for _ in range(4):
        assert [rig.call(), rig.call()] == ["answer"] * 2
        rig.clock.advance(DAY_S)


def test_a_pool_has_one_background_thread(pool: Any) -> None:
    """Where an interrupt made a living one look dead, the one that was started for it stays."""
    refresher = pool("A").background[0]
    before = refresher._thread
    refresher.start()
    refresher._pool.secrets.wake.set()
    before.join(60)
    assert (before.is_alive(), refresher._thread.is_alive()) == (False, True)


def test_the_home_key_is_the_single_key_or_the_first() -> None:
    """A client without a key has the single key as its home key, or the pool's first."""
    rig = Rig(key("a"), key("single", priority=1_000_000))
    assert rig.pool.home_id_for() == "a"
    assert replace(rig.pool, last_resorts=["single"]).home_id_for() == "single"
    assert replace(rig.pool, last_resorts=["left out"]).home_id_for() == "a"


def test_the_last_refusal_is_that_of_the_key_rejected_last() -> None:
    """When all keys are rejected, the error contains Google's message about the last one."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", invalid())
    rig.will("b", blocked())
    rig.failing()
    assert rig.pool.last_refusal(["a", "b"]) == (403, None, None)
    assert rig.pool.last_refusal(["a"]) == (400, None, None)
    assert rig.pool.last_refusal(["c"]) is None
    rig.store.values["b"] += "x"
    rig.pool.refresh("b")
    assert rig.pool.last_refusal(["a", "b"]) == (400, None, None)
    other = Rig(key("a"), max_wait_s=0)
    other.will("a", minute())
    other.failing()
    assert other.pool.last_refusal(["a"]) is None, "a 429 for an exhausted minute is none"


def test_a_key_rejected_for_one_method_is_still_active() -> None:
    rig = Rig(key("a"))
    rig.will("a", blocked())
    rig.failing()
    known = pool_health(rig.pool)[0]["a"]
    assert (known["state"], known["active"]) == ("cooling_down", True)
    assert known["disabled_reason"] is None


class Gated(EditableStore):
    instant = False

    def __init__(self, *key_ids: str) -> None:
        super().__init__(*key_ids)
        self.gate = threading.Event()
        self.gate.set()

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        assert self.gate.wait(20), "the test never opened the gate"
        return super().resolve(refs)


def test_a_hanging_store_delays_no_call_that_another_key_can_serve() -> None:
    """The rejected key is back when the store has answered, and a new value is reported once."""
    rig, store = Rig(key("a"), key("b"), strategy="fill"), Gated("a", "b")
    rig.pool.secrets = SecretCache({key_id: SecretLocation(store) for key_id in "ab"})
    rig.pool.secrets.on_change = rig.pool.on_secrets_changed
    store.gate.clear()
    rig.will("a", invalid())
    assert rig.call() == "answer"
    assert (rig.sent, store.gate.is_set()) == (["a", "b"], False)
    store.values["a"] += "x"
    store.gate.set()
    wait_for(lambda: rig.pool.secrets.value("a").reveal() == store.values["a"])
    wait_for(lambda: rig.call() == "answer" and rig.sent[-1] == "a")
    assert rig.pool.refresh("a"), "whoever was refused with the old value may use the new"
    rig.will("a", invalid())
    assert rig.call() == "answer"
    assert not rig.pool.refresh("a")
