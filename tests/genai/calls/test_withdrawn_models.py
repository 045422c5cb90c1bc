"""A model that Google closes to new projects: every error says so, and what to use instead."""

from __future__ import annotations

from typing import Any

import pytest
from support.modes import MODES, ask

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted
from keyrot_middleware.runtime.pool import MODELS_WARNED
from keyrot_middleware.testing import Reply

OLD = "gemini-2.5-flash"
SENTENCE = (
    f"This model models/{OLD} is no longer available to new users, use "
    "models/gemini-3.5-flash-lite."
)


def failing(call: Any) -> KeyPoolExhausted:
    """Make a call that must fail without being sent; return its error."""
    with pytest.raises(KeyPoolExhausted) as raised:
        call()
    return raised.value


@pytest.mark.parametrize("mode", MODES)
def test_the_second_call_says_what_to_use_instead(
    mode: str, gemini: Any, pool: Any, connect: Any
) -> None:
    """Every project is asked once; later calls send nothing and quote Google."""
    pool("A", "B", "C")
    gemini.always_any(Reply.NEW_USERS)
    with pytest.raises(Exception, match="no longer available to new users"):
        ask(mode, connect(), model=OLD)
    for _ in range(3):
        error = failing(lambda: ask(mode, connect(), model=OLD))
        assert SENTENCE in error.message
        assert SENTENCE in error.response.text
        assert {why.split()[0] for why in error.reasons.values()} == {"model_withdrawn"}
    assert gemini.count() == 3


def test_other_models_are_not_affected(gemini: Any, pool: Any, connect: Any) -> None:
    """Their errors quote nothing, and they are served."""
    pool("A", max_wait_s=0)
    gemini.script("A", Reply.NEW_USERS)
    client = connect()
    with pytest.raises(Exception, match="new users"):
        ask("sync", client, model=OLD)
    assert ask("sync", client, model="gemini-3.8-flash") == "ok from A"
    gemini.script("A", Reply.QUOTA_DAY)
    with pytest.raises(Exception, match="quota"):
        ask("sync", client, model="gemini-3.8-flash")
    error = failing(lambda: ask("sync", client, model="gemini-3.8-flash"))
    assert "Google says" not in error.message
    assert SENTENCE in failing(lambda: ask("sync", client, model=OLD)).message


def test_interactions_and_keys_by_hand_say_so_too(gemini: Any, pool: Any, connect: Any) -> None:
    """They have errors of their own, with the same text."""
    pool("A")
    gemini.always("A", Reply.NEW_USERS)
    client = connect()
    with pytest.raises(Exception, match="new users"):
        client.interactions.create(model=OLD, input="hello")
    error = failing(lambda: client.interactions.create(model=OLD, input="hello"))
    assert SENTENCE in str(error)
    with keyrot_middleware.get_key_manager() as manager:
        assert SENTENCE in failing(lambda: manager.select_key(OLD)).message


def test_an_error_that_is_reported_by_hand_is_quoted(gemini: Any, pool: Any, connect: Any) -> None:
    """The next selection says what to use instead."""
    pool("A")
    gemini.always("A", Reply.NEW_USERS)
    with keyrot_middleware.get_key_manager() as manager:
        key = manager.select_key(OLD)
        with keyrot_middleware.bypass(), pytest.raises(Exception, match="new users") as raised:
            ask("sync", connect(key.api_key), model=OLD)
        manager.report_error(key.key_id, raised.value)
        assert SENTENCE in failing(lambda: manager.select_key(OLD)).message


def test_no_key_is_quoted(gemini: Any, pool: Any, connect: Any) -> None:
    """Not even where Google repeats one, and a long text is cut."""
    pool("A")
    key = gemini.key("A").value
    text = f"no longer available to new users, use X; your key {key} {'x' * 1_000}"
    body = {"error": {"code": 404, "message": text, "status": "NOT_FOUND"}}
    gemini.always("A", Reply.custom(404, body))
    with pytest.raises(Exception, match="new users"):
        ask("sync", connect(), model=OLD)
    error = failing(lambda: ask("sync", connect(), model=OLD))
    assert key not in str(error)
    assert 'Google says: "no longer available to new users, use X; your key' in str(error)
    assert len(error.message) < 600


def test_the_sentences_are_bounded(gemini: Any, pool: Any, connect: Any) -> None:
    """A program may invent any number of models."""
    made = pool("A")
    gemini.always("A", Reply.NEW_USERS)
    client = connect()
    for number in range(MODELS_WARNED + 1):
        with pytest.raises(Exception, match="new users"):
            ask("sync", client, model=f"gemini-{number}")
    assert len(made.withdrawn) == 1
