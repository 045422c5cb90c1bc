"""uninstall() while calls are in flight: they end as they began, and nothing is left behind."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.genai._api_client import BaseApiClient
from support.modes import MODES, ask, spread

import keyrot_middleware
from keyrot_middleware.clients import pooled_calls
from keyrot_middleware.testing import Reply

KEY = "x-goog-api-key"


@pytest.fixture(autouse=True)
def plain() -> Any:
    """Check that afterwards every attribute of the api client's class is what it was."""
    before = dict(vars(BaseApiClient))
    yield before
    assert changed(before) == set()


def changed(before: dict[str, Any]) -> set[str]:
    return {name for name in before if vars(BaseApiClient)[name] is not before[name]}


@pytest.fixture
def in_pause(clock, monkeypatch) -> Callable[[Callable[[], None]], None]:
    """Run a function while a call waits before its next attempt."""
    sleep = clock.sleep

    def arrange(work: Callable[[], None]) -> None:
        def paused(seconds: float) -> None:
            sleep(seconds)
            work()

        monkeypatch.setattr(clock, "sleep", paused)

    return arrange


@pytest.mark.parametrize(("own", "mode"), spread(["own", None, keyrot_middleware.POOL_KEY], MODES))
def test_a_call_continues_after_a_pause(mode, own, gemini, pool, connect, plain, in_pause) -> None:
    """The retry has the key of its lease, never the client's own nor the placeholder."""
    pool("A", "B", strategy="fill")
    client = connect(gemini.add_key("own").value if own == "own" else own)
    gemini.script("A", Reply.OVERLOADED)
    seen: list[set[str]] = []

    def uninstall() -> None:
        keyrot_middleware.uninstall()
        seen.append(changed(plain))

    in_pause(uninstall)
    assert ask(mode, client) == "ok from B"
    assert seen == [set()], "while nothing is being sent the SDK is as it was"
    values = [request.header_values(KEY) for request in gemini.log]
    assert values == [[gemini.key("A").value], [gemini.key("B").value]]


def test_a_call_on_its_way_to_the_transport(gemini, pool, connect, plain, monkeypatch) -> None:
    """An uninstall in another thread lets it get there: its own key was already taken off."""
    monkeypatch.setattr(pooled_calls, "_TO_TRANSPORT_S", 60.0)
    pool("A")
    uninstall = threading.Thread(target=keyrot_middleware.uninstall)

    def hook(_request: Any) -> None:
        uninstall.start()
        while changed(plain):
            time.sleep(0.001)

    options = {"event_hooks": {"request": [hook]}}
    client = connect(gemini.add_key("own").value, client_args=options)
    assert ask("sync", client) == "ok from A"
    uninstall.join()
