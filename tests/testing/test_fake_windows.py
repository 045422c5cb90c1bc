"""The kinds of window in which the fake service counts a minute."""

from __future__ import annotations

import pytest
from google import genai
from google.genai import errors

from keyrot_middleware.core.error_body import parse_error
from keyrot_middleware.testing import FakeClock, FakeGemini
from keyrot_middleware.testing.quota import Limits, QuotaCounter, Window

MODEL = "gemini-2.5-flash"
AT = (0.0, 20.0, 29.0, 31.0, 59.9, 60.0, 61.0, 72.0, 90.0)


def passes(window: Window, limits: Limits, tokens: int = 0) -> list[int]:
    """Send ten requests at each time, beginning at :30; return how many were served."""
    book, start = QuotaCounter(window), FakeClock().time()
    book.limit("p", limits)
    return [
        sum(not book.charge("p", MODEL, start + at, tokens=tokens) for _ in range(10)) for at in AT
    ]


@pytest.mark.parametrize(
    ("window", "let_through"),
    [
        ("minute", [5, 0, 0, 5, 0, 0, 0, 0, 5]),
        ("sliding", [5, 0, 0, 0, 0, 5, 0, 0, 0]),
        ("bucket", [5, 1, 1, 0, 2, 1, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("tokens", [0, 100])
def test_a_limit_of_five_in_each_window(
    window: Window, let_through: list[int], tokens: int
) -> None:
    """Requests and tokens alike: all at :00, all after 60 s, or one every 12 s."""
    limits = Limits(tpm=500) if tokens else Limits(rpm=5)
    assert passes(window, limits, tokens) == let_through


@pytest.mark.parametrize(
    ("window", "wait_s", "used_after"),
    [("minute", 20.0, 1), ("sliding", 50.0, 1), ("bucket", 2.0, 3)],
)
def test_a_refusal_names_the_time_when_there_is_room(
    window: Window, wait_s: float, used_after: int
) -> None:
    """Ten seconds after five requests the next is refused until the named time, not longer."""
    clock = FakeClock()
    with FakeGemini(clock, window=window) as gemini:
        key = gemini.add_key("free", rpm=5)
        client = genai.Client(api_key=key.value, http_options=gemini.http_options)

        def call() -> float | None:
            try:
                client.models.generate_content(model=MODEL, contents="hello")
            except errors.ClientError as error:
                return parse_error(429, error.details, None, clock.time()).retry_delay_s
            return None

        assert [call() for _ in range(5)] == [None] * 5
        clock.advance(10)
        assert call() == pytest.approx(wait_s)
        clock.advance(wait_s - 0.01)
        assert call() == pytest.approx(0.01, abs=1e-5)
        clock.advance(0.011)
        assert call() is None
        clock.advance(29)
        assert gemini.used("free", MODEL).requests == used_after
        client.close()


def test_an_unknown_window_is_refused() -> None:
    """A misspelt kind would silently test the wrong window."""
    with pytest.raises(ValueError, match="'minute', 'sliding', 'bucket'"):
        FakeGemini(window="rolling")  # type: ignore[arg-type]  # the mistake under test
