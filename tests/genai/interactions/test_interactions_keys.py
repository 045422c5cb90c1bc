"""Which key a request of Interactions carries, and which requests the pool leaves alone."""

from __future__ import annotations

import logging

import pytest
from support.interactions import SDK, SDK_WARNINGS, create, keys_of
from support.modes import MODES, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = SDK_WARNINGS


@pytest.mark.parametrize(
    ("name", "mode"), spread(["x-goog-api-key", "X-Goog-Api-Key", "authorization"], MODES)
)
def test_one_key_goes_out(mode, name, gemini, pool, connect) -> None:
    """A client's headers may repeat its own key, in another case or as a bearer token."""
    pool("A", "B", strategy="fill")
    own = gemini.add_key("own").value
    again = f"Bearer {own}" if name == "authorization" else own
    gemini.script("A", Reply.KEY_INVALID)
    assert create(mode, connect(own, headers={name: again})) == ["ok from B"]
    for request, key in zip(gemini.log, "AB", strict=True):
        assert request.header_values("x-goog-api-key") == [gemini.key(key).value]
        assert own not in repr(request.headers)


@pytest.mark.parametrize("mode", MODES)
def test_a_key_of_the_callers_own_is_used_untouched(mode, gemini, pool, connect) -> None:
    """In the headers of one request, and inside `bypass()`."""
    pool("A")
    own = gemini.add_key("own").value
    headers = {"x-goog-api-key": own}
    assert create(mode, connect(), extra_headers=headers) == ["ok from own"]
    with keyrot_middleware.bypass():
        assert create(mode, connect(own)) == ["ok from own"]
    assert keys_of(gemini) == ["own", "own"]


@pytest.mark.skipif(SDK < (2, 0), reason="1.x logs no headers")
@pytest.mark.parametrize("mode", MODES)
def test_the_sdks_debug_log_shows_no_key(mode, gemini, pool, connect, caplog, monkeypatch) -> None:
    """With GOOGLE_GENAI_DEBUG the SDK logs the headers of each request before it is sent."""
    monkeypatch.setenv("GOOGLE_GENAI_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.KEY_INVALID)
    assert create(mode, connect()) == ["ok from B"]
    assert "x-goog-api-key" in caplog.text
    assert [key for key in "AB" if gemini.key(key).value in caplog.text] == []
