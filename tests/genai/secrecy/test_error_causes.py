"""Errors that follow from a missing or refused key name the cause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google import genai

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini


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
