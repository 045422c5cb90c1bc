"""The failure tables of the providers: what a refusal means, by its text as it was reported."""

from typing import Any

import pytest

from keyrot_middleware import providers
from keyrot_middleware.core.failures import (
    CLASSES,
    KEY_REJECTIONS,
    METHOD_FAILURES,
    REJECTIONS,
    FailureFacts,
    Implies,
)
from keyrot_middleware.core.model import MODEL_SCOPES, CallInfo, Scope

METHOD_SCOPES = (Scope.KEY_VERB, Scope.PROJECT_CACHE)

NOW = 1_790_000_000.0
"""21 September 2026, 14:13:20 UTC; the next minute begins in 40 s."""
HOUR, DAY = 3_600, 86_400
MONTH = 812_800
"""Until 1 October."""


def _error(message: str, kind: str | None = None, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, **more}}


def _window(what: str, unit: str, requested: int = 4_035) -> str:
    short = f"{what[0].upper()}P{unit[0].upper()}"
    return (
        f"Rate limit reached for model `m` in organization `org_x` on {what} per {unit} ({short}): "
        f"Limit 200000, Used 197494, Requested {requested}. Please try again in 11m0.5s."
    )


def _openrouter(kind: str, **metadata: str) -> dict[str, Any]:
    return _error("It failed.", None, 402, metadata={"error_type": kind, **metadata})


K, KV, ORG, ACC, KM = Scope.KEY, Scope.KEY_VERB, Scope.PROJECT, Scope.BILLING, Scope.KEY_MODEL
MODEL, NOBODY = Scope.PROJECT_MODEL, Scope.NONE
NO = None
ROWS: list[tuple[str, int | None, Any, str, Scope, float | None]] = [
    # Provider, status, body, class, what cools down, for how many seconds (None: not named).
    ("openai", 401, _error("Closed.", "x", "account_deactivated"), "key_denied", K, NO),
    ("openai", 401, _error("You must be a member of an organization"), "key_denied", K, NO),
    ("openai", 401, _error("Your IP is not authorized", "x"), "key_restricted", K, NO),
    ("openai", 401, "<html>Sign in to the proxy</html>", "unknown_refusal", NOBODY, NO),
    ("openai", 403, _error("Country not supported", "x", "x"), "forbidden", NOBODY, NO),
    ("openai", 429, _error(_window("requests", "min"), "requests"), "quota_minute", MODEL, 660.5),
    ("openai", 429, _error(_window("requests", "day"), "requests"), "quota_day", MODEL, 660.5),
    ("openai", 429, _error(_window("tokens", "min"), "tokens"), "quota_minute", MODEL, 660.5),
    ("openai", 429, _error(_window("tokens", "min", 300_000), "tokens"), "too_large", NOBODY, NO),
    ("openai", 429, _error("Slow down.", "rate_limit_error", "slow_down"), "rate_limit", MODEL, NO),
    ("openai", 429, _error("Quota.", "insufficient_quota"), "credit_depleted", ACC, HOUR),
    (
        "openai",
        429,
        _error("Cap.", "insufficient_quota", "organization_spend_limit_exceeded"),
        *("billing_cap", ACC, HOUR),
    ),
    (
        "openai",
        429,
        _error("Cap.", "insufficient_quota", "project_spend_limit_exceeded"),
        *("project_cap", ORG, HOUR),
    ),
    ("openai", 503, _error("Busy.", "x", "server_is_overloaded"), "overloaded", NOBODY, NO),
    (
        "openai",
        None,
        {"type": "error", **_error("Oh.", "server_error")},
        "server_error",
        NOBODY,
        NO,
    ),
    (
        "openai",
        None,
        {"type": "response.failed", "response": _error("Limit.", None, "rate_limit_exceeded")},
        *("rate_limit", MODEL, 40),
    ),
    ("anthropic", 403, _error("No.", "permission_error"), "model_denied", KM, DAY),
    (
        "anthropic",
        400,
        _error("Your credit balance is too low to access the API.", "invalid_request_error"),
        *("credit_depleted", ACC, HOUR),
    ),
    (
        "anthropic",
        400,
        _error(
            "You have reached your specified API usage limits. You will regain access on "
            "2026-10-01 at 00:00 UTC.",
            "invalid_request_error",
        ),
        *("billing_cap", ACC, MONTH),
    ),
    (
        "anthropic",
        400,
        _error("You have reached your specified workspace API usage limits.", "x"),
        *("project_cap", ORG, HOUR),
    ),
    ("anthropic", 402, _error("Pay.", "billing_error"), "payment_required", ACC, HOUR),
    (
        "anthropic",
        429,
        _error(
            "This request would exceed your organization's rate limit of 30,000 input tokens per "
            "minute (org: x, model: m).",
            "rate_limit_error",
        ),
        *("quota_minute", MODEL, 40),
    ),
    (
        "anthropic",
        429,
        _error("Cap.", "x", details={"error_code": "enforced_spend_limit_reached"}),
        *("billing_cap", ACC, MONTH),
    ),
    ("anthropic", 429, _error("Rate limited", "rate_limit_error"), "rate_limit", MODEL, NO),
    ("anthropic", 529, _error("Overloaded", "overloaded_error"), "overloaded", NOBODY, NO),
    (
        "anthropic",
        None,
        {"type": "error", **_error("Overloaded", "overloaded_error")},
        *("overloaded", NOBODY, NO),
    ),
    ("anthropic", 413, _error("Big.", "request_too_large"), "too_large", NOBODY, NO),
    ("openrouter", 401, _error("User not found.", None, 401), "key_invalid", K, NO),
    ("openrouter", 402, _error("You can only afford 30104", None, 402), "too_large", NOBODY, NO),
    (
        "openrouter",
        402,
        _openrouter("payment_required", limit_source="openrouter_credits"),
        *("credit_depleted", ACC, HOUR),
    ),
    (
        "openrouter",
        402,
        _openrouter("payment_required", limit_source="openrouter_key_limit"),
        *("key_restricted", K, NO),
    ),
    ("openrouter", 429, _openrouter("rate_limit_exceeded"), "rate_limit", MODEL, NO),
    (
        "openrouter",
        429,
        _openrouter("rate_limit_exceeded", provider_name="p"),
        *("overloaded", NOBODY, NO),
    ),
    ("openrouter", None, _error("Upstream.", None, 502), "server_error", NOBODY, NO),
    ("openrouter", 403, _error("Moderated.", None, 403), "forbidden", NOBODY, NO),
    ("groq", 429, _error(_window("tokens", "day"), "tokens", "x"), "quota_day", MODEL, 660.5),
    ("groq", 429, _error(_window("tokens", "minute"), "tokens"), "quota_minute", MODEL, 660.5),
    ("groq", 404, _error("No.", "x", "model_not_found"), "model_denied", MODEL, DAY),
    ("groq", 498, _error("Full.", "x", "capacity_exceeded"), "overloaded", NOBODY, NO),
    (
        "mistral",
        429,
        {
            "object": "error",
            "message": "Rate limit exceeded",
            "type": "rate_limited",
            "code": "1300",
        },
        *("rate_limit", MODEL, 40),
    ),
    ("mistral", 429, {"message": "Requests rate limit exceeded"}, "rate_limit", MODEL, 40),
    (
        "mistral",
        429,
        {"message": "Service tier capacity exceeded for this model.", "code": "3505"},
        *("overloaded", NOBODY, NO),
    ),
    ("mistral", 422, {"detail": [{"msg": "x"}]}, "bad_request", NOBODY, NO),
    (
        "xai",
        400,
        {"code": "invalid-argument", "error": "Incorrect API key provided: xx"},
        *("key_invalid", K, NO),
    ),
    ("xai", 400, {"code": "invalid-argument", "error": "No such field"}, "bad_request", NOBODY, NO),
    *(
        (
            "xai",
            status,
            {
                "code": "permission-denied",
                "error": "Your team has either used all available credits or reached its monthly "
                "spending limit.",
            },
            *("credit_depleted", ACC, HOUR),
        )
        for status in (403, 429)
    ),
    ("xai", 429, {"code": "x", "error": "Too many"}, "rate_limit", MODEL, 40),
    (
        "deepseek",
        402,
        _error("Insufficient Balance", "x"),
        "credit_depleted",
        ACC,
        HOUR,
    ),
    ("deepseek", 429, _error("Busy", "x"), "rate_limit", MODEL, NO),
    (
        "azure-openai",
        429,
        _error("Your requests to m have exceeded rate limit.", None, "RateLimitReached"),
        *("rate_limit", MODEL, 40),
    ),
    (
        "azure-openai",
        429,
        _error("exceeded token rate limit. Please retry after 6 seconds.", None, "429"),
        *("rate_limit", MODEL, 40),
    ),
    ("azure-openai", 400, _error("Filtered", None, "content_filter"), "bad_request", NOBODY, NO),
    (
        "together",
        429,
        _error("Slow.", error_type="dynamic_request_limited"),
        *("rate_limit", MODEL, NO),
    ),
    ("together", 403, _error("Too long.", "x"), "unknown_refusal", NOBODY, NO),
    (
        "fireworks",
        412,
        _error("Account x is suspended, possibly due to reaching the monthly spending limit"),
        *("billing_cap", ACC, HOUR),
    ),
    ("fireworks", 412, _error("LoRA failed to load"), "bad_request", NOBODY, NO),
    (
        "cerebras",
        429,
        {
            "message": "Tokens per minute limit exceeded - too many tokens processed.",
            "type": "too_many_tokens_error",
            "param": "quota",
            "code": "token_quota_exceeded",
        },
        *("quota_minute", MODEL, 40),
    ),
    ("perplexity", 429, _error("Slow.", "x", 429), "rate_limit", MODEL, NO),
    ("cohere", 401, {"message": "Your API key has expired"}, "key_invalid", K, NO),
    (
        "cohere",
        402,
        {"message": "Maximum billing reached for this API key. It will reset next month."},
        *("billing_cap", ACC, MONTH),
    ),
    (
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 40 API calls / minute."},
        *("quota_minute", MODEL, 40),
    ),
    ("cohere", 429, {"message": "Something else"}, "unknown_limit", KM, NO),
]


@pytest.mark.parametrize(("name", "status", "body", "failure", "scope", "after_s"), ROWS)
def test_a_refusal_has_its_class_and_its_end(
    name: str, status: int | None, body: Any, failure: str, scope: Scope, after_s: float | None
) -> None:
    """What cools down and until when is what the provider's own words say."""
    info = CallInfo("m", "chat", 10, 10)
    verdict = providers.of(name).classify(FailureFacts(status, body), info, NOW)
    assert (verdict.failure, verdict.scope) == (failure, scope)
    assert verdict.until == (None if after_s is None else pytest.approx(NOW + after_s))


@pytest.mark.parametrize("platform", providers.platforms())
def test_a_failure_class_is_about_the_same_everywhere(platform: str) -> None:
    """What a block means to selection and reports follows from its name alone."""
    for rule in providers.of(platform).rules:
        assert rule.rejected == (rule.name in REJECTIONS), rule.name
        assert (rule.rejected and rule.scope is Scope.KEY) == (rule.name in KEY_REJECTIONS)
        is_of_model = rule.scope is not Scope.NONE and Implies.MODEL in CLASSES[rule.name]
        assert (rule.scope in MODEL_SCOPES) == is_of_model, rule.name
        assert (rule.scope in METHOD_SCOPES) == (rule.name in METHOD_FAILURES), rule.name


@pytest.mark.parametrize("name", providers.platforms())
def test_a_body_that_is_nobodys_penalizes_no_key(name: str) -> None:
    """A proxy or a login page stands in front of the provider; a 429 of a gateway cools a model."""
    for status in (400, 401, 402, 403, 404, 412, 429, 498, 500, 503, 529):
        for body in ("<html></html>", "", None, [], {}, {"error": 1}, {"detail": 2}):
            facts = FailureFacts(status, body)
            verdict = providers.of(name).classify(facts, CallInfo("m", "chat"), NOW)
            assert verdict.scope in (Scope.NONE, Scope.KEY_MODEL), (status, body)


def test_what_people_write_names_no_stored_thing() -> None:
    """A message that is an id and nothing else goes with any key; a field for ids does not."""
    provider = providers.of("openai")
    route = provider.route("POST", "https://api.openai.com/v1/responses")
    assert route is not None
    said = provider.read_request(route, {"model": "m", "input": "file-abcdefgh"})
    named = provider.read_request(route, {"model": "m", "tools": [{"file_ids": ["file-abcdefgh"]}]})
    assert (said.resources, said.bound_to_owner) == ((), False)
    assert (named.resources, named.bound_to_owner) == (("file-abcdefgh",), True)


def test_a_background_response_is_a_job_that_is_not_made_twice() -> None:
    """It costs money though its connection is lost; what a program waits for may be sent again."""
    provider = providers.of("openai")
    route = provider.route("POST", "https://api.openai.com/v1/responses")
    assert route is not None
    given = [provider.read_request(route, {"model": "m", "background": b}) for b in (True, False)]
    assert [info.idempotent for info in given] == [False, True]


@pytest.mark.parametrize("platform", providers.platforms())
@pytest.mark.parametrize(("exact", "delay"), [("1500", 1.5), ("0", 2.0), ("soon", 2.0)])
def test_the_exact_header_of_a_delay_is_read_first(platform: str, exact: str, delay: float) -> None:
    """OpenAI and Azure send both headers, and Azure a 0 in the exact one."""
    headers = {"retry-after-ms": exact, "retry-after": "2"}
    facts = FailureFacts(429, _error("Slow."), headers["retry-after"], headers=headers)
    assert providers.of(platform).parse_error(facts, NOW).retry_delay_s == delay
