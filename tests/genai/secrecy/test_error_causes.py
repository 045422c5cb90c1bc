"""Errors that follow from a missing or refused key name the cause."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google import genai

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

HINT = "Google no longer accepts unrestricted standard keys"


@pytest.fixture(autouse=True)
def _uninstall() -> Iterator[None]:
    yield
    keyrot_middleware.uninstall()


def test_the_error_of_a_client_without_a_key_explains_that_install_found_none() -> None:
    """The SDK's own error; after uninstall() it is as the SDK raises it."""
    keyrot_middleware.install()
    with pytest.raises(ValueError, match="API key") as raised:
        genai.Client()
    (note,) = raised.value.__notes__
    assert note.startswith("keyrot: install() found no Gemini API key: set GEMINI_API_KEYS")
    keyrot_middleware.uninstall()
    with pytest.raises(ValueError, match="API key") as raised:
        genai.Client()
    assert not hasattr(raised.value, "__notes__")


def test_a_client_without_a_key_can_be_made_once_install_finds_one(gemini: FakeGemini) -> None:
    """A second install() replaces the patch that only explained errors."""
    keyrot_middleware.install()
    keyrot_middleware.install(keys=["FAKE-value-of-a-key"])
    genai.Client().close()


def test_the_rejection_of_a_standard_key_is_explained_in_note_and_log(
    gemini: FakeGemini, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Once in the log for each key, and in the error that is raised."""
    key = gemini.add_key("a").value
    assert key.startswith("AIza")
    gemini.always("a", Reply.KEY_INVALID)
    keyrot_middleware.install(keys=[key], allowed_hosts=[gemini.host], max_wait_s=0)
    caplog.set_level(logging.WARNING, "keyrot_middleware")
    with pytest.raises(genai.errors.ClientError) as raised:
        connect().models.generate_content(model="gemini-2.5-flash", contents="hi")
    notes = raised.value.__notes__
    assert [HINT in note for note in notes].count(True) == 1
    assert caplog.text.count(HINT) == 1
    assert "https://ai.google.dev/gemini-api/docs/api-key" in caplog.text
    assert key not in caplog.text + "".join(notes)
