"""Model names from a program's users: neither memory nor terminals suffer."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import pytest
from google.genai import errors
from support.modes import ask

import keyrot_middleware
from keyrot_middleware.core.model_names import MAX_NAMES
from keyrot_middleware.monitoring.view import source_of


def test_any_number_of_model_names_leaves_a_bounded_state(
    gemini: Any, pool: Any, connect: Any
) -> None:
    """A thousand names: the state and status() stay small, and the limit of a real one holds."""
    pool({"key_id": "A", "rpm": 1_000_000})
    client = connect()
    assert ask("sync", client) == "ok from A"
    for number in range(MAX_NAMES + 50):
        with suppress(errors.ClientError):
            ask("sync", client, model=f"junk-{number}")
    used = keyrot_middleware.status()["keys"]["A"]["used"]
    assert len(used) <= MAX_NAMES + 1
    assert used["gemini-2.5-flash"]["requests_day"] == 1


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_key_in_place_of_the_model_is_shown_nowhere(
    way: str, gemini: Any, pool: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in status(), nor in a log line, nor in what the page shows of the call."""
    caplog.set_level(logging.DEBUG, "keyrot_middleware")
    installed = pool("A", max_wait_s=0)
    key = "AIzaFAKE" + "b3" * 16
    with suppress(errors.ClientError):
        ask(way, connect(), model=key)
    shown = [keyrot_middleware.status(), source_of(installed).status(), caplog.text]
    assert "AIza" in str(shown)
    assert key not in str([*shown, source_of(installed).attempts()])
