"""Calls that count in no model's quota are neither counted nor stopped by the pool."""

from __future__ import annotations

import pytest
from support.modes import MODEL

from keyrot_middleware.testing import FakeGemini, Reply

KEY = {"key_id": "A", "rpm": 5, "rpd": 20, "tpm": 1_000}


@pytest.fixture
def client(gemini: FakeGemini, pool, connect):
    """Connect to a pool of one key that has limits."""
    gemini.add_key("A")
    pool(KEY, max_wait_s=0)
    return connect()


def test_polling_a_file_uses_up_no_limit(client, clock, tmp_path) -> None:
    """Forty requests for a file change neither the minute nor the day."""
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    file = client.files.upload(file=str(path))
    for _ in range(40):
        client.files.get(name=file.name)
    assert client.models.generate_content(model=MODEL, contents="x").text


def test_counting_tokens_costs_nothing_and_is_never_refused(client, gemini: FakeGemini) -> None:
    """It reserves nothing, however much there is to count; an exhausted day does not stop it."""
    for _ in range(25):
        client.models.count_tokens(model=MODEL, contents="word " * 2_000)
    assert client.models.generate_content(model=MODEL, contents="x").text
    gemini.script("A", Reply.QUOTA_DAY)
    with pytest.raises(Exception, match="429"):
        client.models.generate_content(model=MODEL, contents="x")
    assert client.models.count_tokens(model=MODEL, contents="x").total_tokens
    assert client.models.get(model=MODEL).name


def test_a_batch_reserves_no_tokens_of_the_minute(client) -> None:
    """Enqueued requests have limits of their own."""
    lines = [{"contents": [{"parts": [{"text": "word " * 2_000}]}]}]
    client.batches.create(model=MODEL, src=lines)
    assert client.models.generate_content(model=MODEL, contents="x").text


def test_a_refused_list_stops_no_other_call(client, gemini: FakeGemini) -> None:
    """A 429 without details affects that one list only."""
    gemini.script_any(Reply.HELP_ONLY)
    with pytest.raises(Exception, match="429"):
        list(client.batches.list())
    assert list(client.caches.list()) == []
    assert client.models.generate_content(model=MODEL, contents="x").text


def test_a_refused_count_cools_down_counting_alone(gemini: FakeGemini, pool, connect) -> None:
    """The other key counts meanwhile; both serve."""
    gemini.add_key("A")
    gemini.add_key("B")
    pool({"key_id": "A"}, {"key_id": "B", "priority": 1})
    client = connect()
    gemini.script("A", Reply.QUOTA_MINUTE)
    for _ in range(3):
        client.models.count_tokens(model=MODEL, contents="x")
    assert [gemini.sent("A"), gemini.sent("B")] == [1, 3]
    assert client.models.generate_content(model=MODEL, contents="x").text
    assert [gemini.sent("A"), gemini.sent("B")] == [2, 3]
