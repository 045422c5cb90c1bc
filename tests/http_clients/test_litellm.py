"""litellm, unchanged, over a pool: each of its ways to send, and its own errors."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
from support.http_modes import LITELLM, MESSAGES

from keyrot_middleware.testing import Reply

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import litellm

_ERRORS = (litellm.RateLimitError, litellm.exceptions.MidStreamFallbackError)
"""The second holds the first, where a stream was asked for: litellm does so for every 429."""

# What litellm warns of, and leaves open, is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect what litellm leaves open here, where its warnings are ignored."""
    yield
    gc.collect()


@pytest.mark.parametrize("mode", LITELLM)
def test_sixty_calls_meet_each_bad_key_once(mode, gemini, one_good) -> None:
    """An exhausted and an invalid key cost one request each, and none of 60 calls fails."""
    one_good()
    assert set(LITELLM[mode](gemini.url, "keyrot-pool", 60)) == {"ok from C"}
    assert (gemini.sent("A"), gemini.sent("B"), gemini.sent("C")) == (1, 1, 60)


@pytest.mark.parametrize("mode", ["litellm-completion", "litellm-stream", "litellm-acompletion"])
def test_no_key_is_litellms_own_rate_limit_error(mode, gemini, pool) -> None:
    """Its RateLimitError names each key and why, and nothing is sent for a second call."""
    pool("A", "B", max_wait_s=0)
    for key in ("A", "B"):
        gemini.always(key, Reply.QUOTA_MINUTE)
    for _ in range(2):
        with pytest.raises(_ERRORS) as caught:
            LITELLM[mode](gemini.url, "keyrot-pool", 1)
        assert "No Gemini API key of pool" in str(caught.value)
        assert "A: quota_minute until 20" in str(caught.value)
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 1)


def test_a_bad_request_is_litellms_own_error(gemini, pool) -> None:
    """A 400 about the request is raised at once, and no other key is tried."""
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.BAD_REQUEST)
    options = {"api_key": "keyrot-pool", "api_base": f"{gemini.url}/v1beta"}
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="gemini/gemini-2.5-flash", messages=MESSAGES, **options)
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 0)
