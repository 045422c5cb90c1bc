"""`KeyManager.explain()`, and the activity of keys that are selected by hand."""

from __future__ import annotations

import pytest
from support.pool import Rig, key

from keyrot_middleware import KeyManager, KeyrotError
from keyrot_middleware.monitoring.view import source_of

MODEL = "gemini-2.5-flash"


@pytest.mark.usefixtures("clean_environment")
def test_explain_names_the_key_that_select_key_then_gives() -> None:
    """And has the reason why each other key is not used; negative tokens are refused."""
    manager = KeyManager(keys=["FAKE-key-one", "FAKE-key-two"], strategy="fill")
    assert manager.explain(MODEL)["key_id"] == manager.select_key(MODEL).key_id == "key_1"
    manager.report_error("key_1", TimeoutError())
    found = manager.explain(MODEL, 5)
    assert [key["available"] for key in found["keys"]] == [True, True]
    with pytest.raises(KeyrotError, match="whole numbers"):
        manager.explain(MODEL, -1)


@pytest.mark.usefixtures("clean_environment")
def test_requests_with_keys_selected_by_hand_are_part_of_the_history() -> None:
    """A success and a failure: two requests, one failure, the tokens of the day."""
    pool = Rig(key("a")).pool
    manager, source = KeyManager(pool), source_of(pool)
    selected = manager.select_key(MODEL, 10)
    manager.report_success(selected.key_id, tokens_used=8)
    manager.report_error(manager.select_key(MODEL).key_id, ConnectionError())
    summary = source_of(pool).status()["summary"]
    counts = {"calls": 2, "failed_calls": 1, "requests": 2, "failures": 1, "waits": 0}
    assert summary["last_hour"] == counts
    assert summary["today"]["input_tokens"] == 8
    assert {call["outcome"] for call in source.attempts()["calls"]} == {"ok", "failed"}
