"""Who looks values up again: a thread for each pool, one for each forked worker, none in vain."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
from four_modes import ask
from mounted import Files, roster, value_of
from rig import INFO
from servers import BINARIES, Server, wait_for

import keyrot_middleware
from keyrot_middleware.compose import current_pool
from keyrot_middleware.core.model import Kind, Lease, Outcome, Scope, Verdict
from keyrot_middleware.drive import upkeep
from keyrot_middleware.drive.pool import Pool
from keyrot_middleware.secrets import Secret
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.testing import FakeGemini, Reply


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("keyrot-upkeep")]


def test_one_thread_for_each_pool_and_none_after_it(files: Files) -> None:
    """uninstall() ends it; what is replaced afterwards changes nothing."""
    files.list("A")
    files.put("A")
    files.install()
    assert _threads() == ["keyrot-upkeep-default"]
    keyrot_middleware.uninstall()
    wait_for(lambda: not _threads())


def test_a_time_of_zero_means_no_thread_and_no_second_look(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """Only a refusal of Google has a value looked up again."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0)
    assert _threads() == []
    gemini.add_key("A_new", tier="paid")
    files.put("A", "A_new")
    gemini.always("A", Reply.KEY_INVALID)
    assert ask("sync", connect()) == "ok from A_new"


def test_values_in_settings_need_no_thread(gemini: FakeGemini) -> None:
    """Keys that stand in a setting cannot change."""
    try:
        keyrot_middleware.install(keys=["FAKE-one", "FAKE-two"], gemini_api_key="FAKE-three")
        assert _threads() == []
    finally:
        keyrot_middleware.uninstall()


def test_a_shared_state_is_looked_at_though_no_value_can_change(
    gemini: FakeGemini, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lags behind retires a key; this one, with another value, brings it back."""
    monkeypatch.setattr(upkeep, "REVIEW_S", 0.05)
    try:
        keyrot_middleware.install(keys=["FAKE-new"], state_url=valkey.url)
        pool = current_pool()
        assert pool is not None
        (key,) = pool.roster.keys.values()
        lagging = RedisState(valkey.url, pool.policy)
        lease = lagging.acquire(INFO, ((0, key),), spread=False)
        assert isinstance(lease, Lease)
        verdict = Verdict("key_invalid", 400, Scope.KEY, inf)
        lagging.settle(lease, Outcome(Kind.FAILURE, verdict))
        lagging.note_refusal(key.key_id, Secret("FAKE-old").fingerprint)
        wait_for(lambda: lagging.snapshot([key])[key.key_id].cooldown_until is None)
        lagging.close()
    finally:
        keyrot_middleware.uninstall()


def test_with_a_time_of_zero_a_shared_state_is_all_that_is_looked_at(
    files: Files, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the stores nor keys.json are: their time is zero."""
    looks: list[Pool] = []
    monkeypatch.setattr(upkeep, "REVIEW_S", 0.05)

    def look(pool: Pool) -> None:
        looks.append(pool)

    monkeypatch.setattr(Pool, "review", look)
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0, state_url=valkey.url)
    before = value_of("A")
    files.put("A", "A_new")
    files.list("A", "B")
    more = len(looks) + 3
    wait_for(lambda: len(looks) > more)
    assert (roster(), value_of("A")) == (["A"], before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_goes_on_by_itself(gemini: FakeGemini, files: Files) -> None:
    """Servers install() before they fork: each worker looks values up again."""
    files.list("A")
    files.put("A")
    files.install()
    new = gemini.add_key("A_new", tier="paid").value
    child = os.fork()
    if child == 0:
        try:
            wait_for(lambda: value_of("A") == new)
            os._exit(0)
        finally:
            os._exit(1)
    files.put("A", "A_new")
    assert os.waitpid(child, 0)[1] == 0


def test_no_value_gets_into_the_environment(gemini: FakeGemini, files: Files) -> None:
    """Child processes inherit the environment, so no value of a store may stand there."""
    before = dict(os.environ)
    files.list("A")
    files.put("A")
    files.install()
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == gemini.key("A_new").value)
    assert dict(os.environ) == before
