"""A day with a model that Google answers by another one: what is sent, counted and said."""

import json
from typing import Any

import pytest

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

OLD, NEW = "gemini-2.5-flash", "gemini-3.5-flash-lite"
SAID = f"Google answers {OLD} by {NEW}; both names count in one limit"


def ask(client: Any, *models: str) -> list[int]:
    """Return the code of each call, 200 for one that was answered."""
    codes = []
    for model in models:
        try:
            client.models.generate_content(model=model, contents="hi")
        except keyrot_middleware.KeyPoolExhausted as error:
            codes.append(error.code)
        else:
            codes.append(200)
    return codes


@pytest.mark.usefixtures("within_a_minute")
def test_two_names_of_a_model_send_no_more_than_one_limit_allows(
    gemini: FakeGemini,
    pool: Any,
    connect: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said once, and in status(); no request gets a 429."""
    value = gemini.add_key("a").value
    (tmp_path / "keys.json").write_text(json.dumps([{"key_id": "a", "rpd": 5}]))
    monkeypatch.setenv("GEMINI_KEY_a", value)
    keyrot_middleware.install(
        keys_file=tmp_path / "keys.json", allowed_hosts=[gemini.host], max_wait_s=0
    )
    client = connect()
    codes = ask(client, *[OLD, NEW] * 6)
    state = keyrot_middleware.status()
    assert [SAID in one.getMessage() for one in caplog.records].count(True) == 1
    assert (codes.count(200), codes.count(429)) == (5, 7)
    assert gemini.sent("a") == 5
    assert any(line.startswith(SAID) for line in state["headline"])
    used = state["keys"]["a"]["used"]
    assert used[OLD]["counts_with"] == NEW
    assert used[NEW]["counts_with"] is None
    assert used[NEW]["fullest_minute"]["limit"] == "rpm"
    shared = ("requests_minute", "requests_day", "rpd", "fullest_minute", "runs_out_at")
    assert [used[OLD][name] for name in shared] == [used[NEW][name] for name in shared]
    assert used[OLD]["requests_day"] == used[OLD]["rpd"]["used"] == 5
    assert used[OLD]["held_back"] + used[NEW]["held_back"] == 7
    assert used[OLD]["refused"] == used[NEW]["refused"] == 0


def test_a_limit_of_the_provider_is_told_from_our_own(
    gemini: FakeGemini, pool: Any, connect: Any
) -> None:
    """Each is counted for its key: what was refused there, and then held back here."""
    pool("A", max_wait_s=0)
    gemini.limit("project-A", rpm=2)
    codes = ask(connect(), *[NEW] * 5)
    assert (codes.count(200), codes.count(429)) == (2, 3)
    ((_, key),) = keyrot_middleware.status()["keys"].items()
    assert (key["used"][NEW]["refused"], key["used"][NEW]["held_back"]) == (1, 2)
