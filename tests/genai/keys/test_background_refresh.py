"""Values are refreshed by one thread for each pool, and one for each forked worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.modes import ask
from support.mounted_secrets import Files, value_of
from support.servers import wait_for

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("keyrot-refresher")]


def test_one_thread_for_each_pool_and_none_after_it(files: Files) -> None:
    """uninstall() ends it; a value replaced afterwards changes nothing."""
    files.list("A")
    files.put("A")
    files.install()
    assert _threads() == ["keyrot-refresher-default"]
    keyrot_middleware.uninstall()
    wait_for(lambda: not _threads())


def test_a_time_of_zero_means_no_refresh(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """Values are only looked up again after a rejection."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0)
    gemini.add_key("A_new", tier="paid")
    files.put("A", "A_new")
    gemini.always("A", Reply.KEY_INVALID)
    assert ask("sync", connect()) == "ok from A_new"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("by_hand", [False, True], ids=["a call", "KeyManager"])
def test_a_thread_that_ended_is_started_again_by_the_next_call(
    by_hand: bool,
    gemini: FakeGemini,
    files: Files,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever ended it, such as SystemExit in a store; values are refreshed again."""
    files.list("A")
    files.put("A")
    files.install()
    pool = keyrot_middleware._install.current_pool()
    assert pool is not None

    def end() -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pool.activity, "send", end)
        pool.secrets.wake.set()
        wait_for(lambda: not _threads())
    new = gemini.add_key("A_new", tier="paid").value
    if by_hand:
        keyrot_middleware.get_key_manager().select_key("gemini-2.5-flash")
    else:
        assert ask("sync", connect()) == "ok from A"
    assert _threads() == ["keyrot-refresher-default"]
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == new)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_refreshes_on_its_own(gemini: FakeGemini, files: Files) -> None:
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
    """Child processes inherit the environment, so it must not contain a value of a store."""
    before = dict(os.environ)
    files.list("A")
    files.put("A")
    files.install()
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == gemini.key("A_new").value)
    assert dict(os.environ) == before
