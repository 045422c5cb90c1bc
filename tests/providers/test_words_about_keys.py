"""Replies whose words say more than their status: about a key, about a model, and until when."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyrot_middleware import providers
from keyrot_middleware.core.failures import FailureFacts, names_model, reset_s
from keyrot_middleware.core.model import CallInfo, Verdict

NOW = 1_790_000_000.0
"""21 September 2026, 14:13:20 UTC."""
INFO = CallInfo("gpt-4o", "chat", 10, 10)


def _classify(platform: str, status: int | None, body: Any, info: CallInfo = INFO) -> Verdict:
    return providers.of(platform).classify(FailureFacts(status, body), info, NOW)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "odd", "code": None}}


# A 400 -------------------------------------------------------------------------------------------

ABOUT_WHO_ASKS = [
    "Your organization must be verified to stream this model.",
    "The API key is malformed",
    "Provided api-keys are for another region's workspace",
    "Workspace archived",
    "Bob's account doesn't have this",
    "The field 'x' is not part of your subscription",
    "Access to this needs a paid plan.",
    "Please check your plan and billing details",
    "not enough balance, top up",
    "No credits left",
    "Authentication failed",
]
ABOUT_THE_REQUEST = [
    "account_id is required",
    "Unknown parameter: 'account'.",
    "Tool `get_account` or `account` has no description",
    'Invalid value for "billing": “account” is no number',
    "tools.0.account: required",
    "messages[0].billing.plan is too long",
    "Take this into account: no",
    "see https://example.test/account/api-keys",
    "a quote ' that is open, account",
    "The key 'foo' is required in the object",
    "This model's maximum context length is 8192 tokens.",
    "accounting and planning",
    "",
]


@pytest.mark.parametrize("platform", ["openai", "anthropic", "groq", "cohere", "fireworks"])
@pytest.mark.parametrize("message", ABOUT_WHO_ASKS)
def test_a_400_in_words_about_who_asks_lets_another_key_be_asked(
    message: str, platform: str
) -> None:
    """It blames nobody."""
    verdict = _classify(platform, 400, _error(message))
    assert (verdict.failure, verdict.rotate, verdict.scope.value) == (
        "unknown_refusal",
        True,
        "none",
    )


@pytest.mark.parametrize("message", ABOUT_THE_REQUEST)
def test_a_400_about_the_request_is_raised(message: str) -> None:
    """What it quotes, and names and paths of fields, are no words about who asks."""
    assert _classify("openai", 400, _error(message)).failure == "bad_request"


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("message", ABOUT_WHO_ASKS)
def test_geminis_own_400_and_403_are_known(message: str, status: int) -> None:
    """Each request counts there, so no other key is asked."""
    body = {"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT"}}
    assert not _classify("gemini_api", status, body).rotate


@pytest.mark.parametrize(
    "message",
    ["a'" * 4_000, "'" * 8_000, '"' * 7_999, "`" * 8_001, " 'a' \"b\" " * 900, "accoun" * 1_300],
    ids=lambda message: message[:6],
)
def test_a_long_message_costs_little(message: str) -> None:
    """Quotes that are never closed, or many of them, are read once."""
    began = time.perf_counter()
    _classify("openai", 400, _error(message))
    assert time.perf_counter() - began < 0.5


# A 401 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["openai", "xai", "together", "fireworks", "gemini_api"])
@pytest.mark.parametrize(
    "message", ["Invalid token for model x", "No gpt-4o for you", "The MODEL, gone."]
)
def test_a_bare_401_that_names_a_model_rejects_no_key(message: str, platform: str) -> None:
    """Another key is asked, and what comes of it decides."""
    body = {"error": {"message": message, "type": "x", "code": 401, "status": "UNAUTHENTICATED"}}
    if platform != "gemini_api":
        body["error"]["code"] = "x"
    assert _classify(platform, 401, body).failure == "unknown_refusal"
    assert _classify(platform, 401, body, INFO._replace(model="")).rejected is (
        platform not in ("openai",)
    )


@pytest.mark.parametrize(
    ("message", "model", "names"),
    [
        ("the model is gone", "gpt-4o", True),
        ("models/gemini-3 is not for you", "gemini-3", True),
        ("no deepseek/chat", "deepseek/chat", True),
        ("no gpt-4o-mini", "gpt-4o", False),
        ("I'm sorry", "m", False),
        ("Missing scopes: model.request", "gpt-4o", False),
        ("model_not_found", "gpt-4o", False),
        ("see https://x.test/model/list", "gpt-4o", False),
        ("all models are closed", "gpt-4o", False),
        ("the model is gone", "", False),
        ("a(b", "a(b", True),
    ],
)
def test_a_message_names_a_model(message: str, model: str, names: bool) -> None:
    """That of the call, as a word of its own, or it says "model"."""
    assert names_model(message, INFO._replace(model=model)) is names


# Times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "after_s"),
    [
        ("Quota resets at 2026-09-21 15:00:00 UTC.", 2_800),
        ("try again at 2026-09-21 14:14:00Z", 40),
        ("available on 2026-09-21T16:14:00+02:00", 40),
        ("reset at 2026-09-21 16:14:00 +0200", 40),
        ("resets 2026-09-21 14:14 gmt", 40),
        ("try again at 2026-09-21 14:14:00", None),
        ("resets at 2026-99-99 99:99:99 UTC", None),
        ("resets at 2020-01-01 00:00:00 UTC", None),
    ],
)
def test_a_time_in_words_has_a_blank_or_a_t(message: str, after_s: float | None) -> None:
    """Without a zone it is none: it may be that of any country."""
    parsed = providers.of("groq").parse_error(FailureFacts(429, _error(message)), NOW)
    assert parsed.retry_delay_s == after_s


@pytest.mark.parametrize(
    ("value", "after_s"),
    [
        ('"default";r=0;t=142', 142),
        ("default;t=142;r=0", 142),
        ('"a";r=5;t=10, "b";r=0;t=7, "c";r=0;t=9', 9),
        ('"a";r=5;t=10', 10),
        ('"a";r=5;t=10, "b";r=3;t=7', None),
        ('"x,r=0;t=1";r=0;t=8', 8),
        ("limit=100, remaining=0, reset=50", 50),
        ("limit=100,remaining=7,reset=50", 50),
        ('"a";q=100;w=60', None),
        ('"a";r=0;t=99999999999', None),
        ('"a";r=0;t=1e9', None),
        ('"a";r=0;t=-5', None),
        ('"a";r=0', None),
        ("", None),
    ],
)
@pytest.mark.parametrize("name", ["RateLimit", "ratelimit", "X-RateLimit"])
def test_one_header_may_have_a_whole_limit(name: str, value: str, after_s: float | None) -> None:
    """Of several, the last one that is used up."""
    assert reset_s({name: value}, NOW) == after_s


@given(st.dictionaries(st.sampled_from(["ratelimit", "RateLimit-Reset"]), st.text(max_size=40)))
def test_no_header_breaks_the_search_for_a_time(headers: dict[str, str]) -> None:
    """It has a time that is sane, or none."""
    found = reset_s(headers, NOW)
    assert found is None or 0 < found <= 90_000


# Server-sent events ------------------------------------------------------------------------------

_INVALID = '{"error": {"message": "Invalid API key", "type": "x", "code": "invalid_api_key"}}'
_EXPIRED = (
    '{"error": {"code": 400, "message": "API key expired. Please renew", "status": '
    '"INVALID_ARGUMENT"}}'
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "text",
    [
        "data: {}",
        "event: error\ndata: {}\n\ndata: [DONE]\n\n",
        ": busy\n\nid: 1\nevent: error\ndata:{}\n\n",
    ],
)
def test_an_error_may_be_an_event(text: str, end: str) -> None:
    """All providers read the JSON in it."""
    for platform, error, wanted in (
        ("openai", _INVALID, "key_invalid"),
        ("cohere", _INVALID, "key_invalid"),
        ("anthropic", _INVALID, "key_invalid"),
        ("gemini_api", _EXPIRED, "key_expired"),
    ):
        body = text.replace("{}", error).replace("\n", end)
        assert _classify(platform, 400, body).failure == wanted


def test_an_event_may_have_several_lines() -> None:
    """They are one text."""
    body = "event: error\n" + "".join(f"data: {line}\n" for line in _INVALID.partition(", "))
    assert _classify("openai", 400, body).failure == "key_invalid"


@given(st.lists(st.sampled_from(["data:", "event:", ":", "\n", "\r", " ", "{", "[", '"', "}"])))
def test_no_text_of_events_breaks_the_verdict(parts: list[str]) -> None:
    """It has a class, whatever it is."""
    for platform in providers.platforms():
        assert _classify(platform, 400, "".join(parts)).scope.value == "none"
