"""The failure tables of the providers, beside the refusals of refusals.jsonl."""

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
    facts = FailureFacts(
        429, {"error": {"message": "Slow."}}, headers["retry-after"], headers=headers
    )
    assert providers.of(platform).parse_error(facts, NOW).retry_delay_s == delay
