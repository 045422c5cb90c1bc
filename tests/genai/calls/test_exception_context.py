"""An exception that the program handles while it calls is neither read nor changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.genai import errors
from support.modes import AIOHTTP, MODES, ask, sdk_error

from keyrot_middleware import errors as guard
from keyrot_middleware.adapters.redaction import redact_exception
from keyrot_middleware.testing import Reply

TOKEN = "Bearer FAKE-token-of-another-service"


class AnotherError(Exception):
    """An error of another HTTP library with its request; its response is not available yet."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.request = SimpleNamespace(headers={"authorization": TOKEN})

    @property
    def response(self) -> Any:
        """Raise, as some libraries do."""
        raise RuntimeError("no response yet")


def fall_back(mode: str, client: Any) -> tuple[AnotherError, errors.APIError]:
    """Call Gemini while another error is handled; return both errors."""
    try:
        raise AnotherError  # noqa: TRY301 - the handler that we call in is what matters
    except AnotherError as first:
        with pytest.raises(errors.APIError) as caught:
            ask(mode, client)
        return first, caught.value


@pytest.mark.parametrize("mode", MODES)
def test_a_request_of_the_programs_own_keeps_its_headers(mode, gemini, pool, connect) -> None:
    """An error that is handled during a call keeps its request unchanged."""
    pool("A", "B", max_wait_s=0)
    gemini.always_any(Reply.QUOTA_MINUTE)
    handled, raised = fall_back(mode, connect())
    assert raised.code == 429
    assert handled.request.headers == {"authorization": TOKEN}


@pytest.mark.parametrize("mode", MODES)
def test_a_header_that_is_no_key_stays_readable(mode, gemini, pool, connect) -> None:
    """The key is removed from the failed request itself, and not the program's own token."""
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_DAY)
    with pytest.raises(errors.APIError) as caught:
        ask(mode, connect(headers={"Authorization": TOKEN}))
    response = sdk_error(caught.value).response
    if not (AIOHTTP and mode.startswith("async")):  # which has no request
        assert response.request.headers["authorization"] == TOKEN
        assert response.request.headers["x-goog-api-key"] == "keyrot-pool"


class Unreadable:
    """What a foreign library has among its arguments."""

    def __str__(self) -> str:
        raise RuntimeError("no text yet")


def test_an_unreadable_exception_in_the_chain_does_not_replace_the_error(
    monkeypatch, caplog
) -> None:
    """An unreadable exception is logged, and the others are still redacted."""
    monkeypatch.setattr(guard, "_strict", False)
    error, odd, behind = ValueError("FAKE-value"), AnotherError("FAKE-value"), OSError("FAKE-value")
    error.__cause__, odd.__context__, behind.__context__ = odd, behind, ValueError(Unreadable())
    redact_exception(error, lambda text: text.replace("FAKE-value", "[redacted]"))
    assert [str(one) for one in (error, odd, behind)] == ["[redacted]"] * 3
    assert "adapters failed (<class 'RuntimeError'>" in caplog.text
